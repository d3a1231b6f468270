"""Is a model a function of the image? Checked before any work, in a few forward passes.

A map explains how a score follows from the image. That needs a model that takes photos, gives
finite logits, and gives an image the same logits every time and in every batch. Where it does not,
the message names the module where that begins.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.errors import SettingsError
from pipeline.model.factories import in_one_line
from pipeline.notes import Notes
from transforms.backward import RuleSwitch
from transforms.model_state import full_float32, gradients_of_parameters, uncompiled
from transforms.pixels import Size
from transforms.rules import GRADIENT

TOLERANCE = 1e-4
"""The most that logits may differ, as a share of the largest: far above the rounding of float32,
far below what dropout or the statistics of a batch do."""

SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
"""Sizes that are tried where a model fails at the one that was asked for."""

_SHOWN = 3
_REPEATS = 2
_REPEATS_AT_RANDOM = 24
"""How often an image is computed again, and how often where random numbers are drawn."""


def noise(size: Size, seed: int = 0) -> Tensor:
    """An image `[1, 3, H, W]` of random pixels, about as bright as a normalised photo."""
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def check_takes(model: nn.Module, name: str, image: Tensor) -> Tensor:
    """The logits of an image of the size that the model will get.

    Raises:
        SettingsError: it fails; the message says at which module, and which sizes it takes, if any.
    """
    found = _tried(model, image)
    if isinstance(found, Tensor):
        if problem := _why_without_gradient(model, image):
            raise SettingsError(f"{name} {problem}")
        return found
    works = [s for s in SIZES if logits_if_taken(model, noise((s, s))) is not None]
    shown = ", ".join(map(str, works[:_SHOWN])) + (", …" if len(works) > _SHOWN else "")
    hint = f"; it takes images of {shown} px (--input-size)" if works else ""
    if not works and "; give " not in found:
        hint = "; give a model that takes a batch of images [B, 3, H, W] and nothing else"
    raise SettingsError(f"{name} {found}{hint}")


def logits_if_taken(model: nn.Module, image: Tensor) -> Tensor | None:
    """The logits of an image; None where the model fails on it."""
    found = _tried(model, image)
    return found if isinstance(found, Tensor) else None


def best_memory_format(
    model: nn.Module, seen: Sequence[tuple[Tensor, Tensor]]
) -> torch.memory_format:
    """Channels-last, which is faster, where the model gives the same logits in it.

    `seen` are images with their logits. The model is left in the format.
    """
    try:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if all(
            _off(_logits(model, image.contiguous(memory_format=torch.channels_last)), logits)
            <= TOLERANCE
            for image, logits in seen
        ):
            return torch.channels_last
    # A view of what a convolution gives, and whatever else a model does that needs another layout.
    except Exception:
        pass
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return torch.contiguous_format


def check_function(
    model: nn.Module,
    name: str,
    images: Tensor,
    shown: str,
    notes: Notes,
    *,
    in_batch: bool = True,
) -> None:
    """Check the logits of `images` `[2, 3, H, W]`, and note what they are.

    `shown` says what the first image is; `in_batch` whether the model will get several at once.

    Raises:
        SettingsError: they are not finite, not the same each time, or depend on the batch.
    """
    first = images[:1]
    alone, other = _logits(model, first), _logits(model, images[1:])
    if not bool(alone.isfinite().all() and other.isfinite().all()):
        spoilt = first if not bool(alone.isfinite().all()) else images[1:]
        call = next((c for c in _recorded(model, spoilt) if _is_spoilt(c.output)), None)
        begins = call is not None and not any(map(_is_spoilt, call.inputs))
        raise SettingsError(
            f"the logits of {name} are not finite on {shown}: they are "
            f"{_not_finite(torch.cat([alone, other]))}{_where(call, begins)}; give finite weights, "
            "and input of the range that they were trained on (--mean, --std)"
        )
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    _check_again(model, name, first, alone, notes)
    if in_batch:
        _check_batch(model, name, images, torch.cat([alone, other]))
    changed = [k for k, b in model.named_buffers() if k in buffers and not _same(b, buffers[k])]
    if changed:
        what = f"of {name} changes from image to image, so its maps may depend on those before"
        notes.add("buffer", what, *changed, count=len(changed))
    if torch.equal(alone, other) and not torch.equal(first, images[1:]):
        notes.say(f"the logits of {name} are the same on two photos: they may not depend on them")
    _note_outputs(model, first, torch.cat([alone, other]), name, notes)


def _check_again(model: nn.Module, name: str, image: Tensor, logits: Tensor, notes: Notes) -> None:
    before = _generators()
    off = _off(_logits(model, image), logits)
    is_random = _generators() != before
    for _ in range(_REPEATS_AT_RANDOM if is_random else _REPEATS - 1):
        if off > TOLERANCE:
            break
        off = max(off, _off(_logits(model, image), logits))
    if off > TOLERANCE:
        first = _recorded(model, image)
        others = (_recorded(model, image) for _ in range(_REPEATS_AT_RANDOM))
        parts = next(filter(None, (_first_difference(first, other) for other in others)), "")
        raise SettingsError(
            f"{name} is no function of the image: the same image gives other logits a second time "
            f"(by {off:.2g} of the largest){parts}. In eval mode nothing may draw random numbers "
            "or keep state; dropout, for one, needs F.dropout(x, training=self.training)"
        )
    if is_random:
        notes.say(
            f"{name} draws random numbers in eval mode; in {_REPEATS_AT_RANDOM} passes of one "
            f"image its logits differed by {off:.1g} of the largest at most"
        )


def _check_batch(model: nn.Module, name: str, images: Tensor, logits: Tensor) -> None:
    """Check each image in both places of a batch."""
    try:
        batch, turned = _logits(model, images), _logits(model, images.flip(0))
    except Exception as error:
        raise SettingsError(
            f"{name} takes an image alone, and fails on two at once: {in_one_line(error)}; give "
            "--batch-size 1"
        ) from error
    for found, order in ((batch, images), (turned, images.flip(0))):
        expected = logits if order is images else logits.flip(0)
        if (off := _off(found, expected)) > TOLERANCE:
            place = 0 if _off(found[:1], expected[:1]) > TOLERANCE else 1
            parts = ""
            if not place:
                parts = _first_difference(_recorded(model, order[:1]), _recorded(model, order))
            raise SettingsError(
                f"{name} is no function of the image: an image gives other logits alone than in a "
                f"batch (by {off:.2g} of the largest){parts}. In eval mode neither the others nor "
                "its place there may count; batch norm, for one, needs running statistics"
            )


def _generators() -> tuple[object, ...]:
    """The states of the generators of random numbers, to be compared."""
    numpy = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().tolist(), str(numpy), random.getstate()


def _same(buffer: Tensor, before: Tensor) -> bool:
    return buffer.shape == before.shape and bool(((buffer == before) | (buffer != buffer)).all())


def _note_outputs(model: nn.Module, image: Tensor, logits: Tensor, name: str, notes: Notes) -> None:
    scores = logits.sum((2, 3)) if logits.dim() == 4 else logits
    is_single = scores.shape[1] == 1
    if is_single:
        notes.say(
            f"{name} has a single output: its most and its least likely class are the same one, "
            "class sensitivity is undefined, and the probability is the sigmoid of the output"
        )
    is_share = bool((scores >= 0).all()) and _is_one(scores.sum(1))
    what = ""
    if not is_single and (is_share or _is_one(scores.exp().sum(1))):
        what = "look like probabilities" if is_share else "look like log-probabilities"
    elif _ends_in_sigmoid(model, image):
        what = "are sigmoids"
    if what:
        notes.say(
            f"the outputs of {name} {what}, so the maps explain these and not the logits that the "
            "methods are defined for; a model without its last softmax or sigmoid gives the logits"
        )


def _ends_in_sigmoid(model: nn.Module, image: Tensor) -> bool:
    with torch.enable_grad(), full_float32(), uncompiled():
        node = model(image.clone().requires_grad_().clone()).grad_fn
    while type(node).__name__.startswith(("View", "Reshape", "Squeeze", "Unsqueeze", "Alias")):
        node = node.next_functions[0][0]
    return type(node).__name__.startswith("SigmoidBackward")


def _why_without_gradient(model: nn.Module, image: Tensor) -> str:
    """Why the logits cannot be differentiated, in words that follow the name; empty: they can."""
    try:
        with torch.enable_grad(), full_float32(), uncompiled():
            read = image.clone().requires_grad_()
            with RuleSwitch([GRADIENT]):
                logits = model(read.clone())
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), read, allow_unused=True)
                return ""
    except Exception as error:
        if "checkpoint" not in str(error):
            return f"cannot be differentiated: {in_one_line(error)}; give a model that can be"
        return (
            "computes parts of its graph again on the way back (torch.utils.checkpoint), which "
            "no map can be made of; leave checkpointing out, as by use_checkpoint=False or "
            "memory_efficient=False"
        )
    with gradients_of_parameters(model, required=True), torch.enable_grad():
        if model(image.clone()).requires_grad:
            return ""  # from a layer on, which is all that a tap there needs
    return (
        "gives logits without a gradient; give a model whose logits no detach(), .data, argmax, "
        "numpy or torch.no_grad has cut off from its layers"
    )


def _is_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), full_float32(), uncompiled():
        # A copy: a model may normalise in place.
        logits: Tensor = model(images.clone(memory_format=torch.preserve_format))
    return logits


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    largest = expected.abs().max()
    return float((found - expected).abs().max() / largest) if largest > 0 else float(found.any())


def _not_finite(logits: Tensor) -> str:
    return "nan" if bool(logits.isnan().any()) else "infinite"


@dataclass
class _Running:
    """The modules that run now, from the outermost to the innermost, and what they got."""

    names: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    inputs: list[tuple[Any, ...]] = field(default_factory=list)


def _tried(model: nn.Module, image: Tensor) -> Tensor | str:
    """The logits of an image, or why the model fails on it, in words that follow its name."""
    running = _Running()

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            running.names.append(name)
            running.modules.append(module)
            running.inputs.append(args)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        del running.names[-1], running.modules[-1], running.inputs[-1]

    handles = [m.register_forward_pre_hook(enter(n)) for n, m in model.named_modules()]
    handles += [m.register_forward_hook(leave) for m in model.modules()]
    try:
        with _removed(handles):
            logits = _logits(model, image)
    except SettingsError as error:
        return f"cannot be explained: {error}"
    except Exception as error:
        return _in_words(error, running, image)
    if not isinstance(logits, Tensor):
        return (
            f"returns a {type(logits).__name__} from a __call__ of its own; give a model whose "
            "forward returns the logits"
        )
    if logits.dim() not in (2, 4) or len(logits) != len(image) or not logits.numel():
        return f"must give logits [B, N] or [B, N, H, W], and gives {list(logits.shape)} for B = 1"
    if not logits.is_floating_point() or logits.layout != torch.strided:
        kind = str(logits.dtype if logits.layout == torch.strided else logits.layout)
        return (
            f"must give logits of real numbers, and gives {kind.removeprefix('torch.')}; give a "
            "model that returns them before they become classes"
        )
    return logits


def _in_words(error: Exception, running: _Running, image: Tensor) -> str:
    size = " × ".join(map(str, image.shape[1:]))
    if not running.names:
        return f"fails on an image of {size}: {in_one_line(error)}"
    name, module, inputs = running.names[-1], running.modules[-1], running.inputs[-1]
    wanted = getattr(module, "in_channels", None)
    first = inputs[0] if inputs else None
    is_image = isinstance(first, Tensor) and first.shape == image.shape
    if isinstance(wanted, int) and is_image and wanted != image.shape[1]:
        return (
            f"takes images of {wanted} channel{'s' if wanted > 1 else ''} (module {name!r}), and "
            f"photos have {image.shape[1]}; give a model for {image.shape[1]} channels, such as "
            "one that turns them into its own before its first module"
        )
    where = f" at module {name!r} ({type(module).__name__})" if name else ""
    text = in_one_line(error)
    is_cast = isinstance(first, Tensor) and first.is_floating_point() and first.dtype != image.dtype
    hint = ""
    if is_cast:
        hint = f"; give a model that casts no tensor to {_kind(first)}: all is {_kind(image)} here"
    elif re.search(r"requires?[_ ]grad", text):
        hint = (
            "; give a model whose forward asks for no gradient (register_hook, retain_grad, "
            "autograd.grad): it is called without, and gradients are taken here"
        )
    return f"fails on an image of {size}{where}: {text}{hint}"


def _kind(tensor: Tensor | None) -> str:
    return "" if tensor is None else str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Call:
    """One call of a module: its tensors, detached, as they were."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor


