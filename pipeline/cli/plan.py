"""`backlight plan`: what a run would cost."""

from dataclasses import asdict
from typing import Any

import click

from pipeline.cli.options import (
    GroupedCommand,
    config_option,
    execution_options,
    json_option,
    option,
    out_argument,
    quiet_option,
    run_config,
    settings_options,
)
from pipeline.cli.output import error_console, note, print_json, table_console
from pipeline.config import RunConfig
from pipeline.workers.execution import Execution


@click.command("plan", short_help="Estimate what generate would cost.", cls=GroupedCommand)
@settings_options(RunConfig)
@execution_options("workers", "gpus")
@config_option
@option("--sample", type=int, default=8, show_default=True, metavar="N", help="photos to measure")
@option(
    "--hours",
    type=float,
    default=24,
    show_default=True,
    help="how long the run may take, to count the GPUs that it needs",
)
@option(
    "--gpu-share",
    type=float,
    default=0.25,
    show_default=True,
    metavar="SHARE",
    help="share of a GPU's float32 peak that the passes are assumed to reach",
)
@option(
    "--cores-per-gpu",
    type=float,
    metavar="N",
    help="cores beside each GPU, which decode, encode, write and score  [default: this machine's "
    "cores per worker]",
)
@option(
    "--price",
    "prices",
    multiple=True,
    metavar="GPU=PRICE",
    help="price of one hour of a GPU, such as L4=0.70; can be given several times",
)
@json_option
@quiet_option
@out_argument
def command(
    out: str,
    workers: int | None,
    gpus: str | None,
    sample: int,
    hours: float,
    gpu_share: float,
    cores_per_gpu: float | None,
    prices: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    config: str | None,
    **flags: Any,
) -> None:
    """Estimate what generate would cost: maps, bytes, FLOPs, hours. Writes nothing to OUT.

    A few photos are explained, scored and written to a temporary folder, and what that takes is
    scaled up.
    """
    asked = run_config(config, flags)

    from pipeline.progress import LOADING, RunProgress

    with RunProgress(error_console(quiet or as_json), "plan", "images") as progress:
        progress.phase(LOADING)
        from pipeline.estimate.estimation import estimate
        from pipeline.estimate.gpus import parse_prices
        from pipeline.report.cost_tables import cost_tables

        costs = estimate(
            asked,
            out,
            Execution.given(workers=workers, gpus=gpus),
            sample=sample,
            hours=hours,
            gpu_share=gpu_share,
            cores_per_gpu=cores_per_gpu,
            prices=parse_prices(prices),
            on_phase=progress.phase,
            on_start=progress.start,
            on_photo=progress.add,
        )
        progress.finish()
    if as_json:
        print_json(asdict(costs))
        return
    if quiet:
        return
    note(False, f"photos: {costs.input}")
    for found in costs.notes:
        note(False, f"note: {found}")
    for table in cost_tables(costs):
        table_console().print(table)
