"""Options of commands, made from the declarations of settings, and help in groups."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline import files
from pipeline.config import RunConfig, read_settings
from pipeline.errors import SettingsError
from pipeline.settings import LIST_SEPARATOR, Declared, declared_settings
from pipeline.workers.execution import Execution
from transforms.names import unknown_name

Command = TypeVar("Command", bound=Callable[..., Any])

THIS_COMMAND = "Other"
"""The group of options that belong to one command alone."""


class GroupedOption(click.Option):
    """An option that stands under a heading in the help."""

    def __init__(self, *args: Any, group: str = THIS_COMMAND, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options by group, in the order of their first option."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a definition list per group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):
                group = getattr(parameter, "group", THIS_COMMAND)
                groups.setdefault(group, []).append(record)
        own = groups.pop(THIS_COMMAND, [])
        for group, records in {**groups, THIS_COMMAND: own}.items():
            if records:
                with formatter.section(group if groups else "Options"):
                    formatter.write_dl(records, col_max=28)


class OneOf(click.Choice[str]):
    """One of several names. A wrong one is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one of them."""
        if value not in self.choices:
            self.fail(_unknown(param, str(value), self.choices), param, ctx)
        return str(value)


class UserPath(click.ParamType[str]):
    """A path or a URL; `~` at its beginning is the home folder, also where no shell has seen it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The path without `~`."""
        return files.expanded(str(value))


class CommaList(click.ParamType[tuple[Any, ...]]):
    """Several names or numbers with commas between them; a comma in parentheses does not count."""

    name = "list"

    def __init__(self, item: Callable[[str], Any] = str, choices: Iterable[str] = ()) -> None:
        self._item = item
        self._choices = list(choices)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The choices, if there are any."""
        return f"[{'|'.join(self._choices)}],..." if self._choices else None

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The items as a tuple."""
        if isinstance(value, tuple):
            return value
        items = []
        for part in LIST_SEPARATOR.split(value):
            name = part.strip()
            if self._choices and name not in self._choices:
                self.fail(_unknown(param, name, self._choices), param, ctx)
            try:
                items.append(self._item(name))
            except ValueError:
                self.fail(f"{name!r} is not a number", param, ctx)
        return tuple(items)


def option(
    *names: str, group: str = THIS_COMMAND, **attributes: Any
) -> Callable[[Command], Command]:
    """As `click.option`, under a heading of the help."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def setting_option(
    declared: Declared, *, shows_default: bool = True
) -> Callable[[Command], Command]:
    """The option that a declared setting becomes. Its value is None where it is not given."""
    setting = declared.setting
    text = setting.help
    if shows_default and (default := _default_in_words(declared)):
        text += f"  [default: {default}]"
    attributes: dict[str, Any] = {"group": setting.group, "help": text, "default": None}
    choices = list(setting.choices()) if setting.choices else []
    if declared.item_type is bool:
        return option(declared.flag, is_flag=True, **attributes)
    if declared.is_list:
        item = files.expanded if setting.is_path else declared.item_type
        attributes["type"] = CommaList(item, choices)
    else:
        attributes["type"] = OneOf(choices) if choices else declared.item_type
    return option(declared.flag, metavar=setting.metavar, **attributes)


def settings_options(
    config: type, names: Sequence[str] = (), *, shows_defaults: bool = True
) -> Callable[[Command], Command]:
    """The options of all declared settings of a dataclass, or of those with these names."""

    def decorate(command: Command) -> Command:
        for declared in reversed(list(declared_settings(config))):
            if not names or declared.name in names:
                command = setting_option(declared, shows_default=shows_defaults)(command)
        return command

    return decorate


config_option = option(
    "--config",
    type=UserPath(),
    metavar="FILE",
    help="YAML file of the same settings; flags win over it",
)

overwrite_option = option(
    "--overwrite", is_flag=True, help="delete the run in OUT first, and start afresh"
)

difficult_option = option(
    "--difficult",
    type=UserPath(),
    metavar="FILE",
    help="CSV file of image_id, class_name and difficult (0 or 1): adds statistics of the "
    "difficult pairs",
)

json_option = option("--json", "as_json", is_flag=True, help="print the result as JSON")

quiet_option = option("--quiet", is_flag=True, help="print nothing but errors")

out_argument = click.argument("out", type=UserPath(), metavar="OUT")

beam_argument = click.argument(
    "beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]"
)


def execution_options(*names: str) -> Callable[[Command], Command]:
    """The options of an `Execution`, or of its settings with these names."""
    return settings_options(Execution, names)


def run_config(config: str | None, flags: dict[str, Any]) -> RunConfig:
    """The settings of a run from a YAML file and flags; flags win.

    Raises:
        SettingsError: the file cannot be read, or a setting is wrong.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    settings = read_settings(Path(config)) if config else {}
    _check_no_flags(settings)
    return RunConfig.from_settings({**settings, **given})


def _check_no_flags(settings: Iterable[str]) -> None:
    """Check that a file has no option of this command that is no setting of a run."""
    context = click.get_current_context(silent=True)
    options = {each.name for each in context.command.params} if context else set()
    for name in options.intersection(settings) - {d.name for d in declared_settings(RunConfig)}:
        raise SettingsError(
            f"{name} decides nothing of what is written, so it cannot stand in the config file; "
            f"give --{str(name).replace('_', '-')}"
        )


def _default_in_words(declared: Declared) -> str:
    if declared.setting.otherwise:
        return declared.setting.otherwise
    if declared.default in (None, False, MISSING):
        return ""
    if declared.is_list:
        return ",".join(map(str, declared.default))
    if isinstance(declared.default, float):
        return f"{declared.default:g}"
    return str(declared.default)


def _unknown(param: click.Parameter | None, value: str, choices: Iterable[str]) -> str:
    what = param.name.replace("_", " ") if param and param.name else "name"
    return unknown_name(what, value, choices)
