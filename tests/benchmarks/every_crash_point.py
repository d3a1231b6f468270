"""Break every command at every operation on the disk, in every way, and run it again.

    uv run python tests/benchmarks/every_crash_point.py [--every N] [--step NAME]

Prints the table fault × step. Exit 1 where a point loses maps or ends with other bytes than an
undisturbed run. With `--every N` only every N-th point.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "pipeline")]

import torch  # noqa: E402
from crash_points import FAULTS, Outcome, contents, operations_of, outcome_of, table  # noqa: E402
from crash_steps import breakable, steps  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--step")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter(), time.process_time()
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        breakable(),
    ):
        for step in steps(Path(folder)):
            if asked.step not in (None, step.name):
                continue
            out = Path(folder) / "out"
            operations = operations_of(step, out)
            expected = contents(out)
            points = [(at, kind, fault) for fault in FAULTS for at, kind in enumerate(operations)]
            for at, kind, fault in points[:: asked.every]:
                try:
                    found = outcome_of(step, out, at, kind, fault, expected)
                except Exception as error:
                    print(f"{step.name}, {kind} {at}, {fault}: {type(error).__name__}: {error}")
                    found = Outcome(step.name, kind, fault, "", step.maps, False, 0.0)
                if found.lost or not found.equal:
                    print(f"{step.name}, {kind} {at}, {fault}: {found}", flush=True)
                outcomes.append(found)
            print(f"{step.name}: {len(operations)} operations", flush=True)
    print(table(outcomes))
    seconds = time.perf_counter() - began[0]
    cpu = time.process_time() - began[1]
    bad = [o for o in outcomes if o.lost or not o.equal]
    print(f"{len(outcomes)} points, {len(bad)} bad; {seconds:.0f} s, {cpu:.0f} s of CPU")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
