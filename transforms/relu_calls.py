"""The ways to call a ReLU in PyTorch, and how each is read from its arguments.

A ReLU6 is a ReLU with a cap, and so is a clamp whose lower bound is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RELU = "relu"
"""What a ReLU is called where nonlinearities are counted, however it was written."""


@dataclass(frozen=True)
class ReluCall:
    """One call of a ReLU, however it was written.

    Attributes:
        x: what it is called on.
        inplace: whether it writes its output over `x`.
        cap: the largest value of its output.
        edges_open: whether the gradient passes at exactly 0 and at the cap, as in a clamp.
    """

    x: Tensor
    inplace: bool
    cap: float = inf
    edges_open: bool = False


def read_relu(func: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReluCall | None:
    """The call of `func` as a ReLU; None where it is none."""
    read = _READERS.get(func)
    relu = read(*args, **kwargs) if read else None
    return relu if relu and relu.cap > 0 and relu.x.is_floating_point() else None


def _relu(input: Tensor, inplace: bool = False) -> ReluCall:
    return ReluCall(input, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> ReluCall:
    return ReluCall(input, inplace, cap=6)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> ReluCall | None:
    return ReluCall(input, inplace, cap=max_val) if min_val == 0 else None


def _clamp(
    input: Tensor, min: object = None, max: Any = None, inplace: bool = False
) -> ReluCall | None:
    if not isinstance(min, int | float) or min != 0 or isinstance(max, Tensor):
        return None
    return ReluCall(input, inplace, cap=inf if max is None else max, edges_open=True)


def _threshold(
    input: Tensor, threshold: float, value: float, inplace: bool = False
) -> ReluCall | None:
    return ReluCall(input, inplace) if threshold == 0 and value == 0 else None


_READERS: dict[object, Callable[..., ReluCall | None]] = {
    **dict.fromkeys([F.relu, torch.relu, Tensor.relu], _relu),
    **dict.fromkeys([F.relu_, torch.relu_, Tensor.relu_], partial(_relu, inplace=True)),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
    **dict.fromkeys([F.threshold, torch.threshold], _threshold),
    **dict.fromkeys(
        [
            *(torch.clamp, torch.clamp_min, torch.clip),
            *(Tensor.clamp, Tensor.clamp_min, Tensor.clip),
        ],
        _clamp,
    ),
    **dict.fromkeys(
        [
            *(torch.clamp_, torch.clamp_min_, torch.clip_),
            *(Tensor.clamp_, Tensor.clamp_min_, Tensor.clip_),
        ],
        partial(_clamp, inplace=True),
    ),
}

OTHER_NONLINEARITIES = {
    *(F.silu, F.gelu, F.mish, F.elu, F.elu_, F.selu, F.selu_, F.celu, F.celu_, F.softplus),
    *(F.leaky_relu, F.leaky_relu_, F.prelu, F.rrelu, F.glu, F.softsign, F.tanhshrink),
    *(F.hardswish, F.hardsigmoid, F.hardtanh, F.hardtanh_, F.logsigmoid, F.sigmoid, F.tanh),
    *(torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.celu, torch.selu, torch.prelu),
    *(Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_, F.hardshrink, F.softshrink),
    *(F.softmax, torch.softmax, Tensor.softmax, F.scaled_dot_product_attention),
    *(F.multi_head_attention_forward, F.threshold, torch.where, Tensor.where),
    *(torch.maximum, Tensor.maximum, torch.fmax, Tensor.fmax),
}
"""The nonlinearities through which every backward rule lets the gradient, as they are called.

A ReLU that is written as `torch.maximum` or `torch.where` is among them.
"""
