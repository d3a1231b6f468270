"""Layers by name: presets for the stages of a model, and the layers that give a map."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from pipeline.errors import SettingsError
from pipeline.model.factories import in_one_line
from pipeline.model.function_check import check_takes, noise
from pipeline.model.stages import MapLayer, find_stages, last_convolutions, map_layers
from pipeline.preprocess import STANDARD
from transforms.layout_probe import Unknown, follow_outputs
from transforms.taps import INPUT, LayerError, check_layers

SEVERAL_CELLS = 64
"""Pixels of an image for which the last stage of a usual network has more than one cell."""


def resolve_layers(
    model: nn.Module, name: str, layers: Sequence[str], input_size: int = STANDARD.input_size
) -> tuple[str, ...]:
    """Layer names with the presets spelled out, for a square input of so many pixels.

    `stages` are the last layers of each resolution, early to late; `last` is the last of them;
    `convs` are the last convolution of each.

    Raises:
        SettingsError: a layer or preset that the model does not have; the message names the
            nearest.
    """
    resolved: list[str] = []
    network = _Network(model, name, input_size)
    for layer in layers:
        preset = PRESETS.get(layer)
        resolved += preset(network) if preset else [layer]
    if INPUT in resolved and INPUT in dict(model.named_modules()):
        raise SettingsError(
            f"{name} has a module {INPUT!r}, which is also what the image itself is called; give "
            "the module another name, or leave it out of --layers"
        )
    if len(set(resolved)) < len(resolved):
        raise SettingsError(f"layers given twice: {', '.join(resolved)}")
    try:
        check_layers(model, resolved)
    except LayerError as error:
        raise SettingsError(f"{error}; presets: {', '.join(PRESETS)}") from error
    return tuple(resolved)


def stages_of(model: nn.Module, name: str, input_size: int = STANDARD.input_size) -> list[str]:
    """The layers that stand for the stages of a model, early to late.

    They are those that the model itself names, in an attribute `stages`, or else those that
    `pipeline.model.stages` finds.

    Raises:
        SettingsError: no layer of the model gives a map, or the model fails.
    """
    for pattern, stages in FAMILIES.items():
        if re.fullmatch(pattern, name):
            return list(stages)
    own = getattr(model, "stages", None)
    if isinstance(own, list | tuple) and own and all(isinstance(stage, str) for stage in own):
        return list(own)
    found = _found_stages(model, input_size)
    if not found:
        raise SettingsError(
            f"no layer preset for {name!r}: no layer on the way to the logits gives a map and is "
            f"called once; name layers (backlight layers {name} lists them), or give the model an "
            "attribute `stages` with their names"
        )
    return found


def _found_stages(model: nn.Module, input_size: int) -> list[str]:
    if input_size < SEVERAL_CELLS:
        try:
            return find_stages(model, SEVERAL_CELLS)
        except Exception:
            pass  # a network for images of one size
    try:
        return find_stages(model, input_size)
    except Exception as error:
        raise _failure(model, input_size, error) from error


def _failure(model: nn.Module, input_size: int, error: Exception) -> SettingsError:
    """Why a model cannot be followed: most often it fails on such images."""
    try:
        check_takes(model, "the model", noise((input_size, input_size)))
    except SettingsError as refused:
        return refused
    return SettingsError(f"the layers of the model cannot be followed: {in_one_line(error)}")


@dataclass(frozen=True)
class Layers:
    """The layers of a model.

    Attributes:
        maps: those that give a map and that a forward pass calls once, in the model's order.
        others: the names of those that give a tensor of 3 or 4 dimensions and no map, by reason.
    """

    maps: Mapping[str, MapLayer]
    others: Mapping[str, Sequence[str]]


def layers_with_map(model: nn.Module, input_size: int) -> Layers:
    """The layers of a model, for a square input of so many pixels.

    Raises:
        SettingsError: the model fails.
    """
    size = input_size, input_size
    try:
        outputs = follow_outputs(model, size)
    except Exception as error:
        raise _failure(model, input_size, error) from error
    maps = map_layers(outputs, size)
    others: dict[str, list[str]] = {}
    for name, output in outputs.items():
        if name not in maps and len(output.shape) in (3, 4):
            repeated = "called more than once in a forward pass"
            layout = output.layout
            reason = layout.reason if isinstance(layout, Unknown) else repeated
            others.setdefault(reason, []).append(name)
    in_order = {name: maps[name] for name, _ in model.named_modules() if name in maps}
    return Layers(in_order, others)


FAMILIES: dict[str, Sequence[str]] = {
    r"squeezenet1_0": [f"features.{i}" for i in (1, 3, 5, 10, 12)],
    r"squeezenet1_1": [f"features.{i}" for i in (1, 4, 7, 10, 12)],
}
"""The stages of families of models in which the rule would not find five."""


@dataclass(frozen=True)
class _Network:
    """A model and what the presets ask of it.

    `stages` are found once, and only if a preset asks for them.
    """

    model: nn.Module
    name: str
    input_size: int

    @cached_property
    def stages(self) -> list[str]:
        return stages_of(self.model, self.name, self.input_size)

    @cached_property
    def convolutions(self) -> list[str]:
        size = self.input_size, self.input_size
        return last_convolutions(self.model, self.stages, follow_outputs(self.model, size))


PRESETS: dict[str, Callable[[_Network], Sequence[str]]] = {
    "stages": lambda network: network.stages,
    "last": lambda network: network.stages[-1:],
    "convs": lambda network: network.convolutions,
}
"""The names that stand for several layers: by the network, the layers."""
