"""`backlight reproduce`: the paper's pointing game on the user's data."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    CommaList,
    GroupedCommand,
    beam_argument,
    difficult_option,
    execution_options,
    json_option,
    option,
    out_argument,
    overwrite_option,
    quiet_option,
    settings_options,
)
from pipeline.cli.output import error_console, fault_printer, print_json, table_console
from pipeline.config import RunConfig
from pipeline.workers.execution import Execution

if TYPE_CHECKING:
    from pipeline.reproduce import Figure

LEFT_OPEN = (
    *("root", "split", "annotations", "model", "weights", "weights_key", "num_classes"),
    *(
        "class_map",
        "class_index",
        "input_size",
        "channel_order",
        "mean",
        "std",
        "map_dtype",
        "shard_size",
    ),
    *("batch_size", "device", "limit"),
)
"""The settings that the protocol leaves to the user; it has defaults of its own for them."""


@click.command(
    "reproduce", short_help="Run the paper's pointing game on your data.", cls=GroupedCommand
)
@click.argument("benchmark", metavar="voc07|coco14")
@settings_options(RunConfig, LEFT_OPEN, shows_defaults=False)
@option(
    "--parts",
    type=CommaList(),
    metavar="PARTS",
    help="input, excitation, layers, meta  [default: all]",
)
@difficult_option
@overwrite_option
@execution_options("workers")
@json_option
@quiet_option
@out_argument
@beam_argument
def command(
    benchmark: str,
    out: str,
    beam_args: tuple[str, ...],
    workers: int | None,
    parts: tuple[str, ...] | None,
    difficult: str | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run the paper's pointing game on your data and weights, beside the published figures.

    Whole photos, a fully convolutional model, output gradient pointing. The runs are in OUT/input,
    OUT/excitation, OUT/layers and OUT/meta. The same command again goes on where it stopped. A
    model of the dataset's own classes is taken for one that was fine-tuned in Caffe, with input in
    BGR and from 0 to 255; --channel-order, --mean and --std say otherwise.
    """
    from pipeline.report.figure_table import figures_table
    from pipeline.reproduce import protocol, reproduce
    from pipeline.workers.stderr_aside import stderr_aside

    resolved = protocol(benchmark, settings, parts)
    with stderr_aside() as stderr:
        console = error_console(quiet or as_json, stderr)
        figures = reproduce(
            resolved,
            out,
            console,
            on_fault=fault_printer(console, stderr),
            difficult=difficult,
            execution=Execution.given(workers=workers, beam_args=beam_args),
            overwrite=overwrite,
        )
    if as_json:
        figures_as_rows = [_row(figure) for figure in figures]
        print_json({"benchmark": benchmark, "notes": resolved.notes, "figures": figures_as_rows})
    elif not quiet:
        table_console().print(figures_table(resolved, figures))


def _row(figure: "Figure") -> dict[str, Any]:
    """A figure as JSON has it: the facts of its key stand beside its own."""
    own = {name: value for name, value in vars(figure).items() if name != "key"}
    return {**figure.key._asdict(), **own, "difference": figure.difference}
