"""Where models come from, by how they are named: torchvision, timm, or the user's own code.

A new origin is one entry in `ORIGINS`.
"""

import copy
import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.errors import SettingsError
from pipeline.model.checkpoints import State
from pipeline.model.factories import in_one_line, load_factory, made_by_factory
from pipeline.notes import Notes
from pipeline.preprocess import INTERPOLATIONS, STANDARD, InputRules
from transforms.names import unknown_name

TIMM = "timm:"


@dataclass(frozen=True)
class Origin:
    """What an entry of `ORIGINS` says of the models that it has.

    Attributes:
        takes: whether a name is of this origin.
        build: the model of a name without its weights; with a number of classes, if given.
        build_for_file: the same for the state of a weights file; what else is done is noted.
        weights: the names of the weights that it has for a model.
        build_with: the model with the weights of such a name.
        rules: how photos are prepared for a model, by the name of its weights, if they have one,
            and the SHA-256 of their file, if they are in one.
        load: puts a state into a model, or raises.
        code: what else the model depends on, beside its name and its weights.
        takes_num_classes: whether a model of that name can be built for a number of classes.
        brings_weights: whether the model needs no weights to be given.
    """

    takes: Callable[[str], bool]
    build: Callable[[str, int | None], nn.Module]
    build_for_file: Callable[[str, int | None, Sequence[State], Notes], nn.Module]
    weights: Callable[[str], list[str]]
    build_with: Callable[[str, str, int | None], nn.Module]
    rules: Callable[[str, str | None, str], InputRules]
    load: Callable[[nn.Module, State], object]
    code: Callable[[str], str]
    takes_num_classes: Callable[[str], bool] = lambda name: True
    brings_weights: bool = False


def origin_of(name: str) -> Origin:
    """The origin of the model of that name."""
    return next(origin for origin in ORIGINS if origin.takes(name))


def torchvision_models() -> list[str]:
    """Names of torchvision's image classifiers."""
    from torchvision import models

    return [str(name) for name in models.list_models(module=models)]


def _check_torchvision_has(name: str) -> None:
    if name not in torchvision_models():
        raise SettingsError(
            unknown_name("model", name, torchvision_models(), "timm:NAME, or module:factory")
        )


def _torchvision_model(name: str, num_classes: int | None, **options: Any) -> nn.Module:
    from torchvision import models

    _check_torchvision_has(name)
    heads = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = models.get_model(name, weights=None, **options, **heads)
    except Exception as error:
        raise SettingsError(f"torchvision cannot build {name}: {in_one_line(error)}") from error
    return model


_NORMALISED_ANEW = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}
"""Models that torchvision builds with `transform_input=True` where it has weights, since these are
of input that was normalised otherwise; and how the names of their auxiliary heads begin."""


def _torchvision_for_file(
    name: str, num_classes: int | None, states: Sequence[State], notes: Notes
) -> nn.Module:
    auxiliary = _NORMALISED_ANEW.get(name)
    if auxiliary is None:
        return _torchvision_model(name, num_classes)
    notes.say(
        f"{name} normalises its input again (transform_input=True), as torchvision builds it with "
        "weights; give a module:factory for weights that were trained without"
    )
    has_heads = any(auxiliary in key for state in states for key in state)
    options = {"transform_input": True, "aux_logits": has_heads, "init_weights": False}
    return _torchvision_model(name, num_classes, **options)


def _torchvision_with(name: str, weights: str, num_classes: int | None) -> nn.Module:
    from torchvision import models

    enum = models.get_model_weights(name)[weights.rpartition(".")[2]]
    heads = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = models.get_model(name, weights=enum, **heads)
    except ValueError as error:
        raise SettingsError(
            f"{name} with the weights {weights}: {in_one_line(error)}; leave --num-classes out, or "
            "give --weights FILE"
        ) from error
    except Exception as error:
        raise SettingsError(
            f"cannot download the weights {weights} of {name}: {in_one_line(error)}; "
            "pass --weights FILE instead"
        ) from error
    return model


def _torchvision_weights(name: str) -> list[str]:
    from torchvision import models

    if name not in torchvision_models():
        return []
    return list(models.get_model_weights(name).__members__)


