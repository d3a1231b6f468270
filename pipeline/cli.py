"""The ``backlight`` command: parses, calls and prints; no logic of its own.

Exit codes: 0 done, 1 the run broke off (run it again to go on), 2 a setting is wrong and nothing
was done, 3 too many images failed, 130 interrupted.
"""

import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console

from pipeline.config import (
    CHANNEL_ORDERS,
    DEVICES,
    FORMATS,
    KEEP,
    MAP_DTYPES,
    ROLES,
    RunConfig,
    read_settings,
)
from pipeline.errors import BacklightError, SettingsError
from pipeline.report.sizes import in_bytes

# Torch and Beam take seconds to import: a command imports what it needs when it is called, so that
# help and a wrong flag answer at once.
if TYPE_CHECKING:
    from pipeline.plan import Plan
    from transforms.metrics.statistics import Statistic

Command = Callable[..., Any]

_SETTINGS: tuple[tuple[str, str], ...] = (
    ("source", "format of the dataset: voc, coco, imagefolder, table"),
    ("root", "folder of the dataset"),
    ("split", "part of the dataset, where the format has parts"),
    ("annotations", "annotation file, as given or relative to the root"),
    ("model", "a torchvision classifier, or module:factory"),
    ("weights", "a state-dict file, a torchvision enum, or random:SEED"),
    ("num-classes", "classes of the model's head, where not its default"),
    (
        "fully-convolutional",
        "classify at every location of a photo of any shape: torchvision's vgg and resnet families",
    ),
    ("class-map", "dataset classes → model classes: voc, coco, none, or a JSON file"),
    ("class-index", "names (and synsets) of the model's classes: voc, coco, or a file"),
    ("layers", "module names, input, or the presets stages, last, convs  [stages]"),
    ("methods", "names (see backlight methods) or rule:extract:aggregate"),
    ("targets", f"classes to explain: {ROLES}  [label,top,least]"),
    ("variants", "models to explain: base, meta, meta(lr=X), cascade, cascade(LAYER)  [base]"),
    (
        "seed",
        "what a score at every location counts for: onehot_sum (1 each), or pointing (softmax over "
        "the locations)  [onehot_sum]",
    ),
    (
        "preprocess",
        "center_crop, stretch, shortest_side (voc, coco), shortest_side_aliased  [center_crop]",
    ),
    ("input-size", "pixels of the network's input  [224]"),
    ("channel-order", f"of the network's input: {', '.join(CHANNEL_ORDERS)}  [rgb]"),
    ("mean", "of the normalisation, three numbers in the channel order  [ImageNet's]"),
    ("std", "of the normalisation, three numbers in the channel order  [ImageNet's]"),
    ("format", f"{', '.join(FORMATS)}  [parquet]"),
    ("map-dtype", f"{', '.join(MAP_DTYPES)}  [float16]"),
    ("shard-size", "images a shard  [16 to 128, by the size of the set]"),
    ("batch-size", "images a batch  [8]"),
    ("device", f"{', '.join(DEVICES)}  [auto]"),
    ("limit", "only the first so many images"),
    (
        "evaluate",
        "metrics to score the maps by while they are in memory, as backlight metrics lists them",
    ),
    (
        "upsample",
        "with --evaluate, how maps are brought to pixels: bilinear, receptive-field  [bilinear]",
    ),
    (
        "combine",
        "with --evaluate, layer combinations to score as well: sum or product, a colon, and "
        "uniform, linear or a JSON file of weights",
    ),
    ("keep", f"with --evaluate, which maps to keep: {KEEP}  [all]"),
)
_OPEN = (
    *("root", "split", "annotations", "model", "weights", "num-classes", "class-map"),
    *("class-index", "input-size", "channel-order", "mean", "std", "map-dtype", "shard-size"),
    *("batch-size", "device", "limit"),
)
_SWITCHES = ("fully-convolutional",)
_INTEGERS = ("num-classes", "input-size", "shard-size", "batch-size", "limit")


def _setting(name: str, text: str) -> Callable[[Command], Command]:
    if name in _SWITCHES:
        return click.option(f"--{name}", is_flag=True, default=None, help=text)
    return click.option(f"--{name}", type=int if name in _INTEGERS else str, help=text)


