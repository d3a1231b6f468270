"""The table of methods: names for (rule, extract, aggregate) triples and for the CAM weightings.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.aggregate import AGGREGATES
from transforms.cam import WEIGHTINGS
from transforms.extract import EXTRACTS, Tapped
from transforms.names import unknown_name
from transforms.rules import RULES

if TYPE_CHECKING:
    from torch import Tensor

TRIPLE = "rule:extract:aggregate"


class MethodError(ValueError):
    """A method or a part of it does not exist, or its parts do not make a method."""


@dataclass(frozen=True)
class Method:
    """How a tap becomes a map: a backward rule, then an extract and an aggregate, or a weighting.

    Everything but the name follows from the parts, so a triple and a named method of the same
    parts behave the same.

    Attributes:
        name: what its maps are called in the output.
        rule: a name of `transforms.rules.RULES`.
        extract: a name of `transforms.extract.EXTRACTS`; None with a weighting.
        aggregate: a name of `transforms.aggregate.AGGREGATES`; None with a weighting.
        weighting: a name of `transforms.cam.WEIGHTINGS`; None with an extract and an aggregate.
        source: where the method comes from.

    Raises:
        MethodError: a part is unknown, or the parts do not make a method.
    """

    name: str
    rule: str
    extract: str | None = None
    aggregate: str | None = None
    weighting: str | None = None
    source: str = TRIPLE

    def __post_init__(self) -> None:
        tables: Sequence[tuple[str, str | None, Mapping[str, object]]] = (
            ("rule", self.rule, RULES),
            ("extract", self.extract, EXTRACTS),
            ("aggregate", self.aggregate, AGGREGATES),
            ("weighting", self.weighting, WEIGHTINGS),
        )
        for what, part, valid in tables:
            if part is not None and part not in valid:
                raise MethodError(f"method {self.name!r}: {unknown_name(what, part, valid)}")
        given = tuple(part is not None for part in (self.extract, self.aggregate, self.weighting))
        if given not in ((True, True, False), (False, False, True)):
            raise MethodError(
                f"method {self.name!r} needs an extract and an aggregate, or a weighting alone"
            )

    @property
    def relu_on_read(self) -> bool:
        """Whether maps are stored with their sign, and negative values are set to 0 on reading."""
        by_weighting = self.weighting is not None and WEIGHTINGS[self.weighting].relu_on_read
        return by_weighting or RULES[self.rule].relu_on_read

    @property
    def needs_convolution(self) -> bool:
        """Whether it explains convolution layers only."""
        return self.extract is not None and EXTRACTS[self.extract].needs_convolution

    @property
    def formula(self) -> str:
        """`rule:extract:aggregate`, or what stands in for it."""
        if self.weighting is not None:
            return f"{self.rule}:{self.weighting} weighting"
        return f"{self.rule}:{self.extract}:{self.aggregate}"

    def map(self, tap: Tapped) -> Tensor:
        """The map `[B, h, w]` of one tap, raw: nothing is normalised."""
        if self.weighting is not None:
            return WEIGHTINGS[self.weighting].function(tap)
        assert self.extract is not None
        assert self.aggregate is not None
        return AGGREGATES[self.aggregate].function(tap.contribution(self.extract))


_TRIPLES = (
    Method("gradient", "plain", "bias", "max_abs", source="Simonyan et al. 2014"),
    Method("gradient_sum", "plain", "bias", "sum", source="Simonyan et al. 2014, summed"),
    Method("linear_approx", "plain", "scaling", "sum", source="gradient × activation"),
    Method("normgrad", "plain", "conv1x1", "norm", source="Rebuffi et al. 2020"),
    Method("normgrad_selective", "plain", "scaling", "filter_norm", source="Rebuffi et al. 2020"),
    Method(
        "normgrad_real", "plain", "real", "norm", source="Rebuffi et al. 2020, conv layers only"
    ),
    Method("guided_backprop", "guided", "bias", "max_abs", source="Springenberg et al. 2015"),
    Method(
        "guided_backprop_sum", "guided", "bias", "sum", source="Springenberg et al. 2015, summed"
    ),
    Method("deconvnet", "deconvnet", "bias", "max_abs", source="Zeiler and Fergus 2014"),
    Method("deconvnet_sum", "deconvnet", "bias", "sum", source="Zeiler and Fergus 2014, summed"),
    Method("excitation_backprop", "excitation", "bias", "sum", source="Zhang et al. 2016, MWP"),
    Method(
        *("contrastive_excitation_backprop", "contrastive", "bias", "sum"),
        source="Zhang et al. 2016, c-MWP",
    ),
)


def _cam(weighting: str) -> Method:
    source = WEIGHTINGS[weighting].source
    return Method(weighting, "plain", weighting=weighting, source=source)


METHODS: dict[str, Method] = {
    **{method.name: method for method in _TRIPLES},
    **{weighting: _cam(weighting) for weighting in WEIGHTINGS},
}
"""The named methods. A weighting that is added later is a method under its own name, too."""


def parse_methods(methods: Iterable[str | Method]) -> tuple[Method, ...]:
    """Methods by name or `rule:extract:aggregate`, in the order given; a `Method` is itself.

    Raises:
        MethodError: a name is unknown, or given twice.
    """
    found = tuple(m if isinstance(m, Method) else _parse(m) for m in methods)
    if not found:
        raise MethodError(f"no method given; valid: {', '.join(METHODS)}, or any {TRIPLE}")
    given = [method.name for method in found]
    if len(set(given)) < len(given):
        twice = sorted({name for name in given if given.count(name) > 1})
        raise MethodError(f"method given twice: {', '.join(twice)}")
    return found


def _parse(name: str) -> Method:
    if name in METHODS:
        return METHODS[name]
    if name in WEIGHTINGS:
        return _cam(name)
    if name.count(":") != 2:
        valid = [*METHODS, *WEIGHTINGS]
        raise MethodError(unknown_name("method", name, valid, hint=f"any {TRIPLE}"))
    return Method(name, *name.split(":"))
