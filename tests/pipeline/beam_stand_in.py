"""Runs without Beam: its functions are called one after the other in this thread.

A pipeline on the local runner takes longer than all the rest of a small run. Tests that are about
what a run writes, and not about how it is run, use the fixture `without_beam`. What both write is
compared by tests that run several workers, which are always Beam's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pipeline.evaluate
import pipeline.generate
from pipeline.evaluate import ScoreMaps
from pipeline.generate import GenerateMaps
from pipeline.workers import runners
from pipeline.workers.beam_options import has_local_processes
from pipeline.workers.check_in import forget_check_ins


class _Taken:
    """Takes the transform that a pipeline would be made of."""

    def __or__(self, transform: Any) -> "_Taken":
        self.transform = transform
        return self


def straight(build: Any, job: Any, *rest: Any, **more: Any) -> None:
    """Run the transform of a pipeline in this thread, shard after shard."""
    if has_local_processes(job.options):
        runners.run(build, job, *rest, **more)
        return
    forget_check_ins(job.out)
    transform = build(_Taken()).transform
    if isinstance(transform, GenerateMaps):
        worker: Any = pipeline.generate._ExplainShard(
            transform.out, transform.scoring, transform.devices, transform.stall_timeout
        )
        shards = list(range(transform.shards))
    else:
        assert isinstance(transform, ScoreMaps)
        worker = pipeline.evaluate._ScoreShard(transform.out, transform.scoring, transform.devices)
        shards = list(transform.shards)
    worker.setup()
    try:
        for index in shards:
            list(worker.process(index))
    finally:
        worker.teardown()
    if isinstance(transform, ScoreMaps):
        settings = (transform.scoring, transform.replicates, transform.difficult)
        pipeline.evaluate._statistics(len(shards), transform.out, shards, *settings)
        return
    pipeline.generate._finalise(len(shards), transform.out, transform.max_error_rate)
    if transform.scoring:
        pipeline.generate._statistics(len(shards), transform.out, transform.scoring)


@contextmanager
def without_beam() -> Iterator[None]:
    """`straight` stands in the place of `run`."""
    with patch("pipeline.generate.run", straight), patch("pipeline.evaluate.run", straight):
        yield
