"""Makes a graph follow a backward rule that is chosen after the forward pass.

Every rule shares one forward pass. While a `RuleSwitch` is active, each ReLU of the model, module
or function, becomes an autograd function that asks the switch for the rule when the signal comes
back through it. The rules themselves are in `transforms.rules`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from transforms.convolution import (
    Convolution,
    WeightCache,
    is_kept,
    laid_out,
    layout_of,
    read_batch_norm,
    read_convolution,
)
from transforms.excitation import excited_call
from transforms.linear import WideLayer, linear, wide_layer
from transforms.relu_calls import OTHER_NONLINEARITIES, RELU, ReluCall, read_relu
from transforms.rules import GRADIENT, Excitation, Rule


class RuleSwitch(TorchFunctionMode):
    """Lets one graph be traversed by any of `rules`.

    Active (`with switch:`) during the forward pass only. Later, setting `switch.rule` decides how
    the next backward pass through that graph treats its ReLUs and, for excitation backprop, its
    layers with weights. What excitation needs is recorded only if one of `rules` needs it.

    Attributes:
        rule: the rule of the next backward pass.
        relus: how many ReLUs the forward pass called.
        nonlinearities: how often it called which nonlinearity above the lowest tap, by name.
        weighted_layers: how many layers with weights it called, if excitation is among the rules.
        classifier: the number of the layer with weights that the signal comes to first; 0 before.
        cache: what was made of the model's weights; None: all layers take PyTorch's own way back.
        wide_layer: the first one with the most weights. Its graph holds the switch, so whoever is
            done with it sets it to None.
    """

    def __init__(self, rules: Iterable[Rule], cache: WeightCache | None = None) -> None:
        super().__init__()
        self.rule = GRADIENT
        self.relus = 0
        self.nonlinearities: Counter[str] = Counter()
        self.weighted_layers = self.classifier = 0
        self.cache = cache
        self.wide_layer: WideLayer | None = None
        self._last: tuple[Tensor, int, Convolution] | None = None
        self._excites = any(rule.excitation for rule in rules)

    @property
    def excitation(self) -> Excitation | None:
        """How layers with weights hand the signal down now; None: by their gradient."""
        return self.rule.excitation

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, with what the rules need recorded in the graph."""
        kwargs = kwargs or {}
        relu = read_relu(func, args, kwargs)
        if relu is not None:
            self.relus += 1
            self.nonlinearities[RELU] += relu.x.requires_grad
            return _switched_relu(relu.x, relu, self)
        if func in OTHER_NONLINEARITIES and any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args
        ):
            self.nonlinearities[func.__name__.strip("_")] += 1
        excites = self._excites and torch.is_grad_enabled()
        output = excited_call(self, func, args, kwargs) if excites else None
        if output is None:
            output = self.run(func, *args, **kwargs)
        if self.cache is not None and func is torch.conv2d:
            convolution = read_convolution(*args, **kwargs)
            self._last = (output, output._version, convolution) if convolution else None
        elif self.cache is not None and func is F.linear:
            wide = wide_layer(output, *args, **kwargs)
            if wide and (self.wide_layer is None or wide.size > self.wide_layer.size):
                self.wide_layer = wide
        return output

    def run(self, func: Any, *args: Any, exact: bool = True, **kwargs: Any) -> Any:
        """Call `func`, with its fast way back if it is a convolution, its batch norm, or linear.

        `exact`: the output has the bits of that call.
        """
        if self.cache is not None and func is torch.conv2d:
            convolution = read_convolution(*args, **kwargs)
            if convolution:
                return convolution(self.cache, exact=exact)
        elif self.cache is not None and func is F.batch_norm and self._last:
            output, version, convolution = self._last
            # A tap, or anything else between the two, made another tensor or wrote to this one.
            unchanged = args[0] is output and output._version == version
            if unchanged and is_kept(convolution.weight):
                norm = read_batch_norm(*args, **kwargs)
                if norm:
                    return convolution.normalised(self.cache, norm)
        elif self.cache is not None and func is F.linear:
            made = linear(*args, **kwargs)
            if made is not None:
                return made
        output = func(*args, **kwargs)
        if func is F.batch_norm and output.requires_grad:
            # PyTorch 2.13 misreads the signal of one image in another layout (eval mode, CPU).
            output.register_hook(partial(_laid_out, layout_of(output)))
        return output

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        self._last = None  # its input holds the graph, whose nodes hold the switch
        if error is not None:
            self.wide_layer = None


def _laid_out(layout: torch.memory_format, g: Tensor | None) -> Tensor | None:
    return None if g is None else laid_out(g, layout)  # None: the signal goes another way


class _SwitchedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: ReluCall, switch: RuleSwitch) -> Tensor:
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
        kept: Tensor = ctx.saved_tensors[0]

        def through(g: Tensor) -> Tensor:
            if ctx.edges_open:
                return g * kept
            g = torch.ops.aten.threshold_backward(g, kept, 0)
            return g if ctx.cap == inf else g * (kept < ctx.cap)

        return ctx.switch.rule.gate(g, through), None, None


_switched_relu: Callable[[Tensor, ReluCall, RuleSwitch], Tensor] = _SwitchedRelu.apply


def is_relu_node(node: object) -> bool:
    """Whether a node of the graph is a ReLU that follows the rules."""
    return isinstance(node, _SwitchedRelu._backward_cls)
