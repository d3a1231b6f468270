"""`backlight evaluate`: scores and statistics of the maps."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    CommaList,
    GroupedCommand,
    OneOf,
    beam_argument,
    difficult_option,
    execution_options,
    json_option,
    option,
    out_argument,
    quiet_option,
    settings_options,
)
from pipeline.cli.output import (
    error_console,
    fault_printer,
    note,
    note_odd_objects,
    print_json,
    print_statistics,
)
from pipeline.config import DEVICES, RunConfig
from pipeline.settings import SCORES, WHERE
from pipeline.workers.execution import Execution

if TYPE_CHECKING:
    from pipeline.evaluate import Evaluation


@click.command(
    "evaluate", short_help="Score the maps and write the statistics.", cls=GroupedCommand
)
@option(
    "--metrics",
    group=SCORES,
    type=CommaList(),
    metavar="METRICS",
    help="names that `backlight metrics` lists  [default: the cheap ones that the run has maps "
    "for]",
)
@settings_options(RunConfig, ("upsample", "combine", "region"))
@difficult_option
@option(
    "--device",
    group=WHERE,
    type=OneOf(DEVICES),
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="what scores the maps: auto, cpu or cuda",
)
@option(
    "--replicates",
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="replicates of the bootstrap over images",
)
@execution_options("workers", "start_timeout", "stall_timeout")
@json_option
@quiet_option
@out_argument
@beam_argument
def command(
    out: str,
    beam_args: tuple[str, ...],
    workers: int | None,
    start_timeout: float | None,
    stall_timeout: float | None,
    metrics: tuple[str, ...] | None,
    upsample: tuple[str, ...] | None,
    combine: tuple[str, ...] | None,
    region: tuple[str, ...] | None,
    difficult: str | None,
    device: str,
    replicates: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score the maps in OUT, write scores/ and statistics/, and print the statistics."""
    from pipeline.progress import LOADING, RunProgress
    from pipeline.store import names
    from pipeline.workers.image_count import images_counted
    from pipeline.workers.stderr_aside import stderr_aside

    with stderr_aside() as stderr:
        console = error_console(quiet or as_json, stderr)
        with RunProgress(
            console, "evaluate", "images", lambda: images_counted(out, names.SCORED)
        ) as progress:
            progress.phase(LOADING)
            from pipeline.compare import findings
            from pipeline.evaluate import evaluate
            from pipeline.scores.layer_weights import from_scored_set

            result = evaluate(
                out,
                metrics=metrics,
                upsample=upsample,
                combine=combine,
                region=region,
                difficult=difficult,
                device=device,
                replicates=replicates,
                execution=Execution.given(
                    workers=workers,
                    beam_args=beam_args,
                    start_timeout=start_timeout,
                    stall_timeout=stall_timeout,
                ),
                on_phase=progress.phase,
                on_start=progress.start,
                on_poll=progress.poll,
                on_fault=fault_printer(console, stderr),
            )
            told: list[str] = []
            if not result.submitted:
                progress.finish()
                if not (quiet or as_json):
                    progress.phase("telling the methods apart")
                    told = findings(out)
    if as_json:
        print_json(_counts(result, out))
    elif result.submitted:
        note(quiet, f"{result.submitted}: the statistics will be in {out} when it has run")
    else:
        if result.shards < result.planned_shards:
            note(
                quiet,
                f"note: the run is not complete; these are {result.shards} of its "
                f"{result.planned_shards} shards",
            )
        if own := [name for name in combine or () if from_scored_set(name)]:
            note(quiet, f"note: the weights of {', '.join(own)} come from the set that is scored")
        note_odd_objects(quiet, result.odd_objects)
        if not quiet:
            print_statistics(out, result.statistics)
            for line in told:
                click.echo(line)


def _counts(result: "Evaluation", out: str) -> dict[str, Any]:
    """What `--json` prints: counts and paths."""
    from pipeline.cli.written_paths import STATISTICS_PATHS, written_paths

    rows = result.statistics
    return {
        "submitted": result.submitted,
        "shards": result.shards,
        "planned_shards": result.planned_shards,
        "images": max((row.images for row in rows), default=0),
        "metrics": list(dict.fromkeys(row.metric for row in rows)),
        "statistics": len(rows),
        "undefined_statistics": sum(math.isnan(row.value) for row in rows),
        **asdict(result.odd_objects),
        "paths": written_paths(out, {} if result.submitted else STATISTICS_PATHS),
    }
