"""A model as its author wrote it, made ready to be explained.

Wrappers are taken off, lazy modules get their shapes, numbers are float32, and what the model
returns becomes its logits. The names of its layers stay, and so do its weights.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import SettingsError
from pipeline.model.factories import in_one_line
from pipeline.notes import Notes

_AROUND_A_MODULE: dict[type[nn.Module], str] = {
    nn.DataParallel: "module",
    DistributedDataParallel: "module",
    AveragedModel: "module",
}
"""The wrappers that are taken off, and the name under which each has the module."""


def prepared(model: nn.Module, name: str, input_size: int, notes: Notes) -> nn.Module:
    """The module inside wrappers, on the CPU, with float32 parameters of known shapes.

    `input_size` is that of the image that lazy modules see first. What was done is noted.

    Raises:
        SettingsError: it is a TorchScript module, has no values, or its lazy modules fail.
    """
    model = _unwrapped(model, notes)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise SettingsError(
            f"{name} gives a TorchScript module, whose layers cannot be tapped; give the Python "
            "module that it was made from, and its state dict as --weights"
        )
    if not _on_meta(model):
        model.to("cpu")
    if _is_lazy(model):
        _give_shapes(model, name, input_size)
        notes.say(f"the shapes of lazy modules are those for images of {input_size} px")
    if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        # Copies of what was made in inference mode can have gradients.
        model = copy.deepcopy(model)
    if missing := _on_meta(model):
        raise SettingsError(
            f"{name} gives a model whose parameters have no values (they are on the device meta: "
            f"{missing[0]}); give it values in the factory"
        )
    others = sorted({_type_name(t) for t in _floats(model) if t.dtype != torch.float32})
    if others:
        model.float()
        notes.say(f"the model is {', '.join(others)}; its maps are computed in float32")
    return model


def gives_logits(model: nn.Module) -> None:
    """Let the model return its logits `[B, N]` or `[B, N, H, W]` where it returns more.

    Of a dict or an object the item `logits` is taken, of a tuple its only tensor of logits. What
    lost its batch or its class dimension has both again.

    Raises, when the model is called:
        SettingsError: no logits, or several tensors that might be them.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> Tensor:
        return _with_both_dimensions(_logits_of(output), len(args[0]))

    model.register_forward_hook(hook)


def _unwrapped(model: nn.Module, notes: Notes) -> nn.Module:
    while True:
        around = next((w for w in _AROUND_A_MODULE if isinstance(model, w)), None)
        if around:
            notes.say(f"{around.__name__} is taken off the model")
            model = getattr(model, _AROUND_A_MODULE[around])
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            notes.say("torch.compile is taken off the model")
            model = compiled
        else:
            break
    for module in model.modules():
        # Taps need the calls of Python, and the names of the layers stay.
        module._compiled_call_impl = None
        if isinstance(module, nn.DataParallel):
            module.device_ids = []
    return model


def _on_meta(model: nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, t in named if t.device.type == "meta" and not is_lazy(t)]


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(t) for t in (*model.parameters(), *model.buffers()))


def _give_shapes(model: nn.Module, name: str, input_size: int) -> None:
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, input_size, input_size))
    except Exception as error:
        raise SettingsError(
            f"{name} has lazy modules and fails on an image of 3 × {input_size} × {input_size}: "
            f"{in_one_line(error)}"
        ) from error
    if _is_lazy(model):
        raise SettingsError(
            f"{name} has lazy modules that its forward pass never calls; leave them out, or call "
            "them once in the factory"
        )


def _floats(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _logits_of(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(found := getattr(output, "logits", None), Tensor):
        return found
    values = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(values, tuple | list):
        tensors = [value for value in values if isinstance(value, Tensor)]
        likely = tensors if len(tensors) == 1 else [t for t in tensors if t.dim() == 2]
        if len(likely) == 1:
            return likely[0]
        raise SettingsError(
            f"the model returns a {type(output).__name__} with {len(likely)} tensors that may be "
            "its logits; give a model that returns the logits [B, N] alone, or as `logits`"
        )
    given = "None" if output is None else f"a {type(output).__name__}"
    raise SettingsError(f"the model returns {given}; give a model that returns logits [B, N]")


def _with_both_dimensions(logits: Tensor, batch: int) -> Tensor:
    if logits.dim() < 2 and logits.numel() % batch == 0 and logits.numel():
        return logits.reshape(batch, -1)
    return logits
