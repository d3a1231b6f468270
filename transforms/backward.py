"""Backward rules: how the signal travels back from the class score to the taps.

Every rule shares one forward pass. While a :class:`RuleSwitch` is active, each ReLU of the model,
module or function, becomes an autograd function that asks the switch for the rule when the signal
comes back through it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from transforms.excitation import EXCITATION_RULES, excited_call

Gate = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


def _plain(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    return through(g)


def _guided(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    return through(g.clamp_min(0))


def _deconvnet(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    return g.clamp_min(0)


def _passed_on(g: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    return g


RULES: dict[str, Gate] = {
    "plain": _plain,  # the gradient
    "guided": _guided,  # Springenberg 2015: where the ReLU was open and the signal is positive
    "deconvnet": _deconvnet,  # Zeiler 2014: where the signal is positive
    "excitation": _passed_on,  # Zhang 2016 (MWP): shared out by the layers with weights
    "contrastive": _passed_on,  # Zhang 2016 (c-MWP): less what the negated classifier excites
}
"""What a ReLU does to the signal ``g``, given how it lets a gradient through."""


class RuleSwitch(TorchFunctionMode):
    """Makes the backward rule of a graph a matter of choice, after the forward pass.

    ``rules`` are those to choose from: only if one of them is excitation's are its forks made.
    Active (``with switch:``) during the forward pass only; later, setting ``switch.rule`` decides
    how the next backward through that graph treats its ReLUs. A ReLU6, and a clamp at zero, is a
    ReLU whose gate also closes at its cap.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        super().__init__()
        self.rule = "plain"
        self.relus = 0
        self.weighted_layers = self.classifier = 0
        self._excites = not set(rules).isdisjoint(EXCITATION_RULES)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        read = _RELUS.get(func)
        relu = read and read(*args, **kwargs)
        if self._excites and relu is None:
            output = excited_call(self, func, args, kwargs)
            if output is not None:
                return output
        if relu is None or relu.cap <= 0 or not relu.x.is_floating_point():
            return func(*args, **kwargs)
        self.relus += 1
        return _SwitchedRelu.apply(relu.x, relu, self)


@dataclass(frozen=True)
class _Relu:
    """One call of a ReLU, however it was written."""

    x: Tensor
    inplace: bool
    cap: float = inf
    edges_open: bool = False  # a clamp lets the gradient through at exactly 0 and at its cap


class _SwitchedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: _Relu, switch: RuleSwitch) -> Tensor:
        ctx.switch, ctx.cap, ctx.edges_open = switch, relu.cap, relu.edges_open
        if relu.edges_open:
            ctx.save_for_backward((x >= 0) & (x <= relu.cap))
        if relu.inplace:
            ctx.mark_dirty(x)
        if relu.cap == inf:
            output = x.relu_() if relu.inplace else x.relu()
        else:
            output = x.clamp_(0, relu.cap) if relu.inplace else x.clamp(0, relu.cap)
        if not relu.edges_open:
            ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors

        def through(g: Tensor) -> Tensor:
            if ctx.edges_open:
                return g * kept
            g = torch.ops.aten.threshold_backward(g, kept, 0)
            return g if ctx.cap == inf else g * (kept < ctx.cap)

        return RULES[ctx.switch.rule](g, through), None, None


# Each entry reads the arguments of one way to write a ReLU; None where the call is not one.
def _relu(input: Tensor, inplace: bool = False) -> _Relu:
    return _Relu(input, inplace)


def _relu6(input: Tensor, inplace: bool = False) -> _Relu:
    return _Relu(input, inplace, cap=6)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> _Relu | None:
    return _Relu(input, inplace, cap=max_val) if min_val == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None, inplace: bool = False) -> _Relu | None:
    if not isinstance(min, int | float) or min != 0 or isinstance(max, Tensor):
        return None
    return _Relu(input, inplace, cap=inf if max is None else max, edges_open=True)


_RELUS: dict[Any, Callable[..., _Relu | None]] = {
    **dict.fromkeys([F.relu, torch.relu, Tensor.relu], _relu),
    **dict.fromkeys([F.relu_, torch.relu_, Tensor.relu_], partial(_relu, inplace=True)),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
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
