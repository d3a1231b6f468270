"""The table of output gradients: what enters the output of a fully convolutional model.

Such a model has a score per class and location. The output gradient says how much each location of
the explained class counts; it is a constant, and no gradient flows through it. For a model with
one score per class it is 1. Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class OutputGradient:
    """One way to weigh the locations of a class's scores.

    Attributes:
        weigh: from the target's logits `[B, h, w]` or `[B]` to weights of that shape.
        description: what it does, in words.
    """

    weigh: Callable[[Tensor], Tensor]
    description: str


def onehot_sum(logits: Tensor) -> Tensor:
    """1 at every location, so that the score is the sum over the locations."""
    return logits.new_ones(logits.shape)


def pointing(logits: Tensor) -> Tensor:
    """The softmax over the locations, as in TorchRay's pointing game."""
    # The softmax subtracts the largest value itself.
    flat = logits.reshape(len(logits), math.prod(logits.shape[1:]))
    return flat.softmax(1).view_as(logits)


OUTPUT_GRADIENTS: dict[str, OutputGradient] = {
    "onehot_sum": OutputGradient(onehot_sum, "1 at every location: the score is the sum"),
    "pointing": OutputGradient(pointing, "softmax over the locations, as in the pointing game"),
}
