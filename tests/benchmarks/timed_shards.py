"""Measures the CPU time of a run's shards, for the benchmarks."""

import time
from collections.abc import Iterator
from typing import ClassVar

from pipeline.generate import _ExplainShard


class TimedShards(_ExplainShard):
    """Adds up the CPU time of all threads while shards are explained and committed."""

    seconds: ClassVar[float] = 0.0

    def process(self, index: int) -> Iterator[int]:
        self._explainer()
        began = time.process_time()
        yield from super().process(index)
        TimedShards.seconds += time.process_time() - began
