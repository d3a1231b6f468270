"""A command that breaks at any operation on the disk loses nothing: run again, it ends as ever.

A sample of the points; `tests/benchmarks/every_crash_point.py` breaks at all of them.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from crash_points import FAULTS, contents, operations_of, outcome_of, table
from crash_steps import breakable, steps

EVERY = 53  # of about 4,200 points


@pytest.mark.slow
def test_a_broken_command_that_is_run_again_ends_with_the_same_bytes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    outcomes = []
    with breakable():
        for step in steps(tmp_path):
            out = tmp_path / "out"
            operations = operations_of(step, out)
            expected = contents(out)
            assert {*operations} == {"rename", "open", "fsync", "mkdir", "remove"}
            points = [(at, kind, fault) for fault in FAULTS for at, kind in enumerate(operations)]
            for at, kind, fault in points[len(outcomes) % 7 :: EVERY]:
                outcomes.append(outcome_of(step, out, at, kind, fault, expected))
    record_property("table", table(outcomes))
    assert [o for o in outcomes if o.lost or not o.equal] == []
    assert {o.ended for o in outcomes} >= {"EndedError", "OSError"}
    assert len({(o.step, o.fault) for o in outcomes}) == 6 * len(FAULTS)
