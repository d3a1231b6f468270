"""`backlight generate`: write the maps."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    GroupedCommand,
    beam_argument,
    config_option,
    execution_options,
    json_option,
    option,
    out_argument,
    overwrite_option,
    quiet_option,
    run_config,
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
from pipeline.config import RunConfig
from pipeline.notes import print_notes
from pipeline.workers.execution import Execution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.generate import RunSummary
    from pipeline.plan import Plan
    from pipeline.store.problems import Problem


@click.command("generate", short_help="Write the saliency maps of a dataset.", cls=GroupedCommand)
@settings_options(RunConfig)
@execution_options()
@config_option
@overwrite_option
@option(
    "--repair",
    is_flag=True,
    help="read every file of OUT first, as verify does, and make just the broken shards again",
)
@option(
    "--retry-errors",
    is_flag=True,
    help="try the images that failed again: make just their shards again",
)
@option(
    "--max-error-rate",
    type=float,
    default=0.01,
    show_default=True,
    metavar="SHARE",
    help="fail (exit 3) if more images than this share, and more than one, are bad",
)
@json_option
@quiet_option
@out_argument
@beam_argument
def command(
    out: str,
    beam_args: tuple[str, ...],
    workers: int | None,
    gpus: str | None,
    accelerator: str | None,
    start_timeout: float | None,
    stall_timeout: float | None,
    overwrite: bool,
    repair: bool,
    retry_errors: bool,
    max_error_rate: float,
    quiet: bool,
    as_json: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Write the saliency maps of a dataset to OUT.

    The same command again goes on with a run that broke off, makes again what a finished run has
    lost since, and does nothing where the run is complete.
    """
    asked = run_config(config, flags)
    execution = Execution.given(
        workers=workers,
        gpus=gpus,
        beam_args=beam_args,
        start_timeout=start_timeout,
        stall_timeout=stall_timeout,
        accelerator=accelerator,
    )

    from pipeline.progress import LOADING, RunProgress
    from pipeline.store import names
    from pipeline.store.problems import in_words
    from pipeline.workers.image_count import images_counted
    from pipeline.workers.stderr_aside import stderr_aside

    with stderr_aside() as stderr:
        console = error_console(quiet or as_json, stderr)
        with RunProgress(
            console, "generate", "images", lambda: images_counted(out, names.MADE)
        ) as progress:
            progress.phase(LOADING)
            from pipeline.generate import generate

            def found(problems: "Sequence[Problem]") -> None:
                what = f"made again, {in_words(problems)}"
                console.print(what, highlight=False, markup=False, soft_wrap=True)

            def start(plan: "Plan", before: int) -> None:
                console.print(
                    f"{plan.examples:,} images → {plan.planned_maps:,} maps in {plan.shards:,} "
                    f"shard{'s' * (plan.shards != 1)}, run {plan.run_id}",
                    highlight=False,
                )
                if plan.model.weights is None:
                    weights = f"weights: those that {plan.model.name} gives itself (no --weights)"
                    console.print(weights, highlight=False, markup=False, soft_wrap=True)
                photos = f"photos: {plan.input_in_words}"
                console.print(photos, highlight=False, markup=False, soft_wrap=True)
                print_notes(console, plan.notes)
                progress.start(plan.examples, before)

            summary = generate(
                asked,
                out,
                execution,
                overwrite=overwrite,
                repair=repair,
                retry_errors=retry_errors,
                on_found=found,
                max_error_rate=max_error_rate,
                on_phase=progress.phase,
                on_start=start,
                on_poll=progress.poll,
                on_fault=fault_printer(console, stderr),
            )
            if not summary.submitted:
                progress.finish()
    if as_json:
        print_json(_counts(summary, out))
    else:
        note(quiet, _in_words(summary, out))
        note_odd_objects(quiet, summary.odd_objects)
        if summary.statistics and not quiet:
            print_statistics(out, summary.statistics)


def _counts(summary: "RunSummary", out: str) -> dict[str, Any]:
    """What `--json` prints: counts and paths."""
    from pipeline.cli.written_paths import PLAN_PATHS, STATISTICS_PATHS, written_paths

    plan = summary.plan
    scored = summary.statistics is not None
    counted = ("images", "errors", "maps", "kept_maps", "bytes", "retried")
    return {
        "run_id": plan.run_id,
        "already_complete": summary.already_complete,
        "submitted": summary.submitted,
        **{name: getattr(summary, name) for name in counted},
        **asdict(summary.odd_objects),
        "planned_images": plan.examples,
        "planned_maps": plan.planned_maps,
        "shards": plan.shards,
        "classes": len(plan.class_names),
        "statistics": len(summary.statistics or ()),
        "notes": [str(note) for note in plan.notes],
        "found": [str(problem) for problem in summary.found],
        "paths": written_paths(out, PLAN_PATHS, STATISTICS_PATHS if scored else {}),
    }


def _in_words(summary: "RunSummary", out: str) -> str:
    from pipeline.report.amounts import in_bytes

    if summary.submitted:
        return (
            f"{summary.submitted}: its plan is in {out}, and its maps will be there when it has "
            f"run; backlight status {out} tells how far it is"
        )
    done = "nothing to do: this run is complete, with" if summary.already_complete else "wrote"
    kept = "" if summary.kept_maps == summary.maps else f" ({summary.kept_maps:,} kept)"
    if summary.retried:
        done = f"tried {summary.retried} images again; {done}"
    return (
        f"{done} {summary.maps:,} maps{kept} of {summary.images:,} images, "
        f"{in_bytes(summary.bytes)}; {summary.errors} images failed. {out}"
    )
