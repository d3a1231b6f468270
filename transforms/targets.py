"""How likely classes are, by the logits, and which the most and the least.

Ties go to the lowest index.

Importing this module loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def top(logits: Tensor, k: int = 1) -> Tensor:
    """The `k` most likely classes `[B, k]` of logits `[B, N]`, most likely first."""
    return logits.argsort(dim=1, descending=True, stable=True)[:, :k]


def least(logits: Tensor) -> Tensor:
    """The least likely class `[B, 1]` of logits `[B, N]`."""
    return logits.argsort(dim=1, stable=True)[:, :1]


def probabilities(logits: Tensor) -> Tensor:
    """The probabilities of logits `[..., N]`: their softmax, or the sigmoid where N is 1."""
    return logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid()


def best_of(logits: Tensor, classes: Tensor) -> int:
    """The most likely of `classes` (indices `[M]`) by logits `[N]`: the class of a group."""
    classes = classes.sort().values
    return int(classes[top(logits[classes][None])[0, 0]])
