"""The table of backward rules: how the signal travels from the class score back to the taps.

A rule says what a ReLU does to the signal and, for excitation backprop, that layers with weights
hand it down in their own way. `transforms.backward` makes a model follow a rule.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Gate = Callable[["Tensor", Callable[["Tensor"], "Tensor"]], "Tensor"]
"""What a ReLU does to the signal `g`, given the function that lets a gradient through it."""


@dataclass(frozen=True)
class Excitation:
    """How layers with weights hand the signal down.

    Attributes:
        contrast_at_classifier: whether the classifier subtracts what its negated weights would
            hand down.
    """

    contrast_at_classifier: bool = False


@dataclass(frozen=True)
class Rule:
    """One backward rule.

    Attributes:
        gate: what a ReLU does to the signal.
        is_gradient: whether the signal is the gradient itself. Then autograd needs no help, and
            the second order is defined.
        needs_relu: whether the rule would be the plain gradient in a model without ReLUs.
        excitation: how layers with weights hand the signal down; None: by their gradient.
        relu_on_read: whether maps are stored with their sign, and negative values are set to 0
            when a map is read.
        source: where it comes from.
        remark: where its maps are not those of the authors' code, and why.
    """

    gate: Gate
    is_gradient: bool = False
    needs_relu: bool = False
    excitation: Excitation | None = None
    relu_on_read: bool = False
    source: str = ""
    remark: str = ""


def through_relu(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient: where the ReLU was open."""
    return through(g)


def guided(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    """Where the ReLU was open and the signal is positive."""
    return through(g).clamp_min_(0)


def deconvnet(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    """Where the signal is positive."""
    return g.clamp_min(0)


def passed_on(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    """The signal as it is."""
    return g


GRADIENT = Rule(through_relu, is_gradient=True)
"""The rule of autograd itself."""

_POSITIVE_IMAGE = (
    "at the layer input, the image counts by its positive part, as the input of every layer does: "
    "the signal is a probability, and a negative pixel would have a negative share. The authors' "
    "code takes the image with its sign there, so its maps at input are others"
)

RULES: dict[str, Rule] = {
    "plain": GRADIENT,
    "guided": Rule(guided, needs_relu=True, source="Springenberg et al. 2015"),
    "deconvnet": Rule(deconvnet, needs_relu=True, source="Zeiler and Fergus 2014"),
    "excitation": Rule(
        passed_on,
        excitation=Excitation(),
        source="Zhang et al. 2016, MWP",
        remark=_POSITIVE_IMAGE,
    ),
    "contrastive": Rule(
        passed_on,
        excitation=Excitation(contrast_at_classifier=True),
        relu_on_read=True,
        source="Zhang et al. 2016, c-MWP",
        remark=_POSITIVE_IMAGE,
    ),
}
