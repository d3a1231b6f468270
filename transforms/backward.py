"""Backward rules: how the signal travels back from the class score to the taps.

Every rule shares one forward pass. While a :class:`RuleSwitch` is active, each ReLU of the model,
module or function, becomes an autograd function that asks the switch for the rule when the signal
comes back through it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Gate = Callable[[Tensor, Tensor, float | None], Tensor]


def _plain(g: Tensor, output: Tensor, cap: float | None) -> Tensor:
    g = torch.ops.aten.threshold_backward(g, output, 0)
    return g if cap is None else g * (output < cap)


def _guided(g: Tensor, output: Tensor, cap: float | None) -> Tensor:
    return _plain(g.clamp_min(0), output, cap)


def _deconvnet(g: Tensor, output: Tensor, cap: float | None) -> Tensor:
    return g.clamp_min(0)


RULES: dict[str, Gate] = {
    "plain": _plain,  # the gradient
    "guided": _guided,  # Springenberg 2015: where the ReLU was open and the signal is positive
    "deconvnet": _deconvnet,  # Zeiler 2014: where the signal is positive
}
"""What a ReLU does to the signal ``g``, given its output and its cap (6 for ReLU6, else None)."""


class RuleSwitch(TorchFunctionMode):
    """Makes the backward rule of a graph a matter of choice, after the forward pass.

    Active (``with switch:``) during the forward pass only; later, setting ``switch.rule`` decides
    how the next backward through that graph treats its ReLUs. A ReLU6, and a clamp at zero, is a
    ReLU whose gate also closes at its cap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule = "plain"
        self.relus = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        relu = _RELUS.get(func)
        if relu is None:
            return func(*args, **kwargs)
        x, cap, inplace = relu(*args, **kwargs)
        if cap is not None and cap <= 0:
            return func(*args, **kwargs)
        self.relus += 1
        return _SwitchedRelu.apply(x, None if cap == float("inf") else cap, inplace, self)


class _SwitchedRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cap: float | None, inplace: bool, switch: RuleSwitch
    ) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        if cap is None:
            output = x.relu_() if inplace else x.relu()
        else:
            output = x.clamp_(0, cap) if inplace else x.clamp(0, cap)
        ctx.save_for_backward(output)
        ctx.cap, ctx.switch = cap, switch
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (output,) = ctx.saved_tensors
        return RULES[ctx.switch.rule](g, output, ctx.cap), None, None, None


# Each entry reads the arguments of one way to write a ReLU: (x, cap, in place). A cap of infinity
# is none; a cap of -1 says that this call is not a ReLU.
_Call = tuple[Tensor, float, bool]
_NOT_A_RELU = -1.0


def _relu(input: Tensor, inplace: bool = False) -> _Call:
    return input, float("inf"), inplace


def _relu_(input: Tensor) -> _Call:
    return input, float("inf"), True


def _relu6(input: Tensor, inplace: bool = False) -> _Call:
    return input, 6.0, inplace


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> _Call:
    return input, max_val if min_val == 0 else _NOT_A_RELU, inplace


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> _Call:
    at_zero = isinstance(min, int | float) and min == 0
    if not at_zero or isinstance(max, Tensor):
        return input, _NOT_A_RELU, False
    return input, float("inf") if max is None else float(max), False


_RELUS: dict[Any, Callable[..., _Call]] = {
    F.relu: _relu,
    F.relu_: _relu_,
    torch.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu: _relu,
    Tensor.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    torch.clamp: _clamp,
    torch.clamp_min: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clamp_min: _clamp,
}
