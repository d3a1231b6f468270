"""The record of the last evaluation, `_meta/evaluation.json`: what the statistics are of.

It is written twice. At the start it has the settings alone: there are no statistics yet. At the end
it has also the bytes and the SHA-256 of each file of statistics, and of each file of scores that
they were added up from. So a reader knows whether the statistics are whole and of these settings
and scores; where they are not they are made again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names
from pipeline.store.commit import CommittedFile, entry_of
from pipeline.store.filters import Filters
from pipeline.store.parquet import read_rows
from pipeline.store.problems import Problem
from pipeline.store.small_files import fetched


def read_evaluation(out: str) -> dict[str, Any] | None:
    """The content of the record; None where there is none, or none that can be read."""
    try:
        found = json.loads(files.read_text(files.join(out, names.EVALUATION)))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def evaluation_settings(out: str) -> dict[str, Any] | None:
    """The settings of the last evaluation; None where there is no record."""
    found = read_evaluation(out)
    return found and {name: value for name, value in found.items() if name not in Evaluated._fields}


def begin_evaluation(out: str, settings: Mapping[str, Any]) -> None:
    """Say what the statistics will be of; those that are there are not counted any more."""
    files.write_text(out, names.EVALUATION, json.dumps(settings, indent=1))


def end_evaluation(
    out: str,
    settings: Mapping[str, Any],
    statistics: Mapping[str, CommittedFile],
    scored: Mapping[str, CommittedFile],
) -> None:
    """Say that the statistics are whole, and of which scores: path in OUT -> what it was."""
    written = {path: vars(entry) for path, entry in statistics.items()}
    of_scores = {path: vars(entry) for path, entry in scored.items()}
    content = {**settings, "statistics": written, "scored": of_scores}
    files.write_text(out, names.EVALUATION, json.dumps(content, indent=1))


def statistics_problems(out: str, *, by_hash: bool) -> list[Problem]:
    """What keeps the statistics from being whole and of the last evaluation and its scores.

    By the sizes of the files alone, or also by their SHA-256.
    """
    return _problems(out, read_evaluation(out), by_hash=by_hash)


def _problems(out: str, record: Mapping[str, Any] | None, *, by_hash: bool) -> list[Problem]:
    if record is None:
        return [_problem(names.EVALUATION, "is absent")]
    try:
        written, scored = _evaluated(record)
    except (KeyError, TypeError, AttributeError):
        return [_problem(names.EVALUATION, "says that the last evaluation broke off")]
    sizes = files.listing(out, names.SCORES)
    problems = []
    if other := sorted(sizes.keys() - scored.keys()):
        problems.append(_problem(names.EVALUATION, f"does not know {other[0]}"))
    for path, found in files.sizes(files.join(out, path) for path in written).items():
        sizes[path.removeprefix(files.join(out, ""))] = found
    whole = {}
    for path, entry in {**written, **scored}.items():
        kind = "scores" if path in scored and path in sizes else "statistics"
        if path not in sizes:
            problems.append(_problem(path, "is missing", kind))
        elif sizes[path] != entry.bytes:
            problems.append(_problem(path, f"has {sizes[path]} bytes of {entry.bytes}", kind))
        else:
            whole[path] = kind
    for path, content in fetched(out, whole) if by_hash else ():
        if entry_of(content) not in (written.get(path), scored.get(path)):
            problems.append(_problem(path, _OTHER_HASH, whole[path]))
    return problems


class Evaluated(NamedTuple):
    """The files of the last evaluation: path in OUT -> what it was.

    Attributes:
        statistics: of its statistics.
        scored: of the scores that they were added up from, in the order of the shards.
    """

    statistics: dict[str, CommittedFile]
    scored: dict[str, CommittedFile]


def evaluated(out: str) -> Evaluated:
    """The files of the last evaluation, which are there with their sizes.

    Raises:
        SettingsError: they are not, or the evaluation broke off, or there was none.
    """
    record = read_evaluation(out)
    if record is None:
        raise SettingsError(f"{out} has no statistics: run `backlight evaluate {out}` first")
    if problems := _problems(out, record, by_hash=False):
        raise _changed(out, problems[0])
    return _evaluated(record)


def read_evaluated(
    out: str,
    entries: Mapping[str, CommittedFile],
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
) -> Iterator[pa.Table]:
    """`read_rows` of each of these files of the last evaluation, whose SHA-256 is compared first.

    Memory: what is yielded, and the content of some 32 files.

    Raises:
        SettingsError: a file is not as it was.
    """
    for path, content in fetched(out, entries):
        if entry_of(content) != entries[path]:
            raise _changed(out, _problem(path, _OTHER_HASH))
        yield read_rows(files.join(out, path), columns, filters, content)


_OTHER_HASH = "has changed since the statistics were written (SHA-256)"


def _evaluated(record: Mapping[str, Any]) -> Evaluated:
    entries = (
        {path: CommittedFile(**entry) for path, entry in record[name].items()}
        for name in Evaluated._fields
    )
    return Evaluated(*entries)


def _changed(out: str, problem: Problem) -> SettingsError:
    return SettingsError(
        f"the last evaluation of {out} broke off, or its statistics have been changed "
        f"({problem}): run `backlight evaluate {out}` to its end"
    )


def _problem(path: str, what: str, kind: str = "statistics") -> Problem:
    return Problem(kind, path, f"{path} {what}")
