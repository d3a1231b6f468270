"""How often progress looks at the work."""

import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import RunProgress


@pytest.mark.parametrize(("look", "looks"), [(0.0, 200), (1.0, 5)])
def test_looking_takes_at_most_a_twentieth_of_the_time(
    look: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 100 seconds of a clock that each look sets forward."""
    now = 1000.0
    seen = 0

    def done() -> int:
        nonlocal now, seen
        now += look
        seen += 1
        return seen

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    run = RunProgress(Console(file=io.StringIO()), "generate", "images", done)
    run.start(10_000)
    while now < 1100:
        now += 0.125
        run.poll()
    assert looks - 2 <= seen <= looks + 2
