"""The way back through linear layers: oneDNN's product, and all signals at once where it is wide.

A fully connected layer on a flattened feature map (VGG, AlexNet) has so many weights that a CPU
takes longer to read them than to multiply by them. The signals of all targets and rules are brought
to its output, go through it in one product, and go on from its input one by one. The forward pass
is the model's own, bit by bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from transforms.convolution import product
from transforms.excitation import is_fork

_WIDE = 1 << 22
"""So many weights, 16 MB, do not stay in a processor's cache from one pass to the next."""


@dataclass(frozen=True)
class WideLayer:
    """Where it lies in the graph, and its weights `[N, M]`."""

    weight: Tensor
    input: GradientEdge
    output: GradientEdge

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.weight.numel()

    def is_on_every_way(self, logits: Tensor, layers: Sequence[Tensor]) -> bool:
        """Whether gradients come from the logits to the layers through it alone."""
        ends = {get_gradient_edge(layer).node for layer in layers}
        root = get_gradient_edge(logits).node
        seen, stack = {root}, [root]
        while stack:
            node = stack.pop()
            if node in ends:
                return False
            if node is not self.output.node:
                following = [n for n in _following(node) if n not in seen]
                seen.update(following)
                stack += following
        return self.output.node in seen

    def below(self, signals: Sequence[Tensor]) -> Sequence[Tensor]:
        """The signals `[B, N]` at its output as signals `[B, M]` at its input."""
        return product(torch.stack(list(signals)), self.weight.T).unbind() if signals else []


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`torch.nn.functional.linear` with its way back; None where PyTorch's own is to be taken."""
    if weight.requires_grad or not (input.requires_grad and input.is_cpu):
        return None
    return _linear(input, weight, bias)


def wide_layer(output: Tensor, input: Tensor, weight: Tensor, *_: object) -> WideLayer | None:
    """A call of a linear layer, made by `linear`, if it is wide."""
    if input.dim() != 2 or weight.numel() < _WIDE:
        return None
    return WideLayer(weight.detach(), get_gradient_edge(input), get_gradient_edge(output))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, None, None]:
        (weight,) = ctx.saved_tensors
        return None if g is None else product(g.contiguous(), weight.T), None, None


_linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _Linear.apply


def _following(node: Node) -> list[Node]:
    """Where a gradient goes from a node."""
    edges = node.next_functions[:1] if is_fork(node) else node.next_functions
    return [before for before, _ in edges if before is not None]
