"""The `backlight` command: one file per command, which parses, calls and prints.

Exit codes: 0 done, 1 the run broke off (run it again to go on), 2 a setting is wrong and nothing
was done, 3 too many images failed, 128 + N ended by signal N (130: interrupted).
"""

import io
import logging
import os
import sys
from importlib import import_module
from importlib.metadata import version

import click

from pipeline.cli.signals import end_on_signals, in_words
from pipeline.errors import BacklightError, SettingsError, Terminated, memory_told

COMMANDS = (
    *("demo", "generate", "plan", "evaluate", "compare", "report", "show", "export"),
    *("reproduce", "status", "verify"),
    *("methods", "metrics", "layers"),
)
"""The commands, each in a file of its name with a function `command`, as the help lists them."""


_LONGEST = 4000  # characters of a failure


class CommandsByFile(click.Group):
    """Imports the file of a command when that command is called, and of all for the help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of the help."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(f"pipeline.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with. A wrong one is answered with the nearest."""
        from transforms.names import unknown_name

        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            ctx.fail(unknown_name("command", args[0], known))
        return super().resolve_command(ctx, args)


@click.group(
    cls=CommandsByFile,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("backlight"), prog_name="backlight")
def backlight() -> None:
    """Datasets of saliency maps, for every method, layer and class, and their statistics."""


def main() -> None:
    """Run the command. An expected failure is one line on stderr and an exit code."""
    # Beam warns of every optional client that is not installed, needed or not.
    logging.getLogger().setLevel(logging.ERROR)
    end_on_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may be beyond the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with memory_told("--workers or --batch-size smaller, or ask for less at once"):
            code = backlight(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BacklightError as error:
        _fail(error, error.exit_code)
    except ImportError:
        _fail_where_a_module_hides_ours()
        raise
    except OSError as error:
        _fail(error, 1)
    except Terminated as error:
        _fail(in_words(error.number), 128 + error.number)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished shards are kept: run the same command again to go on", 130)


def _fail_where_a_module_hides_ours() -> None:
    """Name the user's module that was imported in the place of a package of Backlight."""
    from pipeline.shadowing import check_not_shadowed

    try:
        check_not_shadowed()
    except SettingsError as error:
        _fail(error, error.exit_code)


def _fail(message: object, code: int) -> None:
    text = str(message).encode(errors="backslashreplace").decode()  # a name may be no UTF-8
    if len(text) > _LONGEST:  # it quotes a file
        text = f"{text[:_LONGEST]} ... ({len(text) - _LONGEST} more characters)"
    click.echo(f"backlight: error: {text}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a pipeline that broke off would keep the interpreter from ending.
    os._exit(code)
