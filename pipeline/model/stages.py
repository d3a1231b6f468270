"""The stages of a network, found from the network: where its maps get smaller.

A stage is the last module of a resolution on the way to the logits, and for a network of one
resolution, such as a ViT, each of its blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.func import functional_call

from transforms.layout import Layout, Tokens
from transforms.layout_probe import Output, Unknown, follow_outputs
from transforms.model_state import frozen
from transforms.pixels import Size
from transforms.signal_paths import ways_to_logits
from transforms.taps import Taps

SHRINKS = 0.7
"""A map whose side is at most this share of a stage's first map begins the next stage.

Convolutions without padding cost a few cells within a stage.
"""


@dataclass(frozen=True)
class MapLayer:
    """A layer that gives a map.

    Attributes:
        output: what it gives.
        layout: how that is laid out.
        size: rows and columns of its map.
        channels: how many.
    """

    output: Output
    layout: Layout
    size: Size
    channels: int

    @property
    def name(self) -> str:
        """The module's name."""
        return self.output.name

    @property
    def side(self) -> float:
        """The side of a square with as many cells."""
        return sqrt(self.size[0] * self.size[1])


def map_layers(outputs: Mapping[str, Output], input_size: Size) -> dict[str, MapLayer]:
    """The layers that a forward pass calls once and that give a map, in the order of their end."""
    return {
        name: MapLayer(output, output.layout, *_size(output.shape, output.layout, input_size))
        for name, output in outputs.items()
        if output.calls == 1 and not isinstance(output.layout, Unknown)
    }


def find_stages(model: nn.Module, input_size: int) -> list[str]:
    """The stages, early to late; none where no layer on the way to the logits gives a map.

    Raises:
        RuntimeError: the model fails on an image of this size.
    """
    size = input_size, input_size
    with frozen(model):
        outputs = follow_outputs(model, size)
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        image = torch.rand(
            (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=weight.dtype
        ).to(weight.device)
        on_the_way = {way.layer for way in ways_to_logits(model, image) if not way.is_end}
        maps = {
            name: layer
            for name, layer in map_layers(outputs, size).items()
            if name in on_the_way and layer.side > 1 and not layer.output.is_input
        }
        with_weights = {
            name
            for name, module in model.named_modules()
            if next(module.parameters(), None) is not None
        }
        tree = _children(list(outputs))
        units = list(_units("", tree, maps, size[0]))
        stages = _last_of_each_resolution(units, maps, with_weights)
        if len(stages) == 1:
            stages = _blocks(tree, maps, outputs) or stages
        return _with_signal(model, stages, maps, image)


def last_convolutions(
    model: nn.Module, stages: Sequence[str], outputs: Mapping[str, Output]
) -> list[str]:
    """The last convolution that ended before each stage, or within it; each once."""
    modules = dict(model.named_modules())
    order = list(outputs)
    convolutions = [
        name
        for name, output in outputs.items()
        if isinstance(modules[name], nn.Conv2d)
        and output.calls == 1
        and not isinstance(output.layout, Unknown)
        and output.shape[2:].count(1) < 2
    ]
    found = []
    for stage in stages:
        end = order.index(stage) if stage in outputs else -1
        before = [name for name in convolutions if order.index(name) <= end]
        found += before[-1:]
    return list(dict.fromkeys(found))


def _size(shape: Sequence[int], layout: Layout, input_size: Size) -> tuple[Size, int]:
    _, channels, height, width = layout.to_map(torch.empty(shape, device="meta"), input_size).shape
    return (height, width), channels


def _children(called: Sequence[str]) -> dict[str, list[str]]:
    """Each called module's nearest called modules inside it, in the order of their end."""
    known = set(called)
    children: dict[str, list[str]] = {}
    for name in called:
        parent = name.rpartition(".")[0]
        while parent and parent not in known:
            parent = parent.rpartition(".")[0]
        children.setdefault(parent, []).append(name)
    return children


def _units(
    container: str, tree: Mapping[str, list[str]], maps: Mapping[str, MapLayer], entering: float
) -> Iterator[str]:
    """The modules among which stages are looked for, in the order of their end.

    `entering` is the side of the map that enters the container.
    """
    for name in tree.get(container, ()):
        # A module that gives no map, such as a network in a wrapper, may have those that do inside.
        if name not in maps or _holds_stages(name, tree, maps, entering):
            yield from _units(name, tree, maps, entering)
        else:
            yield name
        if name in maps:
            entering = min(entering, maps[name].side)


def _holds_stages(
    container: str, tree: Mapping[str, list[str]], maps: Mapping[str, MapLayer], entering: float
) -> bool:
    """Whether the modules in a container go over two resolutions or more."""
    resolutions = 0
    smallest = entering
    for name in tree.get(container, ()):
        if _holds_stages(name, tree, maps, smallest):
            return True
        if name in maps and maps[name].side <= SHRINKS * smallest:
            resolutions += 1
            smallest = maps[name].side
    return resolutions > 1


def _last_of_each_resolution(
    units: Sequence[str], maps: Mapping[str, MapLayer], with_weights: set[str]
) -> list[str]:
    groups: list[list[str]] = []
    for name in units:
        side = maps[name].side
        if not groups or side <= SHRINKS * maps[groups[-1][0]].side:
            groups.append([name])
        elif side <= maps[groups[-1][0]].side:
            groups[-1].append(name)
    # A pooling alone is the way to the next stage.
    return [group[-1] for group in groups if with_weights.intersection(group)]


def _blocks(
    tree: Mapping[str, list[str]], maps: Mapping[str, MapLayer], outputs: Mapping[str, Output]
) -> list[str]:
    """The largest group of sibling modules of one class that have modules inside."""
    groups: dict[tuple[str, str], list[str]] = {}
    for parent, names in tree.items():
        for name in names:
            if name in maps and name in tree:
                groups.setdefault((parent, outputs[name].module), []).append(name)
    blocks = max(groups.values(), key=len, default=[])
    return blocks if len(blocks) > 1 else []


def _with_signal(
    model: nn.Module, stages: Sequence[str], maps: Mapping[str, MapLayer], image: Tensor
) -> list[str]:
    """The stages without those that reach the logits by tokens that are no part of the map."""
    tokens = [name for name in stages if isinstance(maps[name].layout, Tokens)]
    if not tokens:
        return list(stages)
    generator = torch.Generator().manual_seed(0)
    # Weights that begin at zero, as those of a new head, would hide the signal.
    parameters = {
        name: torch.randn(p.shape, generator=generator).to(p)
        for name, p in model.named_parameters()
        if not p.any()
    }
    layouts = {name: maps[name].layout for name in tokens}
    with Taps(model, tokens, layouts=layouts) as taps, torch.enable_grad():
        logits = functional_call(model, parameters, (taps.start(image),))
        signal = torch.randn(logits.shape, generator=generator).to(logits)
        gradients = torch.autograd.grad(logits, taps.activations(), signal)
        silent = {
            name
            for name, g in zip(tokens, gradients, strict=True)
            if not taps.to_map(name, g).any()
        }
    return [name for name in stages if name not in silent]