def _run_settings(command: Command) -> Command:
    for name, text in reversed(_SETTINGS):
        command = _setting(name, text)(command)
    return click.option(
        "--config", type=click.Path(path_type=Path), help="the same settings in a YAML file"
    )(command)


def _own_settings(command: Command) -> Command:
    """Those that the protocol of ``reproduce`` leaves open; its defaults are its own."""
    for name, text in reversed(_SETTINGS):
        if name in _OPEN:
            command = _setting(name, text.partition("  [")[0])(command)
    return command


_difficult = click.option(
    "--difficult",
    metavar="FILE",
    help="CSV of image_id, class_name, difficult (0 or 1): statistics of the difficult pairs, too",
)


_start_timeout = click.option(
    "--start-timeout",
    type=float,
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="for a job server: cancel a job that has no worker after so long; 0: wait for ever, and "
    "do not check from here whether the workers can be reached",
)


def _run_options(command: Command) -> Command:
    for decorate in (
        click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]"),
        click.argument("out", metavar="OUT"),
        click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
        click.option("--quiet", is_flag=True, help="print nothing but errors"),
    ):
        command = decorate(command)
    return command


_workers = click.option("--workers", type=int, default=1, show_default=True, help="local processes")


def _devices(command: Command) -> Command:
    for decorate in (
        click.option("--gpus", metavar="all|0,1", help="GPUs to use, one local process each"),
        click.option("--workers", type=int, help="local processes  [1, or one a GPU of --gpus]"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("backlight"), prog_name="backlight")
def backlight() -> None:
    """Datasets of saliency maps, for every method, layer and class, and their statistics."""


@backlight.command("plan")
@_run_settings
@_devices
@click.option("--sample", type=int, default=8, show_default=True, help="photos to measure")
@click.option(
    "--hours", type=float, default=24, show_default=True, help="in which the run is to be done"
)
@click.option(
    "--gpu-share",
    type=float,
    default=0.25,
    show_default=True,
    help="of a GPU's float32 peak, assumed",
)
@click.option("--price", "prices", multiple=True, metavar="GPU=PRICE", help="of an hour; repeat")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@click.argument("out", metavar="OUT")
def plan_costs(
    out: str,
    workers: int | None,
    gpus: str | None,
    sample: int,
    hours: float,
    gpu_share: float,
    prices: tuple[str, ...],
    as_json: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """What generate would cost with these settings: maps, bytes, FLOPs, hours. Writes nothing.

    A few photos are explained and written to a temporary folder, and what that takes is scaled up.
    """
    run_config = _run_config(config, flags)

    from pipeline.costs import estimate, parse_prices
    from pipeline.report.costs import cost_tables

    costs = estimate(
        run_config,
        out,
        workers=workers,
        gpus=gpus,
        sample=sample,
        hours=hours,
        gpu_share=gpu_share,
        prices=parse_prices(prices),
    )
    if as_json:
        _print_json(asdict(costs))
        return
    for table in cost_tables(costs):
        _wide_console().print(table)


@backlight.command("generate")
@_run_settings
@click.option("--overwrite", is_flag=True, help="start afresh: delete the run in OUT first")
@click.option(
    "--max-error-rate",
    type=float,
    default=0.01,
    show_default=True,
    help="fail (exit 3) when more images than this share, and more than one, are bad",
)
@click.option(
    "--accelerator",
    metavar="HINT",
    help="a GPU of Dataflow for each worker that explains, such as "
    "'type:nvidia-l4;count:1;install-nvidia-driver'",
)
@_devices
@_start_timeout
@_run_options
def generate_maps(
    out: str,
    beam_args: tuple[str, ...],
    workers: int | None,
    gpus: str | None,
    overwrite: bool,
    max_error_rate: float,
    accelerator: str | None,
    start_timeout: float,
    quiet: bool,
    as_json: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """Write the saliency maps of a dataset to OUT, or go on with a run that broke off."""
    run_config = _run_config(config, flags)

    from pipeline.generate import generate
    from pipeline.report.progress import RunProgress
    from pipeline.runners import stderr_aside
    from pipeline.store import files, names

    def images_done() -> int:
        done = len(files.listing(out, names.COMMITS))
        return done * (plans[0].config.shard_size or 0)

    plans: list[Plan] = []
    with (
        stderr_aside() as stderr,
        RunProgress(
            console := _console(quiet or as_json, stderr), "generate", "images", images_done
        ) as progress,
    ):

        def start(plan: "Plan") -> None:
            plans.append(plan)
            console.print(
                f"{plan.examples:,} images → {plan.planned_maps:,} maps in {plan.shards:,} shards, "
                f"run {plan.run_id}",
                highlight=False,
            )
            progress.start(plan.examples)

        summary = generate(
            run_config,
            out,
            workers=workers,
            gpus=gpus,
            beam_args=beam_args,
            overwrite=overwrite,
            max_error_rate=max_error_rate,
            accelerator=accelerator,
            start_timeout=start_timeout,
            on_start=start,
            on_poll=progress.poll,
        )
    if as_json:
        _print_json(
            {
                **asdict(summary),
                "plan": json.loads(summary.plan.to_json()),
                "statistics": _stored_statistics(out) if summary.statistics else None,
            }
        )
        return
    if summary.submitted:
        _console(quiet).print(
            f"{summary.submitted}: its plan is in {out}, and the maps will be when it has run; "
            f"backlight status {out} tells how far it is",
            highlight=False,
            soft_wrap=True,
        )
        return
    done = "nothing to do: this run is complete, with" if summary.already_complete else "wrote"
    kept = "" if summary.kept_maps == summary.maps else f" ({summary.kept_maps:,} kept)"
    _console(quiet).print(
        f"{done} {summary.maps:,} maps{kept} of {summary.images:,} images, "
        f"{in_bytes(summary.bytes)}; "
        f"{summary.errors} images failed. {out}",
        highlight=False,
        soft_wrap=True,
    )
    if summary.statistics and not quiet:
        _print_statistics(out, summary.statistics)


@backlight.command("evaluate")
@click.option(
    "--metrics",
    help="comma-separated names, as backlight metrics lists them  [the cheap ones that the run has "
    "maps for]",
)
@_difficult
@click.option(
    "--upsample",
    help="how maps are brought to pixels: bilinear, receptive-field, or both with a comma  "
    "[bilinear]",
)
@click.option(
    "--combine",
    help="layer combinations to score as well: sum or product, a colon, and uniform, linear, "
    "spread, sensitivity or a JSON file of weights; such as sum:uniform,product:linear",
)
@click.option(
    "--replicates", type=int, default=1000, show_default=True, help="of the bootstrap over images"
)
@_workers
@_start_timeout
@_run_options
def evaluate_maps(
    out: str,
    beam_args: tuple[str, ...],
    workers: int,
    metrics: str | None,
    upsample: str | None,
    difficult: str | None,
    combine: str | None,
    replicates: int,
    start_timeout: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score the maps in OUT; write scores/ and statistics/, and print the statistics."""
    from pipeline.combinations import OWN_SET
    from pipeline.evaluate import evaluate
    from pipeline.report.progress import RunProgress
    from pipeline.runners import stderr_aside
    from pipeline.scoring import scored_shards

    with (
        stderr_aside() as stderr,
        RunProgress(
            _console(quiet or as_json, stderr), "evaluate", "shards", lambda: scored_shards(out)
        ) as progress,
    ):
        result = evaluate(
            out,
            metrics=[name.strip() for name in metrics.split(",")] if metrics else None,
            upsamplings=upsample.split(",") if upsample else None,
            combine=combine.split(",") if combine else None,
            difficult=difficult,
            replicates=replicates,
            workers=workers,
            beam_args=beam_args,
            start_timeout=start_timeout,
            on_start=progress.start,
            on_poll=progress.poll,
        )
    if result.submitted:
        if as_json:
            _print_json(asdict(result))
        _console(quiet or as_json).print(
            f"{result.submitted}: the statistics will be in {out} when it has run",
            highlight=False,
            soft_wrap=True,
        )
        return
    if as_json:
        _print_json({**asdict(result), "statistics": _stored_statistics(out)})
        return
    if result.shards < result.planned_shards:
        _console(quiet).print(
            f"note: the run is not complete; these are {result.shards} of its "
            f"{result.planned_shards} shards"
        )
    own = [name for name in (combine or "").split(",") if name.partition(":")[2] in OWN_SET]
    if own:
        _console(quiet).print(
            f"note: the weights of {', '.join(own)} come from the very set that is scored"
        )
    if not quiet:
        _print_statistics(out, result.statistics)


@backlight.command("reproduce")
@click.argument("benchmark", metavar="voc07|coco14")
@_own_settings
@click.option("--parts", help="comma-separated: input, excitation, layers, meta  [all]")
@_difficult
@click.option("--overwrite", is_flag=True, help="start afresh: delete the runs in OUT first")
@_workers
@_run_options
def reproduce_figures(
    benchmark: str,
    out: str,
    beam_args: tuple[str, ...],
    parts: str | None,
    difficult: str | None,
    workers: int,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """The paper's pointing game on your data and weights, beside the published figures.

    Whole photos, a fully convolutional model, seed pointing. The runs are in OUT/input,
    OUT/excitation, OUT/layers and OUT/meta; the same command again goes on where it stopped. A
    model of the dataset's own classes is taken for one fine-tuned in Caffe, with input in BGR and
    0 to 255; --channel-order, --mean and --std say otherwise.
    """
    from pipeline.report.figures import figures_table
    from pipeline.reproduce import protocol, reproduce
    from pipeline.runners import stderr_aside

    resolved = protocol(benchmark, settings, parts.split(",") if parts else None)
    with stderr_aside() as stderr:
        figures = reproduce(
            resolved,
            out,
            _console(quiet or as_json, stderr),
            difficult=difficult,
            workers=workers,
            beam_args=beam_args,
            overwrite=overwrite,
        )
    if as_json:
        rows = [{**asdict(figure), "difference": figure.difference} for figure in figures]
        _print_json({"benchmark": benchmark, "notes": resolved.notes, "figures": rows})
    elif not quiet:
        _wide_console().print(figures_table(resolved, figures))


@backlight.command()
@click.argument("out", metavar="[OUT]", default="backlight-demo")
@click.option("--quiet", is_flag=True, help="print nothing but errors")
def demo(out: str, quiet: bool) -> None:
    """Made-up photos, a small CNN trained on them, its maps and their statistics: no downloads."""
    from pipeline.demo.run import findings, run_demo

    console = _console(quiet)
    result = run_demo(Path(out), lambda line: console.print(line, highlight=False))
    if not quiet:
        _print_statistics(os.path.join(out, "maps"), result.statistics)
        click.echo(f"\n{textwrap.fill(findings(result), 100)}")


@backlight.command()
@click.argument("out", metavar="OUT")
@click.argument("image_id", metavar="IMAGE_ID")
@click.option("--role", help=f"classes to show: {ROLES}  [label, or else top]")
@click.option("--methods", help="comma-separated names, the rows from top to bottom  [all]")
@click.option("--layers", help="comma-separated names, the columns  [all]")
@click.option("--variant", default="base", show_default=True, help="of the model")
@click.option(
    "--upsample",
    default="bilinear",
    show_default=True,
    help="how maps are brought to pixels: bilinear or receptive-field",
)
@click.option("--grid", is_flag=True, help="every extract × aggregate instead, computed here")
@click.option("--output", help="file to write  [OUT/pictures/IMAGE_ID.png]")
def show(
    out: str,
    image_id: str,
    role: str | None,
    methods: str | None,
    layers: str | None,
    variant: str,
    upsample: str,
    grid: bool,
    output: str | None,
) -> None:
    """Draw the maps of one image over its photo, as a PNG; prints its path."""
    if grid and (methods or variant != "base"):
        raise SettingsError("--grid has its own methods, for the base model: leave these out")

    from pipeline.report.pictures import picture_of_extracts, picture_of_maps, save

    columns = layers.split(",") if layers else None
    if grid:
        picture = picture_of_extracts(out, image_id, role=role, layers=columns, upsampling=upsample)
    else:
        rows = methods.split(",") if methods else None
        picture = picture_of_maps(
            out,
            image_id,
            role=role,
            methods=rows,
            layers=columns,
            variant=variant,
            upsampling=upsample,
        )
    if picture.note:
        click.echo(f"note: {picture.note}", err=True)
    click.echo(save(out, picture, output))


@backlight.command()
@click.argument("out", metavar="OUT")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def status(out: str, as_json: bool) -> None:
    """How far the run in OUT is; works from any shell while it runs."""
    from pipeline.plan import read_plan
    from pipeline.scoring import scored_shards
    from pipeline.store import files, names
    from pipeline.store.commit import committed

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
        "maps": sum(record.maps + record.unkept_maps for record in records),
        "planned_maps": plan.planned_maps,
        "bytes": sum(entry.bytes for record in records for entry in record.files.values()),
        "worker_seconds": round(sum(record.extra["seconds"]["total"] for record in records), 1),
        "scored_shards": scored_shards(out),
    }
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):15} {in_bytes(value) if name == 'bytes' else value}")


@backlight.command()
@click.argument("out", metavar="OUT")
def verify(out: str) -> None:
    """Read every file in OUT and compare it with what was committed; exit 1 if any differs."""
    from pipeline.store.commit import verify as find_problems

    problems = find_problems(out)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    click.echo(f"{out}: every file is as it was committed")


@backlight.command()
def methods() -> None:
    """List the named methods; any rule:extract:aggregate is one too."""
    from rich.table import Table

    from transforms.methods import METHODS

    table = Table("method", "is", "source")
    for method in METHODS.values():
        table.add_row(method.name, method.formula, method.source)
    Console().print(table)


@backlight.command()
def metrics() -> None:
    """List the metrics; * marks those that evaluate computes where none are named."""
    from rich.table import Table

    from transforms.metrics import METRICS

    table = Table("metric", "is", "source")
    for name, metric in METRICS.items():
        table.add_row(f"{name} *" if metric.default else name, metric.description, metric.source)
    Console().print(table)


@backlight.command()
@click.argument("model", metavar="MODEL")
@click.option("--input-size", type=int, default=224, show_default=True)
def layers(model: str, input_size: int) -> None:
    """List the layers of MODEL that give a feature map; * marks those of the preset stages."""
    from rich.table import Table

    from pipeline.models import ModelSpec, layer_shapes, resolve_layers

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
    # Beam warns of every optional client that is not installed, needed or not.
    logging.getLogger().setLevel(logging.ERROR)
    try:
        code = backlight(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BacklightError as error:
        _fail(error, error.exit_code)
    except OSError as error:
        _fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; finished shards are kept: run the same command again to go on", 130)


def _run_config(config: Path | None, flags: dict[str, Any]) -> RunConfig:
    given = {name: value for name, value in flags.items() if value is not None}
    return RunConfig.from_settings({**(read_settings(config) if config else {}), **given})


def _fail(message: object, code: int) -> None:
    click.echo(f"backlight: error: {message}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of a pipeline that broke off would keep the interpreter from ending.
    os._exit(code)


def _console(quiet: bool, stderr: TextIO | None = None) -> Console:
    return Console(file=stderr, stderr=True, quiet=quiet)


def _wide_console() -> Console:
    # A pipe has no width to fit into.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _stored_statistics(out: str) -> Any:
    """The rows as they are stored: nan is not JSON."""
    from pipeline.store import files, names

    return json.loads(files.read_text(files.join(out, names.STATISTICS_JSON)))


def _print_statistics(out: str, statistics: "Sequence[Statistic]") -> None:
    from pipeline.plan import read_plan
    from pipeline.report.tables import statistics_tables
    from pipeline.store import names

    console = _wide_console()
    for table in statistics_tables(statistics, read_plan(out).config.layers):
        console.print(table)
    click.echo(f"all statistics: {out}/{names.STATISTICS_CSV}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))
