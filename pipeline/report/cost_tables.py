"""What a run will cost as tables for the terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from pipeline.estimate.costs import Costs
from pipeline.estimate.gpus import GPUS
from pipeline.report.amounts import in_bytes, in_time


def cost_tables(costs: Costs) -> Iterator[Table]:
    """The run and its time here, its bytes, its hours by GPU, and the GPUs' peaks.

    None is wider than 100 columns.
    """
    yield _run(costs)
    yield _bytes(costs)
    yield _gpus(costs)
    yield _peaks()


def _run(costs: Costs) -> Table:
    table = _table(
        f"run {costs.run_id}",
        f"Measured: {costs.measured.images} photos, "
        f"{in_time(costs.measured.seconds)} on {costs.measured.device}"
        + (f"; {costs.measured.errors} more cannot be read" if costs.measured.errors else "")
        + ". Not included: imports and Beam, some seconds per worker. "
        + _about_scoring(costs),
    )
    table.add_column("", no_wrap=True)
    table.add_column("whole run", justify="right")
    table.add_column("left to do", justify="right")
    for name, whole, left in (
        ("images", costs.images, costs.images_left),
        ("maps", costs.maps, costs.maps_left),
        ("shards", costs.shards, costs.shards_left),
    ):
        table.add_row(name, f"{whole:,}", f"{left:,}")
    if costs.kept_maps < costs.maps:
        table.add_row("maps to keep", f"{costs.kept_maps:,}", "")
    engine = costs.engine_seconds / costs.seconds if costs.seconds else 0.0
    scoring = in_time(costs.score_seconds)
    scoring_here = [("  scoring, in CPU time", scoring)] if costs.scores_in_run else []
    scoring_later = (
        [("scoring afterwards, by backlight evaluate, in CPU time", scoring)]
        if costs.metrics and not costs.scores_in_run
        else []
    )
    for name, value in (
        ("FLOPs, forward and backward", f"{costs.flops:.3g}"),
        ("time of one worker here", in_time(costs.seconds)),
        ("  in CPU time", in_time(costs.cpu_seconds)),
        ("  the share of the passes", f"{engine:.0%}"),
        ("  decoding, encoding, writing, in CPU time", in_time(costs.rest_seconds)),
        *scoring_here,
        (f"time of {costs.workers} workers here", in_time(costs.elapsed_seconds)),
        ("time per shard", in_time(costs.shard_seconds)),
        ("time of the longest shard", in_time(costs.longest_shard_seconds)),
        ("start: make the plan, load the model", in_time(costs.start_seconds)),
        *scoring_later,
    ):
        if costs.workers > 1 or not name.startswith("time of 1 "):
            table.add_row(name, "", value)
    return table


def _bytes(costs: Costs) -> Table:
    table = _table("files of the whole run")
    table.add_column("", no_wrap=True)
    table.add_column("bytes", justify="right")
    table.add_column("per map", justify="right")
    table.add_column("in this run")
    for name, size in costs.bytes.items():
        by_map = (
            ""
            if name in ("images", "errors", "scores")
            else in_bytes(size / (costs.kept_maps or costs.maps))
        )
        table.add_row(name, in_bytes(size), by_map, "yes" if name in costs.written else "")
    table.add_row("this run", in_bytes(sum(costs.bytes[name] for name in costs.written)))
    return table


def _gpus(costs: Costs) -> Table:
    cores = _cores(costs.cores_per_gpu)
    table = _table(
        f"what is left, on GPUs with {cores} each",
        f"Assumed: the passes reach {costs.gpu_share:.0%} of the peak in float32 without tensor "
        "cores (--gpu-share; TF32 is off). Beside them, and spread over all cores of a GPU "
        f"(--cores-per-gpu), everything else takes {_rest(costs)} of CPU time, as measured here. "
        "GPU hours: whichever of the two takes longer; prices and numbers of GPUs are by them. "
        "One process per GPU does not reach that: it encodes, writes and scores between the "
        "passes, on one core. 'By turns' is the most that it takes. "
        f"{_gpu_scoring(costs)}{_waiting(costs)}"
        "For better figures run backlight plan on a machine with such a GPU.",
    )
    table.add_column("GPU", no_wrap=True)
    for heading in (
        *("photos\nper second", "cores that\nkeep up", f"waits with\n{cores}"),
        *("GPU\nhours", "hours\nby turns", f"GPUs\nfor {costs.hours:g} h", "price"),
    ):
        table.add_column(heading, justify="right")
    for row in costs.gpus:
        table.add_row(
            row.gpu,
            _figure(row.images_per_second),
            _figure(row.cores),
            _per_cent(row.waits),
            _from_hundredths(row.hours, _figure(row.hours)),
            _from_hundredths(row.by_turns_hours, _figure(row.by_turns_hours)),
            _figure(row.machines),
            "" if row.price is None else _from_hundredths(row.price, f"{row.price:,.2f}"),
        )
    return table


def _waiting(costs: Costs) -> str:
    waiting = sum(row.waits > 0 for row in costs.gpus)
    if not waiting:
        return ""
    work = "decode, encode, write and score" if costs.scores_in_run else "decode, encode and write"
    which = (
        "all of these GPUs wait" if waiting == len(costs.gpus) else f"{waiting} of these GPUs wait"
    )
    return (
        f"Too few cores: {_cores(costs.cores_per_gpu)} {work} "
        f"{_figure(costs.core_images_per_second)} photos per second, so {which} for them. "
    )


def _peaks() -> Table:
    table = _table("the GPUs")
    table.add_column("GPU", no_wrap=True)
    for heading in ("TFLOP/s", "memory"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for name, gpu in GPUS.items():
        table.add_row(name, f"{gpu.tflops:g}", f"{gpu.memory} GB", gpu.source)
    return table


def _about_scoring(costs: Costs) -> str:
    if costs.scoring_refused:
        return f"backlight evaluate would refuse these settings: {costs.scoring_refused}"
    by = ", ".join(costs.metrics)
    if costs.scores_in_run:
        return f"Scored in the run, by {by}; the statistics come on top."
    return (
        f"Scoring afterwards is not in the time of the run: by {by}; the start of evaluate and its "
        "statistics come on top."
    )


def _gpu_scoring(costs: Costs) -> str:
    if not costs.scores_in_run:
        return "Scoring is not included. "
    if costs.measured.on_gpu:
        return "Scoring ran on the GPU here, and counts by the CPU time of its process meanwhile. "
    return (
        "On a GPU a run with --evaluate scores there as well (unless --device is cpu): that is "
        "not measured here, so scoring counts by what it takes on these cores. "
    )


def _rest(costs: Costs) -> str:
    scoring = costs.score_seconds if costs.scores_in_run else 0.0
    return in_time(costs.rest_seconds + scoring)


def _cores(count: float) -> str:
    return f"{_figure(count)} core" + "s" * (count != 1)


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _from_hundredths(value: float, text: str) -> str:
    return "< 0.01" if 0 < value < 0.01 else text


def _figure(value: float) -> str:
    """Three figures, and all digits of a number from 100 to a million."""
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _table(title: str, caption: str | None = None) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
