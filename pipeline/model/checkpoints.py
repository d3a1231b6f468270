"""Weights files as training scripts write them: read without running their code, and fitted.

A file holds a state dict (names → tensors), or one or several inside other dicts. The one that fits
the model is taken, with a prefix of all its names dropped where it fits without.
"""

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.model.factories import in_one_line
from pipeline.notes import Notes
from transforms.names import unknown_name

State = Mapping[str, Any]
"""Names to tensors; also to a module's extra state, which need not be one."""

Load = Callable[[nn.Module, State], object]
"""Puts a state into a model, or raises."""

_DEEPEST = 3
_MOST_PREFIXES = 4
_AVERAGED = re.compile(r"(^|[._])ema([._]|$)|ema_?model|model_?ema|averag|shadow", re.IGNORECASE)
"""The keys of a moving average of the weights: `ema`, `model_ema`, `state_dict_ema`."""
_COUNTER_OF_AVERAGES = "n_averaged"
"""What `torch.optim.swa_utils.AveragedModel` adds to the state of its module."""
_SAVE = "torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class Found:
    """A state dict of a weights file.

    Attributes:
        key: the keys that lead to it, with dots between them; empty where it is the whole file.
        state: names to tensors.
    """

    key: str
    state: State


def read_states(content: bytes, name: str) -> list[Found]:
    """The state dicts of a weights file of PyTorch or safetensors, from its bytes.

    Raises:
        SettingsError: it is none, holds objects whose reading could run code, or is damaged.
    """
    found = list(_states(_read(content, name), "", _DEEPEST))
    if not found:
        raise SettingsError(f"{name} holds no state dict (names → tensors); save one by {_SAVE}")
    return found


def fit(
    model: nn.Module,
    found: Sequence[Found],
    name: str,
    model_name: str,
    notes: Notes,
    *,
    key: str | None = None,
    load: Load = lambda model, state: model.load_state_dict(state, strict=True),
) -> None:
    """Load the state dict that fits the model into it; what was taken is noted.

    `key` chooses one of several. Without it, a moving average wins over the weights that it is of.

    Raises:
        SettingsError: none fits, several do, or the values are no weights.
    """
    if key is not None:
        found = [f for f in found if f.key == key or f.key.endswith(f".{key}")] or _no_key(
            key, found, name
        )
    fitting: list[tuple[Found, str]] = []
    misfits: list[_Misfit] = []
    for candidate in found:
        prefix, misfit = _fitted(model, candidate.state, load)
        if misfit is None:
            fitting.append((candidate, prefix))
        else:
            misfits.append(misfit)
    if not fitting:
        best = min(misfits, key=lambda misfit: misfit.count)
        raise SettingsError(f"weights {name} do not fit {model_name}: {best.text}")
    taken, prefix = _one_of(fitting, name)
    state = _without_prefix(taken.state, prefix)
    if len(found) > 1:
        load(model, _completed(model, state))
    others = [f.key for f, _ in fitting if f is not taken]
    if taken.key:
        beside = f", and not those under {', '.join(others)} (--weights-key)" if others else ""
        notes.say(f"the weights are those under the key {taken.key!r} of {name}{beside}")
    if prefix:
        notes.say(f"the prefix {prefix!r} of the names in {name} is dropped")
    halves = sorted(
        {
            str(value.dtype).removeprefix("torch.")
            for value in state.values()
            if isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dtype != torch.float32
        }
    )
    if halves:
        notes.say(f"weights in {', '.join(halves)} are taken as float32")


@dataclass(frozen=True)
class _Misfit:
    """Why a state dict does not fit, in words, and how many names are wrong."""

    count: float
    text: str


def _read(content: bytes, name: str) -> object:
    if _is_safetensors(content):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content)
        except (SafetensorError, ValueError, KeyError) as error:
            raise SettingsError(
                f"{name} is a damaged safetensors file: {in_one_line(error)}; write it again, or "
                f"give a state dict: {_SAVE}"
            ) from error
    for looks, what in _OTHER_FILES:
        if looks(content):
            raise SettingsError(f"{name} is {what}; give a state dict: {_SAVE}")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise SettingsError(_why_unreadable(content, name, error)) from error


def _why_unreadable(content: bytes, name: str, error: Exception) -> str:
    types = _types_of_objects(content, error)
    if types:
        what = "a whole model" if any("torch.nn.modules" in t for t in types) else "objects"
        shown = ", ".join(types[:3]) + (", …" if len(types) > 3 else "")
        return (
            f"{name} is not a state dict alone: it holds {what} of the types {shown}, and reading "
            "them could run code. Where the file was made, save the state dict by itself: "
            f"{_SAVE}"
        )
    return (
        f"{name} is not a state dict that PyTorch wrote, or it is damaged; give a file that was "
        f"written by {_SAVE}, or safetensors"
    )


