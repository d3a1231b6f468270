"""Layers by name: presets for the stages of a model, and the layers that give a feature map."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import SettingsError
from transforms.taps import LayerError, check_layers


def resolve_layers(model: nn.Module, name: str, layers: Sequence[str]) -> tuple[str, ...]:
    """Layer names with the presets spelled out.

    `stages` are five, early to late; `last` is the last of them; `convs` are the last
    convolution of each.

    Raises:
        SettingsError: a layer or preset that the model does not have; the message lists its own.
    """
    resolved: list[str] = []
    for layer in layers:
        preset = PRESETS.get(layer)
        resolved += preset(model, stages_of(model, name)) if preset else [layer]
    if len(set(resolved)) < len(resolved):
        raise SettingsError(f"layers given twice: {', '.join(resolved)}")
    try:
        check_layers(model, resolved)
    except LayerError as error:
        raise SettingsError(f"{error}; presets: {', '.join(PRESETS)}") from error
    return tuple(resolved)


def stages_of(model: nn.Module, name: str) -> list[str]:
    """The layers that stand for the stages of a model, early to late.

    Raises:
        SettingsError: its family is unknown, and it names none itself.
    """
    for pattern, stages in FAMILIES.items():
        if re.fullmatch(pattern, name):
            return stages(model)
    if isinstance(own := getattr(model, "stages", None), list | tuple):
        return [str(stage) for stage in own]
    raise SettingsError(
        f"no layer preset for {name!r}: name layers (backlight layers {name} lists them), or give "
        "the model an attribute `stages` with their names"
    )


def layer_shapes(model: nn.Module, input_size: int) -> dict[str, tuple[str, tuple[int, int, int]]]:
    """The layers that give a feature map: name → (module's class, (channels, height, width))."""
    shapes: dict[str, tuple[str, tuple[int, int, int]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == 4:
                _, channels, height, width = output.shape
                shapes[name] = (type(module).__name__, (channels, height, width))

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, input_size, input_size))
    finally:
        for handle in handles:
            handle.remove()
    return {name: shapes[name] for name, _ in model.named_modules() if name in shapes}


def _vgg_stages(model: nn.Module) -> list[str]:
    # The last ReLU of each block: the one right before the pooling.
    children = list(model.get_submodule("features").named_children())
    pools = [i for i, (_, child) in enumerate(children) if isinstance(child, nn.MaxPool2d)]
    return [f"features.{children[i - 1][0]}" for i in pools]


FAMILIES: dict[str, Callable[[nn.Module], list[str]]] = {
    r"(wide_)?resnet\d+.*|resnext\d+.*": lambda model: [
        "relu",
        *(f"layer{i}" for i in (1, 2, 3, 4)),
    ],
    r"vgg\d+(_bn)?": _vgg_stages,
    r"mobilenet_v2": lambda model: [f"features.{i}" for i in (1, 3, 6, 13, 18)],
    r"squeezenet1_0": lambda model: [f"features.{i}" for i in (1, 3, 5, 10, 12)],
    r"squeezenet1_1": lambda model: [f"features.{i}" for i in (1, 4, 7, 10, 12)],
    r"densenet\d+": lambda model: [
        "features.relu0",
        *(f"features.denseblock{i}" for i in (1, 2, 3)),
        "features.norm5",
    ],
}
"""Five layers, early to late, for each family of models: the outputs of its stages."""


PRESETS: dict[str, Callable[[nn.Module, Sequence[str]], Sequence[str]]] = {
    "stages": lambda model, stages: stages,
    "last": lambda model, stages: stages[-1:],
    "convs": lambda model, stages: _last_convolutions(model, stages),
}
"""The names that stand for several layers: by the model and its stages, the layers."""


def _last_convolutions(model: nn.Module, stages: Sequence[str]) -> list[str]:
    found = []
    last = ""
    waiting = list(stages)
    modules = list(model.named_modules())
    for i, (name, module) in enumerate(modules):
        if isinstance(module, nn.Conv2d):
            last = name
        following = modules[i + 1][0] if i + 1 < len(modules) else ""
        # A stage ends with the last module inside it.
        for stage in [s for s in waiting if name == s or name.startswith(f"{s}.")]:
            if not following.startswith(f"{stage}."):
                waiting.remove(stage)
                found.append(last)
    return found
