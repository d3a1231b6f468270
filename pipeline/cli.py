"""The ``backlight`` command: parses, calls and prints; no logic of its own.

Exit codes: 0 done, 1 the run broke off (run it again to go on), 2 a setting is wrong and nothing
was done, 3 too many images failed, 130 interrupted.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

# Beam warns of every optional client that is not installed, needed or not.
logging.getLogger().setLevel(logging.ERROR)

from pipeline import evaluate as evaluation  # noqa: E402
from pipeline import generate as generation  # noqa: E402
from pipeline.classes import CLASS_MAPS  # noqa: E402
from pipeline.config import (  # noqa: E402
    DEVICES,
    FORMATS,
    MAP_DTYPES,
    ROLES,
    RunConfig,
    SettingsError,
    read_settings,
)
from pipeline.demo.run import run_demo  # noqa: E402
from pipeline.images import PREPROCESS  # noqa: E402
from pipeline.models import ModelSpec, layer_shapes, resolve_layers  # noqa: E402
from pipeline.plan import Plan, read_plan  # noqa: E402
from pipeline.report.progress import RunProgress  # noqa: E402
from pipeline.report.tables import statistics_tables  # noqa: E402
from pipeline.runners import WorkerDiedError  # noqa: E402
from pipeline.sources import SOURCES  # noqa: E402
from pipeline.store import files, names  # noqa: E402
from pipeline.store.commit import committed  # noqa: E402
from pipeline.store.commit import verify as find_problems
from transforms.methods import METHODS  # noqa: E402
from transforms.metrics import METRICS  # noqa: E402

Command = Callable[..., Any]

_SETTINGS: tuple[tuple[str, str], ...] = (
    ("source", f"format of the dataset: {', '.join(SOURCES)}"),
    ("root", "folder of the dataset"),
    ("split", "part of the dataset, where the format has parts"),
    ("annotations", "annotation file, as given or relative to the root"),
    ("model", "a torchvision classifier, or module:factory"),
    ("weights", "a state-dict file, a torchvision enum, or random:SEED"),
    ("num-classes", "classes of the model's head, where not its default"),
    ("class-map", f"dataset classes → model classes: {', '.join(CLASS_MAPS)}, none, or a JSON file"),
    ("class-index", "names (and synsets) of the model's classes: a JSON or text file"),
    ("layers", "module names, input, or the presets stages and last  [stages]"),
    ("methods", "names (see backlight methods) or rule:extract:aggregate"),
    ("targets", f"classes to explain: {ROLES}  [label,top,least]"),
    ("preprocess", f"{', '.join(PREPROCESS)}  [center_crop; voc and coco: shortest_side]"),
    ("input-size", "pixels of the network's input  [224]"),
    ("mean", "of the normalisation, three numbers  [ImageNet's]"),
    ("std", "of the normalisation, three numbers  [ImageNet's]"),
    ("format", f"{', '.join(FORMATS)}  [parquet]"),
    ("map-dtype", f"{', '.join(MAP_DTYPES)}  [float16]"),
    ("shard-size", "images a shard  [16 to 128, by the size of the set]"),
    ("batch-size", "images a batch  [8]"),
    ("device", f"{', '.join(DEVICES)}  [auto]"),
    ("limit", "only the first so many images"),
)
_INTEGERS = ("num-classes", "input-size", "shard-size", "batch-size", "limit")


def _run_settings(command: Command) -> Command:
    for name, text in reversed(_SETTINGS):
        kind = int if name in _INTEGERS else str
        command = click.option(f"--{name}", type=kind, help=text)(command)
    return click.option(
        "--config", type=click.Path(path_type=Path), help="the same settings in a YAML file"
    )(command)


def _run_options(command: Command) -> Command:
    for decorate in (
        click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]"),
        click.argument("out", metavar="OUT"),
        click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        click.option("--quiet", is_flag=True, help="print nothing but errors"),
        click.option("--workers", type=int, default=1, show_default=True, help="local processes"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("backlight"), prog_name="backlight")
def backlight() -> None:
    """Datasets of saliency maps, for every method, layer and class, and their statistics."""


@backlight.command()
@_run_settings
@click.option("--overwrite", is_flag=True, help="start afresh: delete the run in OUT first")
@click.option(
    "--max-error-rate",
    type=float,
    default=0.01,
    show_default=True,
    help="fail (exit 3) when more images than this share, and more than one, are bad",
)
@_run_options
def generate(
    out: str,
    beam_args: tuple[str, ...],
    workers: int,
    overwrite: bool,
    max_error_rate: float,
    quiet: bool,
    as_json: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """Write the saliency maps of a dataset to OUT, or go on with a run that broke off."""
    given = {name: value for name, value in flags.items() if value is not None}
    run_config = RunConfig.from_settings({**(read_settings(config) if config else {}), **given})
    console = _console(quiet or as_json)

    def images_done() -> int:
        done = len(files.listing(out, names.COMMITS))
        return done * (plans[0].config.shard_size or 0)

    plans: list[Plan] = []
    with RunProgress(console, "generate", "images", images_done) as progress:

        def start(plan: Plan) -> None:
            plans.append(plan)
            console.print(
                f"{plan.examples:,} images → {plan.planned_maps:,} maps in {plan.shards:,} shards, "
                f"run {plan.run_id}",
                highlight=False,
            )
            progress.start(plan.examples)

        summary = generation.generate(
            run_config,
            out,
            workers=workers,
            beam_args=beam_args,
            overwrite=overwrite,
            max_error_rate=max_error_rate,
            on_start=start,
            on_poll=progress.poll,
        )
    if as_json:
        _print_json({**asdict(summary), "plan": json.loads(summary.plan.to_json())})
        return
    done = "nothing to do: this run is complete, with" if summary.already_complete else "wrote"
    console.print(
        f"{done} {summary.maps:,} maps of {summary.images:,} images, {_size(summary.bytes)}; "
        f"{summary.errors} images failed. {out}",
        highlight=False,
        soft_wrap=True,
    )


@backlight.command()
@click.option("--metrics", help=f"{', '.join(METRICS)}  [all that the run has maps for]")
@click.option(
    "--replicates", type=int, default=1000, show_default=True, help="of the bootstrap over images"
)
@_run_options
def evaluate(
    out: str,
    beam_args: tuple[str, ...],
    workers: int,
    metrics: str | None,
    replicates: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score the maps in OUT; write scores/ and statistics/, and print the statistics."""
    console = _console(quiet or as_json)
    with RunProgress(
        console, "evaluate", "shards", lambda: evaluation.scored_shards(out)
    ) as progress:
        result = evaluation.evaluate(
            out,
            metrics=metrics.split(",") if metrics else None,
            replicates=replicates,
            workers=workers,
            beam_args=beam_args,
            on_start=progress.start,
            on_poll=progress.poll,
        )
    if as_json:
        _print_json(asdict(result))
        return
    if result.shards < result.planned_shards:
        console.print(
            f"note: the run is not complete; these are {result.shards} of its "
            f"{result.planned_shards} shards"
        )
    if not quiet:
        _print_statistics(out, result)


