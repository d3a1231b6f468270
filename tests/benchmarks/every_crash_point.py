"""Break every command at every operation on the disk, in every way, and run it again.

    uv run python tests/benchmarks/every_crash_point.py [--every N] [--step NAME]
    uv run --group object-stores python tests/benchmarks/every_crash_point.py --store s3 [--every N]

With `--store` (s3 or gs) OUT is on a server of this machine, and every request is broken instead.

Prints the table fault × step. Exit 1 where a point loses maps or ends with other bytes than an
undisturbed run. With `--every N` only every N-th point.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), *(str(TESTS / f) for f in ("", "pipeline", "pipeline/store"))]

import crash_points  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from broken_requests import FAULTS, hashed, outcome_of_request, requests_of  # noqa: E402
from crash_points import Outcome, Step, table  # noqa: E402
from crash_steps import breakable, steps  # noqa: E402


@dataclass(frozen=True)
class Place:
    """Where OUT is, and what breaks there.

    Attributes:
        steps: the commands.
        faults: how an operation can fail.
        operations_of: the kinds of a command's operations, in their order, when nothing fails.
        contents: of OUT, to compare.
        outcome_of: a step, the number and kind of an operation, a fault, and the contents that are
            expected -> what became of it.
    """

    steps: list[Step]
    faults: Sequence[str]
    operations_of: Callable[[Step], list[str]]
    contents: Callable[[], dict[str, str]]
    outcome_of: Callable[[Step, int, str, str, dict[str, str]], Outcome]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--step")
    parser.add_argument("--store", choices=("s3", "gs"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter(), time.process_time()
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        breakable(),
        on_store(asked.store, Path(folder)) if asked.store else on_disk(Path(folder)) as place,
    ):
        for step in place.steps:
            if asked.step not in (None, step.name):
                continue
            operations = place.operations_of(step)
            expected = place.contents()
            points = [(at, kind, f) for f in place.faults for at, kind in enumerate(operations)]
            for at, kind, fault in points[:: asked.every]:
                try:
                    found = place.outcome_of(step, at, kind, fault, expected)
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


@contextmanager
def on_disk(folder: Path) -> Iterator[Place]:
    out = folder / "out"
    yield Place(
        steps(folder),
        tuple(crash_points.FAULTS),
        lambda step: crash_points.operations_of(step, out),
        lambda: crash_points.contents(out),
        lambda step, *point: crash_points.outcome_of(step, out, *point),
    )


@contextmanager
def on_store(name: str, folder: Path) -> Iterator[Place]:
    from store_servers import SERVERS

    with pytest.MonkeyPatch.context() as patch, SERVERS[name](patch) as server:
        out = f"{server.url}/out"

        def contents() -> dict[str, str]:
            return hashed(server.contents("out"))

        yield Place(
            steps(folder, lambda out, source: server.fill("out", source)),
            FAULTS,
            lambda step: requests_of(step, out),
            contents,
            lambda step, *point: outcome_of_request(step, out, contents, *point),
        )


if __name__ == "__main__":
    main()