def _torchvision_rules(name: str, weights: str | None, sha256: str) -> InputRules:
    """Those of the weights where they are known by name or by their hash, else of the first."""
    from torchvision import models

    _check_torchvision_has(name)
    known = list(models.get_model_weights(name))
    chosen = known[0]
    if weights is not None:
        chosen = models.get_model_weights(name)[weights.rpartition(".")[2]]
    for enum in known:
        # torchvision's files end with the first digits of their hash.
        digits = re.search(r"-([0-9a-f]{8,})\.pth$", enum.url)
        if sha256 and digits and sha256.startswith(digits[1]):
            chosen = enum
    preset = chosen.transforms()
    return InputRules(
        str(chosen),
        input_size=preset.crop_size[0],
        resize_size=preset.resize_size[0],
        interpolation=str(preset.interpolation.value),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


class _InMemory:
    """A state as torchvision's own loaders take it: by a method of its enums."""

    def __init__(self, state: State) -> None:
        self._state = copy.copy(state)

    def get_state_dict(self, *args: Any, **kwargs: Any) -> State:
        return self._state


def _load_as_torchvision(model: nn.Module, state: State) -> None:
    """By the loader of torchvision's file, where it has one: it knows older names of its layers.

    The network may be a part of the model.
    """
    homes = {type(module).__module__ for module in model.modules()}
    names = sorted(home for home in homes if home.startswith("torchvision."))
    found = (getattr(sys.modules.get(name), "_load_state_dict", None) for name in names)
    loader = next(filter(None, found), None)
    if loader is None:
        model.load_state_dict(state, strict=True)
    else:
        loader(model, _InMemory(state), progress=False)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise SettingsError(
            f"models of timm need the package timm, which cannot be imported ({error}); "
            "pip install 'backlight[timm]'"
        ) from error


def _timm_name(name: str) -> str:
    """The name in timm, checked; it may end with `.` and the name of its weights."""
    timm = _timm()
    own = name.removeprefix(TIMM)
    architecture, _, tag = own.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise SettingsError(unknown_name("model of timm", architecture, known))
    if tag and tag not in _timm_tags(architecture):
        known = _timm_tags(architecture)
        raise SettingsError(unknown_name(f"weights of {architecture}", tag, known))
    return own


def _timm_tags(architecture: str) -> list[str]:
    names = _timm().list_pretrained(f"{architecture}.*")
    return [str(name).partition(".")[2] for name in names]


def _timm_model(name: str, num_classes: int | None, *, pretrained: bool = False) -> nn.Module:
    own = _timm_name(name)
    heads = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = _timm().create_model(own, pretrained=pretrained, **heads)
    except Exception as error:
        what = f"cannot download the weights of {name}" if pretrained else f"{name} fails"
        instead = "; pass --weights FILE instead" if pretrained else ""
        raise SettingsError(f"{what}: {in_one_line(error)}{instead}") from error
    if getattr(model, "num_classes", 1) == 0:
        raise SettingsError(
            f"{name} has no classifier; give --num-classes N, and --weights FILE that has one"
        )
    return model


def _timm_with(name: str, weights: str, num_classes: int | None) -> nn.Module:
    chosen = _timm_chosen(name, weights)
    if num_classes is not None:
        own = _timm_model(chosen, None).num_classes
        if own != num_classes:
            raise SettingsError(
                f"the weights {weights} of {name} are for {own} classes, not {num_classes}; leave "
                "--num-classes out, or give --weights FILE"
            )
    return _timm_model(chosen, num_classes, pretrained=True)


def _timm_chosen(name: str, weights: str) -> str:
    """The name in timm with the weights: those of the name itself for `DEFAULT`."""
    own = _timm_name(name)
    return name if weights == _DEFAULT else f"{TIMM}{own.partition('.')[0]}.{weights}"


_DEFAULT = "DEFAULT"


def _timm_weights(name: str) -> list[str]:
    tags = _timm_tags(_timm_name(name).partition(".")[0])
    return [_DEFAULT, *tags] if tags else []


def _timm_rules(name: str, weights: str | None, sha256: str) -> InputRules:
    """Those that timm has for the weights; without a name, for the model's default ones."""
    chosen = _timm_chosen(name, weights or _DEFAULT)
    own = chosen.removeprefix(TIMM)
    cfg = _timm().get_pretrained_cfg(own)
    data = importlib.import_module("timm.data").resolve_data_config(
        pretrained_cfg=cfg.to_dict() if cfg else None
    )
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise SettingsError(
            f"{name} takes images of {channels} × {height} × {width}; give a model of square "
            "images with 3 channels"
        )
    crop, mode = data["crop_pct"], data["crop_mode"]
    interpolation = data["interpolation"]
    is_stretched = mode == "squash" and crop == 1
    # Of timm's ways to cut, `border` and a cut of a stretched photo are none of ours.
    apart = "" if mode == "center" or is_stretched else f" apart from its crop mode {mode}"
    return InputRules(
        f"timm's {own}{apart}",
        input_size=height,
        resize_size=math.floor(height / crop),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bilinear",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        preprocess="stretch" if is_stretched else None,
    )


def _factory_for_file(
    name: str, num_classes: int | None, states: Sequence[State], notes: Notes
) -> nn.Module:
    return made_by_factory(name, num_classes)


def _factory_takes_num_classes(name: str) -> bool:
    return "num_classes" in inspect.signature(load_factory(name)).parameters


def _source_of_factory(name: str) -> str:
    factory = inspect.unwrap(load_factory(name))
    try:
        source = inspect.getsourcefile(factory)
    except TypeError:  # an object that can be called, such as a partial
        source = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


def _has_none(name: str, weights: str, num_classes: int | None) -> nn.Module:
    raise SettingsError(f"{name} has no weights named {weights!r}; pass --weights FILE")


ORIGINS: tuple[Origin, ...] = (
    Origin(
        takes=lambda name: name.startswith(TIMM),
        build=_timm_model,
        build_for_file=lambda name, num_classes, states, notes: _timm_model(name, num_classes),
        weights=_timm_weights,
        build_with=_timm_with,
        rules=_timm_rules,
        load=lambda model, state: model.load_state_dict(state, strict=True),
        code=lambda name: f"timm {version('timm')}",
    ),
    Origin(
        takes=lambda name: ":" in name,
        build=made_by_factory,
        build_for_file=_factory_for_file,
        weights=lambda name: [],
        build_with=_has_none,
        rules=lambda name, weights, sha256: STANDARD,
        load=_load_as_torchvision,
        code=_source_of_factory,
        takes_num_classes=_factory_takes_num_classes,
        brings_weights=True,
    ),
    Origin(
        takes=lambda name: True,
        build=_torchvision_model,
        build_for_file=_torchvision_for_file,
        weights=_torchvision_weights,
        build_with=_torchvision_with,
        rules=_torchvision_rules,
        load=_load_as_torchvision,
        code=lambda name: "",
    ),
)
"""The origins; the first that takes a name has the model."""
