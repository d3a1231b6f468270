"""The way back through linear layers: oneDNN's product, and all signals at once where it is wide.

A fully connected layer on a flattened feature map (VGG, AlexNet) has so many weights that a CPU
takes longer to read them than to multiply by them. The signals of all targets and rules are brought
to its output, go through it in one product, and go on from its input one by one. The forward pass
is the model's own, bit by bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from transforms.convolution import product, takes_own_way, with_way_back

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
                following = [n for n, _ in node.next_functions if n and n not in seen]
                seen.update(following)
                stack += following
        return self.output.node in seen

    def below(self, signals: Sequence[Tensor]) -> Sequence[Tensor]:
        """The signals `[B, N]` at its output as signals `[B, M]` at its input."""
        return product(torch.stack(list(signals)), self.weight.T).unbind() if signals else []


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`torch.nn.functional.linear` with its way back; None where PyTorch's own is to be taken."""
    if not _has_way_back(input, weight):
        return None
    run, matrix = partial(F.linear, weight=weight, bias=bias), weight.detach().T
    return with_way_back(input, weight, run, lambda g, shape: product(g, matrix))


def wide_layer(
    output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> WideLayer | None:
    """A call of `linear` and its output, if it is wide."""
    if input.dim() != 2 or weight.numel() < _WIDE or not _has_way_back(input, weight):
        return None
    return WideLayer(weight.detach(), get_gradient_edge(input), get_gradient_edge(output))


def _has_way_back(input: Tensor, weight: Tensor) -> bool:
    return input.is_cpu and not weight.requires_grad and takes_own_way(input)
