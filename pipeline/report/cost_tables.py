"""What a run will cost as tables for the terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from pipeline.estimate.costs import Costs
from pipeline.estimate.gpus import GPUS
from pipeline.report.amounts import in_bytes, in_time


def cost_tables(costs: Costs) -> Iterator[Table]:
    """Three tables: the run and its time here, its bytes by format, its hours by GPU."""
    yield _run(costs)
    yield _bytes(costs)
    yield _gpus(costs)


def _run(costs: Costs) -> Table:
    table = _table(
        f"run {costs.run_id}",
        f"Measured: {costs.measured.images} photos, "
        f"{in_time(costs.measured.seconds)} on {costs.measured.device}"
        + (f"; {costs.measured.errors} more cannot be read" if costs.measured.errors else "")
        + ". Not included: imports and Beam, some seconds per worker.",
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
    for name, value in (
        ("FLOPs, forward and backward", f"{costs.flops:.3g}"),
        ("time of one worker here", in_time(costs.seconds)),
        ("  in CPU time", in_time(costs.cpu_seconds)),
        ("  the share of the passes", f"{engine:.0%}"),
        (f"time of {costs.workers} workers here", in_time(costs.elapsed_seconds)),
        ("time per shard", in_time(costs.shard_seconds)),
        ("time of the longest shard", in_time(costs.longest_shard_seconds)),
        ("start: make the plan, load the model", in_time(costs.start_seconds)),
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
    table = _table(
        "what is left, on GPUs",
        f"Assumed: the passes reach {costs.gpu_share:.0%} of the peak in float32 without tensor "
        "cores (--gpu-share; TF32 is off), and everything else takes the CPU time measured here. "
        "For better figures run backlight plan on a machine with such a GPU.",
    )
    table.add_column("GPU", no_wrap=True)
    for heading in ("TFLOP/s", "memory", "GPU hours", f"GPUs for {costs.hours:g} h", "price"):
        table.add_column(heading, justify="right")
    table.add_column("source")
    for row in costs.gpus:
        gpu = GPUS[row.gpu]
        price = "" if row.price is None else f"{row.price:,.2f}"
        table.add_row(
            row.gpu,
            f"{gpu.tflops:g}",
            f"{gpu.memory} GB",
            f"{row.hours:,.3g}",
            f"{row.machines:,}",
            price,
            gpu.source,
        )
    return table


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
