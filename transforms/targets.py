"""Which classes are explained: functions of the logits, with ties broken by the lowest index."""

import torch
from torch import Tensor


def top(logits: Tensor, k: int = 1) -> Tensor:
    """The ``k`` most likely classes ``[B, k]`` of logits ``[B, N]``, most likely first."""
    return torch.argsort(logits, dim=1, descending=True, stable=True)[:, :k]


def least(logits: Tensor) -> Tensor:
    """The least likely class ``[B, 1]`` of logits ``[B, N]``."""
    return torch.argsort(logits, dim=1, stable=True)[:, :1]


def best_of(logits: Tensor, classes: Tensor) -> int:
    """The most likely of ``classes`` (indices, ``[M]``) by logits ``[N]``: a group's class."""
    classes = classes.sort().values
    return int(classes[top(logits[classes][None])[0, 0]])
