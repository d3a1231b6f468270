"""What has to be made again is given up, so that the run that goes on makes just that.

A shard is given up by deleting its commit record: it is then as if it had never been written. The
files stay until the new ones replace them, for the hashes of the photos that they were made of.
"""

from collections.abc import Iterable

from pipeline import files
from pipeline.store import names
from pipeline.store.clear import of_shards
from pipeline.store.commit import committed
from pipeline.store.parquet import read_rows
from pipeline.store.problems import PROBLEM_KINDS, REPAIR, Problem


def give_up(out: str, problems: Iterable[Problem]) -> None:
    """Give up the shards and the scores that have problems, and delete leftover files.

    A leftover that has no name of a run's file stays: it is the user's.
    """
    faults = [problem for problem in problems if problem.is_fault]
    if any(PROBLEM_KINDS[problem.kind].remedy == REPAIR for problem in faults):
        files.delete_for_good(files.join(out, names.SUCCESS))
    if any(problem.kind in ("scores", "statistics") for problem in faults):
        files.delete_for_good(files.join(out, names.EVALUATION))
    for index in {problem.shard for problem in faults if problem.shard is not None}:
        files.delete_for_good(files.join(out, names.commit_file(index)))
    ours = set(of_shards(out))
    for problem in faults:
        stray = problem.kind == "leftover" and problem.path in ours
        if stray or problem.kind == "scores":
            files.delete_for_good(files.join(out, problem.path))


def give_up_failed(out: str) -> int:
    """Give up the shards with images that failed; returns how many images these are.

    An image whose annotation is broken is not counted: it would fail again.
    """
    found = 0
    for record in committed(out):
        if not record.errors:
            continue
        path = names.shard_file(names.ERRORS, record.index, record.count)
        stages = read_rows(files.join(out, path), ["stage"])["stage"].to_pylist()
        if again := sum(stage != "plan" for stage in stages):
            files.delete_for_good(files.join(out, names.SUCCESS))
            files.delete_for_good(files.join(out, names.commit_file(record.index)))
            found += again
    return found
