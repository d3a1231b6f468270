"""Variants: the model under which a map is computed, by name.

`base` is the model itself. `meta(lr=…)` is the paper's meta-saliency (Rebuffi et al. 2020,
section 4): the model after one step of plain SGD on one image and target. `cascade(layer)` has
random weights from the head down to a layer (Adebayo et al. 2018). A variant is a choice of
parameters and never a copy of the model; `transforms.variant_maps` computes the maps.

Importing this module loads no torch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transforms.names import unknown_name

LEARNING_RATE = 0.0025
BASE = "base"
ONE_CLASS = (
    "a meta variant needs a model of two classes or more: with one, the cross-entropy is always 0, "
    "so the step would change nothing; leave meta out"
)


class VariantError(ValueError):
    """Not a variant, or one that the model or the methods do not allow."""


@dataclass(frozen=True)
class Base:
    """The model itself."""

    @property
    def name(self) -> str:
        """`base`"""
        return BASE

    @property
    def own_classes(self) -> bool:
        """Whether it chooses its classes by its own logits."""
        return False


@dataclass(frozen=True)
class Meta:
    """The model after one step `θ − lr ∇_θ CE(Φ_θ(x), target)`.

    Attributes:
        lr: the learning rate; a negative one steps the adversarial way.
        second_order: whether the map's gradient goes through the step as well.
    """

    lr: float
    second_order: bool = False

    @property
    def name(self) -> str:
        """`meta(lr=+0.0025)`, with `,second_order` where it is."""
        return f"meta(lr={self.lr:+}{',second_order' if self.second_order else ''})"

    @property
    def own_classes(self) -> bool:
        """Whether it chooses its classes by its own logits."""
        return False


@dataclass(frozen=True)
class Cascade:
    """The model with random weights from the head down to a layer.

    Attributes:
        layer: the last layer with random weights.
        own_classes: whether it chooses its classes by its own logits. Otherwise they are those
            that the base model chose.
    """

    layer: str
    own_classes: bool = False

    @property
    def name(self) -> str:
        """`cascade(layer4)`, with `,own_classes` where it chooses its own."""
        return f"cascade({self.layer}{',own_classes' if self.own_classes else ''})"


Variant = Base | Meta | Cascade

VALID = (
    *(BASE, "meta", "meta(lr=0.001)", "meta(lr=0.001,second_order)"),
    *("cascade", "cascade(LAYER)", "cascade(LAYER,own_classes)"),
)
"""How variants are written."""


def parse_variants(names: Iterable[str], layers: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The variants that `names` stand for, each once, with `base` always and first.

    `meta` stands for both signs of the paper's rate, `cascade` for a cascade to each of
    `layers`, from the last to the first.

    Raises:
        VariantError: a name is none of base, meta, meta(lr=X[,second_order]), cascade,
            cascade(LAYER[,own_classes]).
    """
    found: list[Variant] = [Base()]
    for name in names:
        if name == "meta":
            found += [Meta(LEARNING_RATE), Meta(-LEARNING_RATE)]
        elif name == "cascade":
            found += [Cascade(layer) for layer in reversed(layers)]
        else:
            found.append(_parse(name))
    return tuple(dict.fromkeys(found))


def opposite_step(name: str) -> str | None:
    """`meta(lr=-X)` for `meta(lr=+X)`; None for any other variant's name."""
    match = re.fullmatch(_META, name)
    if match is None or match[1].startswith("-"):
        return None
    return Meta(-float(match[1]), bool(match[2])).name


_META = r"meta\(lr=([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(,second_order)?\)"
_CASCADE = r"cascade\(([\w.]+)(,own_classes)?\)"


def _parse(name: str) -> Variant:
    if name == BASE:
        return Base()
    if match := re.fullmatch(_META, name):
        return Meta(float(match[1]), bool(match[2]))
    if match := re.fullmatch(_CASCADE, name):
        return Cascade(match[1], bool(match[2]))
    raise VariantError(unknown_name("variant", name, VALID))
