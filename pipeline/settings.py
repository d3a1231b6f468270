"""Settings declared once: a field of a dataclass says its flag, type, choices, default and help.

`pipeline.config.RunConfig` declares the settings of a run; `pipeline.cli.options` makes the flags
of them, and `typed` turns what stands in a YAML file into their values.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, get_args, get_origin, get_type_hints

from pipeline import files
from pipeline.errors import SettingsError, check_choice

DATA = "Data"
MODEL = "Model"
MAPS = "Maps"
SCORES = "Scores"
OUTPUT = "Output"
WHERE = "Where to run"
"""The groups of settings, as `--help` shows them."""

Choices = Callable[[], Iterable[str]]
"""The valid values of a setting, from the table that has them."""

LIST_SEPARATOR = re.compile(r",(?![^(]*\))")
"""A comma, unless it stands in the parentheses of `meta(lr=0.001,second_order)`."""


@dataclass(frozen=True)
class Setting:
    """What a field says of its setting.

    Attributes:
        group: the heading that it stands under in `--help`.
        help: what it is, in words.
        choices: gives its valid values, where they can be listed.
        metavar: what stands for its value in `--help`.
        otherwise: what holds where it is not given, in words, if its default does not say it.
        minimum: the least value of a whole number.
        is_path: whether it may be a path, in which `~` is the home folder.
    """

    group: str
    help: str
    choices: Choices | None = None
    metavar: str | None = None
    otherwise: str = ""
    minimum: int | None = 1
    is_path: bool = False


def check_several(name: str, value: Any) -> None:
    """Raise `SettingsError` if one text was given for a list."""
    if isinstance(value, str):
        names = tuple(part.strip() for part in LIST_SEPARATOR.split(value))
        raise SettingsError(f"{name} takes several values: give {names}, not {value!r}")


@dataclass(frozen=True)
class Declared:
    """A setting with the name, type and default of its field."""

    name: str
    setting: Setting
    annotation: Any
    default: Any

    @property
    def flag(self) -> str:
        """`--input-size` for `input_size`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """Whether it takes several values, with commas between them."""
        return get_origin(_without_none(self.annotation)) is tuple

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @cached_property
    def item_type(self) -> type:
        """The type of a value, or of each of several."""
        annotation = _without_none(self.annotation)
        found: type = get_args(annotation)[0] if self.is_list else annotation
        return found

    def typed(self, value: Any) -> Any:
        """The value as the field's type.

        Raises:
            SettingsError: it is of another type.
        """
        if self.is_list:
            return self._listed(value)
        if self.item_type is bool:
            if not isinstance(value, bool):
                raise SettingsError(f"{self.name}: {value!r} is neither true nor false")
            return value
        if self.item_type is int:
            if isinstance(value, bool) or not isinstance(value, int):
                raise SettingsError(f"{self.name}: {value!r} is not a whole number")
            return value
        return str(value)

    def at_home(self, value: Any) -> Any:
        """The value with `~` as the home folder, where it may be a path."""
        if not self.setting.is_path or value is None:
            return value
        if not self.is_list:
            return files.expanded(os.fspath(value))
        return tuple(files.expanded(os.fspath(each)) for each in value)

    def check(self, value: Any) -> None:
        """Check a value of the field's type.

        Raises:
            SettingsError: it is too small, none of the choices, no value, twice the same, or one
                text for a list.
        """
        if value is None:
            return
        if self.is_list:
            check_several(self.name, value)
        is_missing = self.is_list and not value and self.default != ()
        is_repeated = self.is_list and self.item_type is str and len(set(value)) < len(value)
        if is_missing or is_repeated:
            raise SettingsError(f"{self.name}: give at least one, each once; not {value}")
        if self.setting.choices:
            for item in value if self.is_list else (value,):
                check_choice(self.name.replace("_", " "), item, self.setting.choices())
        minimum = self.setting.minimum
        if self.item_type is int and minimum is not None and value < minimum:
            raise SettingsError(f"{self.name} must be at least {minimum}, not {value}")

    def _listed(self, value: Any) -> tuple[Any, ...]:
        parts = LIST_SEPARATOR.split(value) if isinstance(value, str) else value
        try:
            return tuple(
                self.item_type(part.strip() if isinstance(part, str) else part) for part in parts
            )
        except (TypeError, ValueError) as error:
            items = "numbers" if self.item_type is float else "names"
            raise SettingsError(f"{self.name}: {value!r} is not a list of {items}") from error


def setting(
    group: str,
    help: str,
    default: Any = MISSING,
    *,
    choices: Choices | None = None,
    metavar: str | None = None,
    otherwise: str = "",
    minimum: int | None = 1,
    is_path: bool = False,
) -> Any:
    """A dataclass field that declares a setting; see `Setting` for the arguments."""
    declared = Setting(group, help, choices, metavar, otherwise, minimum, is_path)
    if default is MISSING:
        return field(metadata={"setting": declared})
    return field(default=default, metadata={"setting": declared})


def declared_settings(config: type) -> Iterator[Declared]:
    """The settings that the fields of a dataclass declare, in their order."""
    annotations = get_type_hints(config)
    for declared in fields(config):
        if found := declared.metadata.get("setting"):
            yield Declared(declared.name, found, annotations[declared.name], declared.default)


def _without_none(annotation: Any) -> Any:
    """`int` for `int | None`."""
    options = get_args(annotation)
    if type(None) not in options:
        return annotation
    return next(option for option in options if option is not type(None))
