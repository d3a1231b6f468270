"""What a run takes on a GPU of each model, with some cores beside it.

A GPU makes the passes. Cores decode photos, encode and write maps, and score them where the run
does. Where they are too slow, the GPU waits for them.
"""

import math

from pipeline.estimate.costs import GpuCosts
from pipeline.estimate.gpus import GPUS


def gpu_costs(
    gpu: str,
    *,
    images: int,
    flops: float,
    cpu_seconds: float,
    share: float,
    cores: float,
    hours: float,
    price: float | None = None,
) -> GpuCosts:
    """The costs of `images` photos on one GPU with `cores` cores, to be done within `hours`.

    The passes take flops / (peak · share) seconds, the cores' work cpu_seconds / cores. Assumed:
    the two go on side by side and the work spreads over all cores, so that the longer of them is
    the time. Neither holds for one worker process, which decodes in threads but encodes, writes
    and scores between its passes, on one core: by turns it takes the sum of both.

    Args:
        gpu: a name of `GPUS`.
        images: how many photos the figures are of.
        flops: of their passes.
        cpu_seconds: CPU time of one core for the rest of the work.
        share: of the GPU's float32 peak that the passes reach.
        cores: beside each GPU.
        hours: how long the run may take.
        price: of an hour.
    """
    passes = flops / (GPUS[gpu].tflops * 1e12 * share)
    seconds = max(passes, cpu_seconds / cores)
    return GpuCosts(
        gpu=gpu,
        images_per_second=images / passes if passes else 0.0,
        cores=max(1, math.ceil(cpu_seconds / passes)) if passes else 0,
        waits=1 - passes / seconds if passes else 0.0,
        hours=seconds / 3600,
        by_turns_hours=(passes + cpu_seconds / min(1.0, cores)) / 3600,
        machines=math.ceil(seconds / 3600 / hours),
        price=None if price is None else seconds / 3600 * price,
    )
