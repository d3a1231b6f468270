"""Models by name, with their weights: what a worker explains.

A model is a torchvision classifier, one of timm, or any `module:factory` that maps images to
logits. Weights come from a file, from the model's origin by name, or from a seed.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import nn

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.model.as_written import gives_logits, prepared
from pipeline.model.checkpoints import check_finite, fit, read_states
from pipeline.model.factories import in_one_line
from pipeline.model.origins import origin_of
from pipeline.notes import Notes
from pipeline.preprocess import STANDARD, InputRules


@dataclass(frozen=True)
class ModelSpec:
    """What a worker needs to build the model.

    Attributes:
        name: a torchvision classifier (`resnet50`), `timm:NAME` or `module:factory`.
        weights: a file, a name of the origin's weights (`IMAGENET1K_V1`), `random:SEED`, or None
            where the factory brings its own.
        num_classes: for a model whose head differs from its default.
        fully_convolutional: its fully convolutional twin instead.
        weights_key: which of several state dicts in the weights file.
        input_size: pixels of the image that lazy modules see first.
        memory_format: in which the weights and the images lie in a CPU's memory.
    """

    name: str
    weights: str | None = None
    num_classes: int | None = None
    fully_convolutional: bool = False
    weights_key: str | None = None
    input_size: int = STANDARD.input_size
    memory_format: torch.memory_format = torch.contiguous_format

    def load(self, notes: Notes | None = None) -> nn.Module:
        """The model with its weights, in eval mode, on the CPU; what was done to it is noted.

        Raises:
            SettingsError: unknown model or weights, weights that do not fit, or no twin.
        """
        notes = notes or Notes()
        model = self._with_weights(notes)
        check_finite(model, self._described())
        if self.fully_convolutional:
            # Here, because it loads torchvision.
            from transforms.fully_convolutional import NoTwinError, fully_convolutional

            try:
                model = fully_convolutional(model)
            except NoTwinError as error:
                raise SettingsError(f"--fully-convolutional: {error}") from error
        gives_logits(model)
        try:
            model.eval()
        except Exception as error:
            raise SettingsError(
                f"{self.name} cannot be put into eval mode: {in_one_line(error)}; give a model "
                "whose eval() works, such as the one that it was exported from"
            ) from error
        if self.memory_format != torch.contiguous_format:
            model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return model

    def load_on(self, device: torch.device) -> nn.Module:
        """The model on `device`, laid out as `memory_format_on` says; see `load`."""
        model = self.load().to(device)
        model.to(memory_format=self.memory_format_on(device))  # type: ignore[call-overload]
        return model

    def memory_format_on(self, device: torch.device) -> torch.memory_format:
        """How weights and images lie in the memory of `device`.

        On a GPU channels-last is slower in full float32: 1.5 times on an H200.
        """
        return self.memory_format if device.type == "cpu" else torch.contiguous_format

    def located(self) -> Self:
        """The same, with the path of a weights file made absolute, for workers elsewhere."""
        return replace(self, weights=files.absolute(self.file)) if self.file else self

    @property
    def file(self) -> str | None:
        """The path or URL of the weights, where they are a file."""
        if self.weights is None or self._seed is not None or self._name_of_weights:
            return None
        return self.weights

    @property
    def input_rules(self) -> InputRules:
        """How photos are prepared for these weights.

        Raises:
            SettingsError: the weights cannot be read.
        """
        sha256 = hashlib.sha256(self._read_weights()).hexdigest() if self.file else ""
        return origin_of(self.name).rules(self.name, self._name_of_weights, sha256)

    def digest(self) -> str:
        """A hash of what the weights are, and of the factory's source, wherever they lie.

        Raises:
            SettingsError: the weights cannot be read.
        """
        parts = [str(self.weights)]
        if self.file:
            parts = [hashlib.sha256(self._read_weights()).hexdigest()]
        parts += [part for part in (self.weights_key, origin_of(self.name).code(self.name)) if part]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def _seed(self) -> int | None:
        match = re.fullmatch(r"random:(\d+)", self.weights or "")
        return int(match[1]) if match else None

    @property
    def _name_of_weights(self) -> str | None:
        known = origin_of(self.name).weights(self.name) if self.weights else []
        return self.weights if str(self.weights).rpartition(".")[2] in known else None

    def _with_weights(self, notes: Notes) -> nn.Module:
        origin = origin_of(self.name)
        if self.weights_key is not None and not self.file:
            raise SettingsError("--weights-key is for a weights file; give --weights FILE")
        if self.weights is None and not origin.brings_weights:
            # An unknown model is named first.
            origin.build(self.name, self.num_classes)
            named = ", ".join(origin.weights(self.name))
            raise SettingsError(
                f"{self.name} has no weights: pass --weights FILE, a name of weights "
                f"({named or 'none known'}) or random:SEED"
            )
        found = read_states(self._read_weights(), str(self.weights)) if self.file else []
        with _seeded(self._seed or 0):
            if found:
                states = [f.state for f in found]
                model = origin.build_for_file(self.name, self.num_classes, states, notes)
            elif name := self._name_of_weights:
                model = origin.build_with(self.name, name, self.num_classes)
            else:
                model = origin.build(self.name, self.num_classes)
            model = prepared(model, self.name, self.input_size, notes)
        if found:
            name = str(self.weights)
            fit(model, found, name, self.name, notes, key=self.weights_key, load=origin.load)
        return model

    def _described(self) -> str:
        return f"{self.name} ({self.weights})" if self.weights else self.name

    def _read_weights(self) -> bytes:
        try:
            return files.read_bytes(str(self.weights))
        except OSError as error:
            named = ", ".join(origin_of(self.name).weights(self.name))
            raise SettingsError(
                f"cannot read weights {self.weights!r}: {files.reason(error)}; valid: a state-dict "
                "file, random:SEED" + (f", or one of {named}" if named else "")
            ) from error


def check_same_again(spec: ModelSpec, network: nn.Module) -> None:
    """Check that a factory that brings its own weights makes the same ones again.

    Every worker calls it.

    Raises:
        SettingsError: it does not; the message names the first that differs.
    """
    if spec.weights is not None or not origin_of(spec.name).brings_weights:
        return
    again = spec.load().state_dict()
    for key, value in network.state_dict().items():
        other = again.get(key)
        if isinstance(value, torch.Tensor) and not (
            isinstance(other, torch.Tensor) and torch.equal(value, other)
        ):
            raise SettingsError(
                f"{spec.name} gives another model each time that it is called: {key} differs, and "
                "every worker calls it. Let it draw from the generators of torch, numpy or random, "
                "which are seeded here, or give --weights FILE"
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators of torch, numpy and Python, seeded; as they were on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def any_weights(name: str) -> str | None:
    """Weights for a look at a model: random ones, unless it brings its own."""
    return None if origin_of(name).brings_weights else "random:0"
