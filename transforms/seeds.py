"""Seeds: the signal that enters the output of a fully convolutional model, for one class an image.

A class then has a score at every location. The seed says how much each of them counts; it is a
constant, and no gradient flows through it. For logits ``[B, N]`` every seed is 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _pointing(scores: Tensor) -> Tensor:
    # Softmax subtracts the maximum itself.
    flat = scores.reshape(len(scores), math.prod(scores.shape[1:]))
    return flat.softmax(1).view_as(scores)


SEEDS: dict[str, Callable[[Tensor], Tensor]] = {
    "onehot_sum": torch.ones_like,  # the score is the sum over the locations
    "pointing": _pointing,  # softmax over the locations, as in the pointing game of TorchRay
}
"""The target's logits ``[B, h, w]`` or ``[B]`` to the weights of its locations, of that shape."""