@backlight.command()
@click.argument("out", metavar="[OUT]", default="backlight-demo")
@click.option("--quiet", is_flag=True, help="print nothing but errors")
def demo(out: str, quiet: bool) -> None:
    """Made-up photos, a small CNN trained on them, its maps and their statistics: no downloads."""
    console = _console(quiet)
    result = run_demo(out, console.print)
    if not quiet:
        _print_statistics(os.path.join(out, "maps"), result)


@backlight.command()
@click.argument("out", metavar="OUT")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def status(out: str, as_json: bool) -> None:
    """How far the run in OUT is; works from any shell while it runs."""
    plan = read_plan(out)
    records = [record for record in committed(out) if record.run_id == plan.run_id]
    found = {
        "run_id": plan.run_id,
        "complete": files.exists(files.join(out, names.SUCCESS)),
        "shards": len(records),
        "planned_shards": plan.shards,
        "images": sum(record.images for record in records),
        "errors": sum(record.errors for record in records),
        "planned_images": plan.examples,
        "maps": sum(record.maps for record in records),
        "planned_maps": plan.planned_maps,
        "bytes": sum(entry.bytes for record in records for entry in record.files.values()),
        "worker_seconds": sum(record.extra["seconds"]["total"] for record in records),
        "scored_shards": evaluation.scored_shards(out),
    }
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        shown = _size(value) if name == "bytes" else f"{value:,.1f}" if type(value) is float else value
        click.echo(f"{name.replace('_', ' '):15} {shown}")


@backlight.command()
@click.argument("out", metavar="OUT")
def verify(out: str) -> None:
    """Read every file in OUT and compare it with what was committed; exit 1 if any differs."""
    problems = find_problems(out)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    click.echo(f"{out}: every file is as it was committed")


@backlight.command()
def methods() -> None:
    """List the named methods; any rule:extract:aggregate is one too."""
    table = Table("method", "is", "source")
    for method in METHODS.values():
        table.add_row(method.name, method.formula, method.source)
    Console().print(table)


@backlight.command()
@click.argument("model", metavar="MODEL")
@click.option("--input-size", type=int, default=224, show_default=True)
def layers(model: str, input_size: int) -> None:
    """List the layers of MODEL that give a feature map, with its size; * marks the preset stages."""
    network = ModelSpec(model, None if ":" in model else "random:0").load()
    try:
        stages = resolve_layers(network, model, ["stages"])
    except SettingsError:
        stages = ()
    table = Table("layer", "module", "channels × height × width")
    for name, (kind, shape) in layer_shapes(network, input_size).items():
        table.add_row(f"{name} *" if name in stages else name, kind, " × ".join(map(str, shape)))
    Console().print(table)


def main() -> None:
    """Run the command; an expected failure is one line on stderr and an exit code."""
    try:
        code = backlight(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SettingsError as error:
        _fail(error, 2)
    except generation.TooManyErrorsError as error:
        _fail(error, 3)
    except (WorkerDiedError, OSError) as error:
        _fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished shards are kept: run the same command again to go on", 130)


def _fail(message: object, code: int) -> None:
    click.echo(f"backlight: error: {message}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a pipeline that broke off would keep the interpreter from ending.
    os._exit(code)


def _console(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet)


def _print_statistics(out: str, result: evaluation.Evaluation) -> None:
    for table in statistics_tables(result.statistics, read_plan(out).config.layers):
        Console().print(table)
    click.echo(f"all statistics: {out}/{names.STATISTICS_CSV}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