def _recorded(model: nn.Module, images: Tensor) -> list[_Call]:
    """The calls of all modules, in the order in which they end. Memory: all activations."""
    calls: list[_Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                inputs = tuple(a.clone() for a in args if isinstance(a, Tensor))
                calls.append(_Call(name, module, inputs, output.clone()))

        return hook

    with _removed([m.register_forward_hook(note(n)) for n, m in model.named_modules() if n]):
        _logits(model, images)
    return calls


def _is_spoilt(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def _first_difference(before: Sequence[_Call], now: Sequence[_Call]) -> str:
    """Where two passes of the same first image part, in words."""
    for a, b in zip(before, now, strict=False):
        if a.name != b.name or _differ(a.output, b.output):
            begins = a.name == b.name and not any(map(_differ, a.inputs, b.inputs))
            return _where(b, begins)
    return ""


def _differ(alone: Tensor, batch: Tensor) -> bool:
    if alone.dim() != batch.dim():
        return True
    first = batch[tuple(slice(n) for n in alone.shape)]
    return not _off(first.float(), alone.float()) <= TOLERANCE / 10


def _where(call: _Call | None, begins: bool) -> str:
    """Where a fault is first seen, and whether it begins there."""
    if call is None:
        return ""
    kind = f"{call.name!r} ({type(call.module).__name__})"
    return f"; it begins {'at' if begins else 'before'} module {kind}"


@contextmanager
def _removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
