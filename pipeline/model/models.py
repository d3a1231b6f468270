"""Models by name, with their weights: what a worker explains.

A model is a torchvision classifier or any `module:factory` that maps images to logits. Weights come
from a file or a torchvision enum.
"""

import hashlib
import importlib
import inspect
import io
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torchvision
from torch import nn

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.shadowing import check_not_hidden
from transforms.fully_convolutional import NoTwinError, fully_convolutional
from transforms.names import unknown_name


@dataclass(frozen=True)
class ModelSpec:
    """What a worker needs to build the model.

    Attributes:
        name: a torchvision classifier (`resnet50`) or `module:factory`.
        weights: a state-dict file, a torchvision enum value (`IMAGENET1K_V1`), `random:SEED`,
            or None where the factory brings its own.
        num_classes: for a model whose head differs from its default.
        fully_convolutional: its fully convolutional twin instead.
    """

    name: str
    weights: str | None = None
    num_classes: int | None = None
    fully_convolutional: bool = False

    def load(self) -> nn.Module:
        """The model with its weights, in eval mode, on the CPU.

        Raises:
            SettingsError: unknown model or weights, weights that do not fit, or no twin.
        """
        with torch.random.fork_rng():
            seed = re.fullmatch(r"random:(\d+)", self.weights or "")
            torch.manual_seed(int(seed[1]) if seed else 0)
            model = self._build()
        if self.weights is None:
            if ":" not in self.name:
                raise SettingsError(
                    f"{self.name} has no weights: pass --weights FILE, an enum of torchvision "
                    f"({', '.join(_enum_names(self.name)) or 'none known'}) or random:SEED"
                )
        elif not seed:
            self._load_weights(model)
        if self.fully_convolutional:
            try:
                model = fully_convolutional(model)
            except NoTwinError as error:
                raise SettingsError(f"--fully-convolutional: {error}") from error
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def located(self) -> Self:
        """The same, with the path of a weights file made absolute, for workers elsewhere."""
        return replace(self, weights=files.absolute(self.file)) if self.file else self

    @property
    def file(self) -> str | None:
        """The path or URL of the weights, where they are a file."""
        return None if self._weights_are_named() else self.weights

    def digest(self) -> str:
        """A hash of what the weights are, and of the factory's source, wherever they lie.

        Raises:
            SettingsError: the weights cannot be read.
        """
        parts = [str(self.weights)]
        if self.file:
            parts = [hashlib.sha256(self._read_weights()).hexdigest()]
        if ":" in self.name:
            factory = load_factory(self.name)
            source = inspect.getsourcefile(inspect.unwrap(factory))
            parts.append(hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else "")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _build(self) -> nn.Module:
        options = {} if self.num_classes is None else {"num_classes": self.num_classes}
        if ":" in self.name:
            factory = load_factory(self.name)
            try:
                inspect.signature(factory).bind(**options)
            except TypeError as error:
                given = "num_classes" if options else "no argument"
                raise SettingsError(
                    f"the model factory {self.name} cannot be called with {given}: {error}"
                ) from error
            model = factory(**options)
            if not isinstance(model, nn.Module):
                raise SettingsError(f"{self.name} gave a {type(model).__name__}, not a module")
            return model
        if self.name not in torchvision_models():
            raise SettingsError(
                unknown_name("model", self.name, torchvision_models(), "module:factory")
            )
        return torchvision.models.get_model(self.name, weights=None, **options)

    def _weights_are_named(self) -> bool:
        return self.weights is not None and (
            re.fullmatch(r"random:\d+", self.weights) is not None
            or self.weights.rpartition(".")[2] in _enum_names(self.name)
        )

    def _read_weights(self) -> bytes:
        try:
            return files.read_bytes(str(self.weights))
        except OSError as error:
            named = ", ".join(_enum_names(self.name))
            raise SettingsError(
                f"cannot read weights {self.weights!r}; valid: a state-dict file, random:SEED"
                + (f", or one of {named}" if named else "")
            ) from error

    def _load_weights(self, model: nn.Module) -> None:
        if self._weights_are_named():
            enum = torchvision.models.get_model_weights(self.name)
            try:
                state = enum[str(self.weights).rpartition(".")[2]].get_state_dict(check_hash=True)
            except (OSError, RuntimeError) as error:
                raise SettingsError(
                    f"cannot download the weights {self.weights} of {self.name}: {error}; "
                    "pass --weights FILE instead"
                ) from error
        else:
            try:
                state = torch.load(
                    io.BytesIO(self._read_weights()), map_location="cpu", weights_only=True
                )
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                raise SettingsError(
                    f"{self.weights} is not a state dict that loads with weights_only=True: "
                    f"{(str(error) or 'it is empty').splitlines()[0]}"
                ) from error
        _fit(model, state, self)


def torchvision_models() -> list[str]:
    """Names of torchvision's image classifiers."""
    return [str(name) for name in torchvision.models.list_models(module=torchvision.models)]


def _enum_names(name: str) -> list[str]:
    if name not in torchvision_models():
        return []
    return list(torchvision.models.get_model_weights(name).__members__)


def load_factory(name: str) -> Callable[..., Any]:
    """What `module:factory` names.

    Raises:
        SettingsError: nothing that can be imported, or called.
    """
    module_name, _, attribute = name.partition(":")
    # A factory in the user's own folder is found as `python` would find it.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        check_not_hidden(module_name)
        raise SettingsError(
            f"cannot import the model factory {name!r}: {error}; valid: module:factory"
        ) from error
    if not callable(factory):
        raise SettingsError(f"{name!r} is not callable; valid: module:factory")
    return factory


def _fit(model: nn.Module, state: Any, spec: ModelSpec) -> None:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise SettingsError(f"{spec.weights} holds no state dict (names → tensors)")
    own = model.state_dict()
    # A factory's model may know the names of another program for its parameters.
    state = getattr(model, "translate_state", dict)(state)
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(keys)} {problem} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
            for problem, keys in problems.items()
            if keys
        )
        raise SettingsError(f"weights {spec.weights} do not fit {spec.name}: {found}")
    model.load_state_dict(state, strict=True)