def _types_of_objects(content: bytes, error: Exception) -> list[str]:
    """The types that a pickle names beside tensors and plain containers."""
    try:
        found = list(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
    except Exception:  # an older file, or a damaged one
        found = []
    if not found and isinstance(error, pickle.UnpicklingError):
        found = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    return sorted(set(found), key=lambda t: (t.startswith("torch."), t))


def _is_safetensors(content: bytes) -> bool:
    if len(content) < 10 or content[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", content[:8])
    return bool(0 < header <= 100_000_000)


def _is_torchscript(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return any(name.endswith("constants.pkl") for name in names)


_OTHER_FILES: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda content: not content, "an empty file, and no state dict"),
    (
        _is_torchscript,
        "a TorchScript archive, and no state dict; torch.jit.load reads it",
    ),
    (
        lambda content: content.startswith(b"version https://git-lfs"),
        "a Git LFS pointer, and no state dict; git lfs pull brings the file",
    ),
    (lambda content: content.startswith(b"\x89HDF"), "an HDF5 file, and no state dict"),
    (
        lambda content: content.lstrip()[:1] in (b"<", b"{", b"["),
        "text, and no state dict",
    ),
)
"""Files that are taken for weights, by their first bytes, and what they are."""


def _states(content: object, key: str, deepest: int) -> Iterator[Found]:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return
    if _is_state(content):
        yield Found(key, content)
    elif deepest:
        for name, value in content.items():
            yield from _states(value, f"{key}.{name}" if key else name, deepest - 1)


def _is_state(content: Mapping[str, object]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values()) and all(
        isinstance(value, Tensor) or name.endswith("_extra_state")
        for name, value in content.items()
    )


def _no_key(key: str, found: Sequence[Found], name: str) -> list[Found]:
    raise SettingsError(f"{name}: {unknown_name('weights key', key, [f.key for f in found])}")


def _one_of(fitting: Sequence[tuple[Found, str]], name: str) -> tuple[Found, str]:
    averaged = [entry for entry in fitting if _AVERAGED.search(entry[0].key)]
    if len(fitting) == 1 or (len(averaged) == 1 and len(fitting) == 2):
        return (averaged or fitting)[0]
    keys = ", ".join(found.key for found, _ in fitting)
    raise SettingsError(
        f"{len(fitting)} state dicts of {name} fit the model, under the keys {keys}; choose one by "
        "--weights-key KEY"
    )


def _fitted(model: nn.Module, state: State, load: Load) -> tuple[str, _Misfit | None]:
    """The prefix without which a state fits, or why it fits with none."""
    misfit = None
    prefix = ""
    for _ in range(1 + _MOST_PREFIXES):
        named = _without_prefix(state, prefix)
        found = _misfit(model, named, load)
        if found is None:
            return prefix, None
        misfit = found if misfit is None or found.count < misfit.count else misfit
        common = _common_prefix(named)
        if common is None:
            break
        prefix += common
    return "", misfit


def _misfit(model: nn.Module, state: State, load: Load) -> _Misfit | None:
    completed = _completed(model, state)
    if problem := _no_weights(model, completed):
        return _Misfit(float("inf"), problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(model, completed)
    except Exception as error:
        return _difference(model, completed) or _Misfit(float("inf"), in_one_line(error))
    return None


def _no_weights(model: nn.Module, state: State) -> str:
    """Why values are no weights, whatever their names and shapes; empty: they are."""
    own = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(own.get(key), Tensor):
            continue
        if own[key].is_floating_point() and (
            value.is_quantized or not (value.is_floating_point() and value.layout == torch.strided)
        ):
            is_dense = value.layout == torch.strided
            kind = str(value.dtype).removeprefix("torch.") if is_dense else "sparse"
            return (
                f"{key} is {kind}, and the model computes in float32; give dense weights in "
                "float32, float16 or bfloat16"
            )
    return ""


def _completed(model: nn.Module, state: State) -> State:
    """The state in the model's own names, with a count of batches where it has none.

    Batch norm counts batches since PyTorch 0.4.1, and needs no count in eval mode.
    """
    # A factory's model may know the names of another program for its parameters.
    translated = getattr(model, "translate_state", lambda given: given)(state)
    completed = OrderedDict(translated)
    own = model.state_dict()
    if translated.keys() & own.keys():
        for name, value in own.items():
            if name.endswith("num_batches_tracked"):
                completed.setdefault(name, value)
    # What versions its modules had, which their loaders ask for.
    _describe(completed, getattr(state, "_metadata", None))
    return completed


def _difference(model: nn.Module, state: State) -> _Misfit | None:
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
            for key, value in own.items()
            if isinstance(value, Tensor)
            and isinstance(state.get(key), Tensor)
            and value.shape != state[key].shape
        ],
    }
    if not any(problems.values()):
        return None
    found = "; ".join(
        f"{len(keys)} {problem} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for problem, keys in problems.items()
        if keys
    )
    only_shapes = not problems["missing"] and not problems["unexpected"]
    hint = "; --num-classes N makes a head for N classes" if only_shapes else ""
    return _Misfit(sum(map(len, problems.values())), found + hint)


def _common_prefix(state: State) -> str | None:
    """`module.` where every name begins with it."""
    first = next(iter(_named(state)), "")
    prefix = f"{first.partition('.')[0]}."
    return prefix if all(name.startswith(prefix) for name in _named(state)) else None


def _named(state: State) -> list[str]:
    return [name for name in state if name != _COUNTER_OF_AVERAGES]


def _without_prefix(state: State, prefix: str) -> State:
    if not prefix:
        return state
    named = OrderedDict((name.removeprefix(prefix), state[name]) for name in _named(state))
    modules = getattr(state, "_metadata", None) or {}
    inside = {
        name.removeprefix(prefix) if name != prefix[:-1] else "": value
        for name, value in modules.items()
        if f"{name}.".startswith(prefix)
    }
    _describe(named, inside or None)
    return named


def _describe(state: State, metadata: object) -> None:
    if metadata is not None:
        state._metadata = metadata  # type: ignore[attr-defined]


def check_finite(model: nn.Module, name: str) -> None:
    """Check that no weight is nan, and no parameter infinite.

    Raises:
        SettingsError: the message names the first.
    """
    wrong = [key for key, p in model.named_parameters() if not bool(p.isfinite().all())]
    wrong += [key for key, b in model.named_buffers() if bool(b.isnan().any())]
    if wrong:
        raise SettingsError(
            f"the weights of {name} are not finite: {len(wrong)} of their tensors, the first is "
            f"{wrong[0]}; give finite weights"
        )
