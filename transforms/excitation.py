"""Excitation backprop: a backward rule that hands down probabilities instead of gradients.

Zhang et al., *Top-down Neural Attention by Excitation Backprop*, ECCV 2016. Let `x₊` and `W₊` be
the positive parts of input and weights. A layer that is linear in its input (convolution, matrix
product, sum or average) hands `p` at its output down as `x₊ ⊙ fᵀ(p ⊘ f(x₊; W₊); W₊)`: every unit
shares its probability among the inputs that excite it, so the sum of the signal is conserved. A
unit that no input excites, only its bias, loses its share. Batch norm, scaling by a constant and
ReLU pass the signal on, a maximum routes it, and a residual sum splits it by each branch's share of
the positive sum.

Each such call of the forward pass gets a fork in the graph: the other rules take the native
backward, this one takes its own. The contrastive rule subtracts, at the classifier (the first layer
with weights that the signal comes to), what the negated weights would hand down. Everything below
is linear in the signal, so it does not matter at which layer under the classifier the two are
subtracted.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transforms.convolution import WeightCache, is_kept
from transforms.rules import Excitation

Run = Callable[[Tensor, Tensor | None], Tensor]
"""A linear layer without bias: (input, weight or None) to output."""

Excite = Callable[[Tensor], tuple[Tensor, ...]]
"""The signal at the output to the signal at each forked input."""


class Switch(Protocol):
    """What the forks ask when the signal comes back.

    Attributes:
        weighted_layers: how many layers with weights were called.
        classifier: the number of the one that the signal comes to first; 0 before it does.
        cache: what was made of the model's weights, if it is to be kept.
    """

    weighted_layers: int
    classifier: int
    cache: WeightCache | None

    def run(self, func: Any, *args: Any, exact: bool = True, **kwargs: Any) -> Any:
        """Call `func`, with the way back that the other rules take; `exact`: bit by bit."""

    @property
    def excitation(self) -> Excitation | None:
        """How layers with weights hand the signal down; None: by their gradient."""


NOT_RELU = "excitation backprop is defined for ReLU networks, and this one calls {}"

ROUNDING = 1e-3
"""How far below zero rounding takes a signal, relative to its largest value."""

_MORE = 1e-2  # than what entered, by rounding


class UnsupportedOperationError(ValueError):
    """The model does something that excitation backprop is not defined for."""


def check_signal(excitation: Excitation, p: Tensor, seed: Tensor, layer: str) -> None:
    """Refuse what is no probability at a layer: something above it handed down its gradient.

    No signal is negative there, but for a contrast, and none is more in all than entered the logits
    (`seed`).

    Raises:
        UnsupportedOperationError: it is, and not only by rounding.
    """
    found, given = p.clamp(min=0).flatten(1).sum(1), seed.flatten(1).sum(1)
    grown = found > (1 + _MORE) * given
    if not excitation.contrast_at_classifier and p.amin() < -ROUNDING * p.amax():
        wrong = "negative"
    elif grown.any():
        wrong = f"{float((found / given)[grown].amax()):.3g} times what it was at the logits"
    else:
        return
    raise UnsupportedOperationError(
        f"the signal of excitation backprop is {wrong} at layer {layer!r}: above it the model "
        "calls something that the rule is not defined for, such as a recurrent layer or a "
        "product of weights and signal that is no layer; leave the rule out, or tap above it"
    )


def excited_call(
    switch: Switch, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Make a call of the forward pass, with its fork; None where the native backward is right.

    Raises:
        UnsupportedOperationError: the rule is not defined for this nonlinearity or product.
    """
    if func in _UNDEFINED and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise UnsupportedOperationError(NOT_RELU.format(func.__name__))
    handler = _HANDLERS.get(func)
    return None if handler is None else handler(switch, func, *args, **kwargs)


class _Fork(torch.autograd.Function):
    """`output` as it is, with a second way back: from it to `inputs` by `excite`."""

    @staticmethod
    def forward(
        ctx: Any, switch: Switch, excite: Excite, output: Tensor, *inputs: Tensor
    ) -> Tensor:
        # The output itself, so that the caller of an in-place operation holds the fork too.
        ctx.mark_dirty(output)
        ctx.set_materialize_grads(False)
        ctx.switch, ctx.excite, ctx.inputs = switch, excite, len(inputs)
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is not None and ctx.switch.excitation:
            return None, None, None, *ctx.excite(g)
        return None, None, g, *[None] * ctx.inputs


