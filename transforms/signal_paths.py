"""What lies between a layer and the logits, by the graph of a forward pass.

Guided backprop and deconvnet differ from the plain gradient at a layer only where a ReLU lies on
the way. A gate, a branch that scales the map as a whole as in squeeze-and-excitation, is no part of
the way: what passes through it is not the map.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from transforms.backward import RuleSwitch, is_relu_node
from transforms.model_state import gradients_of_parameters
from transforms.relu_calls import RELU
from transforms.rules import GRADIENT
from transforms.taps import INPUT

Node = Any  # torch.autograd.graph.Node; autograd's own nodes have no common type


@dataclass(frozen=True)
class Way:
    """How a layer lies on the way to the logits.

    Attributes:
        layer: its name.
        below_relu: whether a ReLU lies between it and the logits.
        is_end: whether its output is the logits.
    """

    layer: str
    below_relu: bool
    is_end: bool


def relus_above(logits: Tensor, tapped: Sequence[Tensor]) -> list[bool]:
    """For each tapped tensor, whether a ReLU is on the way from it to the logits.

    The forward pass was made with a `RuleSwitch`.
    """
    above = _relus_above(logits)
    return [above.get(_node(tensor), False) for tensor in tapped]


def functions_above(logits: Tensor, seen: Mapping[str, int]) -> Counter[str]:
    """How often the signal from the logits meets which function that no rule treats.

    That is an autograd function of the model's author, whose formula is not known, or a
    nonlinearity that a `RuleSwitch` did not see, as it was called within C++ (by TorchScript, or as
    `torch.ops.aten.relu`). `seen` are those that it saw.
    """
    found: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for node in _from_the_logits(_node(logits)):
        if isinstance(node, BackwardCFunction):
            function: type = node._forward_cls  # type: ignore[attr-defined]
            if function.__module__.partition(".")[0] not in ("transforms", "torch"):
                found[function.__name__] += 1
        elif node.name().startswith("torch::jit::"):
            found["TorchScript"] += 1
        elif kind := _NONLINEAR.match(node.name()):
            within[kind[1].lower()] += 1
    for name, count in within.items():
        # A ReLU that the switch saw has a node of its own.
        if (unseen := count - (seen.get(name, 0) if name != RELU else 0)) > 0:
            found[f"{name} within C++"] += unseen
    return found


_NONLINEAR = re.compile("(Relu|Sigmoid|Silu|Gelu|Mish|Hardswish)Backward")


def ways_to_logits(model: nn.Module, images: Tensor) -> list[Way]:
    """The layers with 3 or 4 dimensions, called once, that lie on the way to the logits.

    They are in the order in which they ended. The model is in eval mode.
    """
    nodes: dict[str, Node] = {}
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim() in (3, 4) and output.requires_grad:
                nodes[name] = _node(output)

        return keep

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad(), RuleSwitch([GRADIENT]):
            image = images.detach().clone().requires_grad_()
            # A copy: a model may normalise in place, which a leaf does not allow.
            logits = model(image.clone())
            if not logits.requires_grad:  # the model cuts itself off from the image
                nodes.clear()
                calls.clear()
                with gradients_of_parameters(model, required=True):
                    logits = model(image.clone())
            if not logits.requires_grad:
                return []
            nodes = {INPUT: _node(image), **nodes}
            above = _relus_above(logits)
    finally:
        for handle in handles:
            handle.remove()
    end = _node(logits)
    return [
        Way(name, above[node], node is end)
        for name, node in nodes.items()
        if node in above and calls.get(name, 1) == 1
    ]


def _node(tensor: Tensor) -> Node:
    return torch.autograd.graph.get_gradient_edge(tensor).node


def _relus_above(logits: Tensor) -> dict[Node, bool]:
    """For every node that the signal from the logits comes to, whether a ReLU came before it."""
    root = _node(logits)
    above = {root: False}
    for node in _from_the_logits(root):
        for following in _following(node):
            above[following] = above.get(following, False) or above[node] or is_relu_node(node)
    return above


def _from_the_logits(root: Node) -> list[Node]:
    """Every node after all nodes that the signal comes from."""
    done: list[Node] = []
    seen = {root}
    stack = [(root, iter(_following(root)))]
    while stack:
        node, following = stack[-1]
        upcoming = next((n for n in following if n not in seen), None)
        if upcoming is None:
            done.append(node)
            stack.pop()
        else:
            seen.add(upcoming)
            stack.append((upcoming, iter(_following(upcoming))))
    return done[::-1]


def _following(node: Node) -> list[Node]:
    """Where the signal goes from a node, but for gates."""
    edges = [(before, i) for before, i in node.next_functions if before is not None]
    if type(node).__name__.startswith(("MulBackward", "DivBackward")) and len(edges) == 2:
        # Of a product of two signals, the factor with fewer values scales the other.
        shapes = [before._input_metadata[i].shape for before, i in edges]
        values = list(map(math.prod, shapes))
        ways = [edge for edge, count in zip(edges, values, strict=True) if count == max(values)]
        if len(ways) == 2 and math.prod(shapes[0][2:]) == 1:
            # If the map has one cell, both have as many values; then the bounded factor scales.
            ways = [edge for edge in edges if not _is_bounded(edge[0])] or ways
        edges = ways
    return [before for before, _ in edges]


_BOUNDED = ("Sigmoid", "Hardsigmoid", "Tanh", "Softmax")
_SAME_VALUES = ("View", "Unsqueeze", "Squeeze", "Expand", "Reshape", "Alias", "Unsafe", "Clone")


def _is_bounded(node: Node | None) -> bool:
    """Whether a factor is the output of a function with bounds, such as a sigmoid."""
    while node is not None and type(node).__name__.startswith(_SAME_VALUES):
        node = node.next_functions[0][0]
    return type(node).__name__.startswith(_BOUNDED)
