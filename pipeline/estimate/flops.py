"""The floating-point operations of the passes over one photo, counted by PyTorch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from transforms.engine import Explainer
from transforms.pixels import Size
from transforms.variant_maps import explain_variants
from transforms.variants import Variant


@dataclass(frozen=True)
class Flops:
    """What one photo costs, forward and backward, in all variants of the model.

    Attributes:
        shape: height and width of the network's input.
        once: whatever its classes.
        each: on top, for every class that is explained.
    """

    shape: Size
    once: float
    each: float

    def of(self, shape: Size, targets: float) -> float:
        """The same for a photo of another shape: convolutions are proportional to the pixels."""
        return (self.once + targets * self.each) * math.prod(shape) / math.prod(self.shape)


def count_flops(explainer: Explainer, variants: Sequence[Variant], shape: Size) -> Flops:
    """Count what the engine does for a black photo of this `shape`.

    A multiply-add is two. Convolutions and matrix products count, the rest (ReLUs, pools, the
    aggregates of a map) does not.
    """
    device = next(explainer.model.parameters()).device

    def counted(targets: list[int]) -> float:
        with explainer.with_pytorchs_backward(), FlopCounterMode(display=False) as counter:
            rows = torch.tensor([targets], device=device)
            explain_variants(explainer, torch.zeros(1, 3, *shape, device=device), rows, variants)
        return float(counter.get_total_flops())

    one, two = counted([0]), counted([0, 1])
    return Flops(shape, 2 * one - two, two - one)
