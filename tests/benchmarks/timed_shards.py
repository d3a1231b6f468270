"""Measures the CPU time of a run's shards, and of scoring them, for the benchmarks."""

import time
from collections.abc import Iterator
from typing import ClassVar

from pipeline.evaluate import _ScoreShard
from pipeline.generate import _ExplainShard


class TimedShards(_ExplainShard):
    """Adds up the CPU time of all threads while shards are explained and committed."""

    seconds: ClassVar[float] = 0.0

    def process(self, index: int) -> Iterator[int]:
        self._explainer()
        began = time.process_time()
        yield from super().process(index)
        TimedShards.seconds += time.process_time() - began


class TimedScoring(_ScoreShard):
    """Adds up the CPU time of all threads while stored maps are read and scored."""

    seconds: ClassVar[float] = 0.0

    def process(self, index: int) -> Iterator[int]:
        began = time.process_time()
        yield from super().process(index)
        TimedScoring.seconds += time.process_time() - began
