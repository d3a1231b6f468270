"""Every setting that decides the bytes of a run: from flags or YAML, checked, and hashed.

A :class:`RunConfig` is what the user asked for. :mod:`pipeline.plan` resolves it against the model
and the dataset into a plan, whose identity is the run id.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

import yaml

from pipeline.errors import SettingsError


def check_choice(setting: str, value: str, valid: Any) -> None:
    """Raise :class:`SettingsError`, naming the valid choices, unless ``value`` is one of them."""
    if value not in valid:
        raise SettingsError(f"unknown {setting} {value!r}; valid: {', '.join(valid)}")


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAP_DTYPES = ("float16", "float32")
FORMATS = ("parquet", "webdataset")
DEVICES = ("auto", "cpu", "cuda")
CHANNEL_ORDERS = ("rgb", "bgr")
KEEP = "all, none, sample:N (the maps of N images)"
ROLES = "label, top, least, random, topK (such as top5), class:ID (such as class:207)"


@dataclass(frozen=True)
class RunConfig:
    """The settings of ``backlight generate``; defaults are the paper's where it has one.

    ``None`` means: chosen from the source, the model or the size of the set.
    """

    source: str
    root: str
    model: str
    split: str | None = None
    annotations: str | None = None
    weights: str | None = None
    num_classes: int | None = None
    fully_convolutional: bool = False
    class_map: str | None = None
    class_index: str | None = None
    layers: tuple[str, ...] = ("stages",)
    methods: tuple[str, ...] = ("gradient", "linear_approx", "normgrad", "grad_cam")
    targets: tuple[str, ...] = ("label", "top", "least")
    variants: tuple[str, ...] = ("base",)
    seed: str = "onehot_sum"
    preprocess: str | None = None
    input_size: int = 224
    channel_order: str = "rgb"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    format: tuple[str, ...] = ("parquet",)
    map_dtype: str = "float16"
    shard_size: int | None = None
    batch_size: int = 8
    device: str = "auto"
    limit: int | None = None
    evaluate: tuple[str, ...] = ()
    upsample: tuple[str, ...] = ("bilinear",)
    combine: tuple[str, ...] = ()
    keep: str = "all"

    def __post_init__(self) -> None:
        """Check everything that needs neither the dataset nor the model."""
        check_choice("map dtype", self.map_dtype, MAP_DTYPES)
        check_choice("device", self.device, DEVICES)
        check_choice("channel order", self.channel_order, CHANNEL_ORDERS)
        for name in self.format:
            check_choice("format", name, FORMATS)
        for role in self.targets:
            parse_role(role)
        if parse_keep(self.keep) is not None and not self.evaluate:
            raise SettingsError(
                f"--keep {self.keep} without --evaluate METRICS would leave nothing of the maps"
            )
        for setting in ("layers", "methods", "targets", "variants", "format", "upsample"):
            values = getattr(self, setting)
            if not values or len(set(values)) < len(values):
                raise SettingsError(f"{setting}: give at least one, each once; not {values}")
        for setting in ("input_size", "batch_size", "shard_size", "limit", "num_classes"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise SettingsError(f"{setting} must be at least 1, not {value}")
        for setting in ("mean", "std"):
            values = getattr(self, setting)
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise SettingsError(f"{setting} takes three finite numbers, not {values}")
        if min(self.std) <= 0:
            raise SettingsError(f"std must be positive, not {self.std}")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """From flags or YAML: lists, or comma-separated text, where a tuple is meant.

        Raises:
            SettingsError: a setting is unknown, missing, or of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            check_choice("setting", name, known)
        missing = [name for name in ("source", "root", "model") if settings.get(name) is None]
        if missing:
            raise SettingsError(f"missing settings: {', '.join(missing)}")
        given = {name: value for name, value in settings.items() if value is not None}
        kinds = get_type_hints(cls)
        return cls(**{name: _typed(name, kinds[name], value) for name, value in given.items()})

    def to_settings(self) -> dict[str, Any]:
        """Plain lists, numbers and text: the inverse of :meth:`from_settings`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        SettingsError: the file is missing, or not a mapping of settings.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the config file {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"the config file {path} must map settings to values")
    return {str(name).replace("-", "_"): value for name, value in settings.items()}


def parse_role(role: str) -> tuple[str, int | None]:
    """``("top", 5)`` for ``top5``, ``("class", 207)`` for ``class:207``, ``("label", None)``.

    Raises:
        SettingsError: not a role.
    """
    if role in ("label", "top", "least", "random"):
        return role, None
    if match := re.fullmatch(r"top([1-9]\d*)", role):
        return "top", int(match[1])
    if match := re.fullmatch(r"class:(\d+)", role):
        return "class", int(match[1])
    raise SettingsError(f"unknown target {role!r}; valid: {ROLES}")


def parse_keep(keep: str) -> int | None:
    """Of how many images the maps are kept; None: of all.

    Raises:
        SettingsError: none of the ways to say it.
    """
    if keep in ("all", "none"):
        return None if keep == "all" else 0
    if match := re.fullmatch(r"sample:([1-9]\d*)", keep):
        return int(match[1])
    raise SettingsError(f"unknown keep {keep!r}; valid: {KEEP}")


def _typed(name: str, kind: Any, value: Any) -> Any:
    """``value`` as the field's type: text, a whole number (or None), a tuple, true or false."""
    if get_origin(kind) is tuple:
        parts = re.split(r",(?![^(]*\))", value) if isinstance(value, str) else value
        item = get_args(kind)[0]
        try:
            return tuple(item(part.strip() if isinstance(part, str) else part) for part in parts)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"{name}: {value!r} is not a list of {'numbers' if item is float else 'names'}"
            ) from error
    if kind is bool:
        if not isinstance(value, bool):
            raise SettingsError(f"{name}: {value!r} is neither true nor false")
        return value
    if int in (kind, *get_args(kind)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise SettingsError(f"{name}: {value!r} is not a whole number")
        return value
    return str(value)
