"""A fully connected layer on a flattened feature map, which the signals of all passes meet at once.

Such a layer (VGG, AlexNet) has so many weights that a CPU takes longer to read them than to
multiply by them. So the signals of all targets and rules are brought to its output, go through it
in one product of matrices, and go on from its input one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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


def read_linear(output: Tensor, input: Tensor, weight: Tensor, *_: object) -> WideLayer | None:
    """A call of a linear layer, if it is wide, on a CPU, and has no gradient for its weights."""
    if not (input.is_cpu and input.dim() == 2 and weight.numel() >= _WIDE):
        return None
    if weight.requires_grad or not input.requires_grad:
        return None
    return WideLayer(weight.detach(), get_gradient_edge(input), get_gradient_edge(output))


def _following(node: Node) -> list[Node]:
    """Where a gradient goes from a node."""
    edges = node.next_functions[:1] if is_fork(node) else node.next_functions
    return [before for before, _ in edges if before is not None]