class _Before(torch.autograd.Function):
    """The tensor as a node of its own, from before an in-place operation on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Tensor | None:
        return g


_fork: Callable[..., Tensor] = _Fork.apply
_before: Callable[[Tensor], Tensor] = _Before.apply


class _LinearLayer:
    """Hands the signal down through a linear layer; its positive forward is run once."""

    def __init__(self, switch: Switch, run: Run, x: Tensor, weight: Tensor | None) -> None:
        self._switch, self._run = switch, run
        self._x, self._weight = x.detach(), weight
        if weight is not None:
            switch.weighted_layers += 1
        self._number = switch.weighted_layers
        self._version = x._version
        self._forwards: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, p: Tensor) -> tuple[Tensor, ...]:
        signal = self._hand_down(p, 1)
        excitation = self._switch.excitation
        if excitation and excitation.contrast_at_classifier and self._weight is not None:
            self._switch.classifier = self._switch.classifier or self._number
            if self._number == self._switch.classifier:
                signal = signal - self._hand_down(p, -1)
        return (signal,)

    def _hand_down(self, p: Tensor, sign: int) -> Tensor:
        if sign not in self._forwards:
            if self._x._version != self._version:
                raise UnsupportedOperationError(
                    "the input of a layer was changed in place after the layer read it"
                )
            # Mostly the output of a ReLU, of which no copy is needed.
            x = self._x if self._x.amin() >= 0 else self._x.clamp_min(0)
            weight = self._part_of_weight(sign)
            x = x.detach().to(x.dtype if weight is None else weight.dtype).requires_grad_()
            with torch.enable_grad():
                total = self._run(x, weight)
            # Written over the total, whose values no linear layer needs to go back.
            self._forwards[sign] = x, total, _inverse_(total.detach())
        x, total, inverse = self._forwards[sign]
        (down,) = torch.autograd.grad(total, x, p * inverse, retain_graph=True)
        return down.mul_(x.detach())

    def _part_of_weight(self, sign: int) -> Tensor | None:
        """The positive part of the weight, or of its negative."""
        weight = self._weight
        if weight is None:
            return None

        def make() -> Tensor:
            return nn.Parameter((sign * weight.detach()).clamp_min(0), requires_grad=False)

        cache = self._switch.cache
        return (
            cache.get(sign, make, weight)
            if cache is not None and is_kept(weight)
            else make().detach()
        )


def _inverse_(total: Tensor) -> Tensor:
    """1 / `total`, in place; 0 where it is 0, or so small that its inverse overflows."""
    return F.threshold(total, torch.finfo(total.dtype).tiny, torch.inf, True).reciprocal_()


def _weighted(
    switch: Switch,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    def run(x: Tensor, w: Tensor | None) -> Tensor:
        # Sums of positive parts decide nothing, so they may be rounded in any way.
        output: Tensor = switch.run(func, x, w, None, *args, exact=False, **kwargs)
        return output

    layer = _LinearLayer(switch, run, input, weight)
    return _fork(switch, layer, switch.run(func, input, weight, bias, *args, **kwargs), input)


def _averaged(switch: Switch, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    if not input.requires_grad:
        return None  # nothing comes back; a sum may be of truth values
    # Times 1, as what goes back through a sum alone repeats values and cannot be written to.
    layer = _LinearLayer(switch, lambda x, _: func(x * 1, *args, **kwargs), input, None)
    return _fork(switch, layer, func(input, *args, **kwargs), input)


def _passed_on(switch: Switch, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _fork(switch, lambda p: (p,), switch.run(func, input, *args, **kwargs), input)


def _summed(
    switch: Switch, func: Any, input: Any, other: Any, *args: Any, **kwargs: Any
) -> Tensor | None:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    in_graph = input.requires_grad, other.requires_grad
    if not any(in_graph) or (input.shape != other.shape and not all(in_graph)):
        return None  # nothing comes back, or what is added is a bias
    if input.shape != other.shape or kwargs.get("alpha", 1) != 1:
        raise UnsupportedOperationError(
            "excitation backprop splits sums of two tensors of one shape, not of "
            f"{list(input.shape)} and {list(other.shape)}"
        )
    # Both branches have a share, also where one lies below the lowest tap and out of the graph.
    with torch.no_grad():
        share, rest = input.clamp_min(0), other.clamp_min(0)
        inverse = _inverse_(share + rest)
        share.mul_(inverse)
        rest.mul_(inverse)
    before = _before(input)
    output = _whole(func(input, other, *args, **kwargs), input)
    return _fork(switch, lambda p: (p * share, p * rest), output, before, other)


def _scaled(
    switch: Switch, func: Any, input: Any, other: Any, *args: Any, **kwargs: Any
) -> Tensor | None:
    signals = [t for t in (input, other) if isinstance(t, Tensor) and t.requires_grad]
    if len(signals) == 2:
        raise UnsupportedOperationError(
            f"excitation backprop is not defined for products of two signals ({func.__name__})"
        )
    if not signals:
        return None
    before = _before(signals[0])
    output = _whole(func(input, other, *args, **kwargs), input)
    return _fork(switch, lambda p: (p,), output, before)


def _whole(output: Tensor, input: Any) -> Tensor:
    if output is input and output._is_view():
        raise UnsupportedOperationError(
            "excitation backprop does not follow sums and products written in place to a view of a "
            "tensor"
        )
    return output


_HANDLERS: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.conv2d, F.conv2d, F.conv_transpose2d, F.linear), _weighted),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate), _averaged),
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum), _averaged),
    **dict.fromkeys((F.batch_norm, torch.batch_norm), _passed_on),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__), _summed),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__), _scaled),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.div_), _scaled),
    **dict.fromkeys((Tensor.__rmul__, Tensor.__truediv__, Tensor.__itruediv__), _scaled),
}

_UNDEFINED = {
    *(F.silu, F.gelu, F.mish, F.elu, F.selu, F.celu, F.leaky_relu, F.prelu, F.softplus),
    *(F.hardswish, F.hardsigmoid, F.softmax, F.layer_norm, F.group_norm, F.instance_norm),
    F.multi_head_attention_forward,
    *(F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm),
    *(torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_, torch.softmax),
    *(Tensor.sigmoid, Tensor.sigmoid_, Tensor.tanh, Tensor.tanh_, Tensor.softmax),
    *(torch.pow, Tensor.pow, Tensor.pow_, Tensor.__pow__, torch.square, Tensor.square),
    *(torch.sqrt, Tensor.sqrt, torch.exp, Tensor.exp, torch.logsumexp, Tensor.logsumexp),
    *(F.normalize, F.local_response_norm, F.lp_pool2d),
}
