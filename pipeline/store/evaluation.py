"""The record of the last evaluation, `_meta/evaluation.json`: what the statistics are of.

It is written twice. At the start it has the settings alone: there are no statistics yet. At the end
it has also the bytes and the SHA-256 of each file of statistics, and of each file of scores that
they were added up from. So a reader knows whether the statistics are whole and of these settings
and scores; where they are not they are made again.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names
from pipeline.store.commit import CommittedFile
from pipeline.store.problems import Problem

_WRITTEN = ("statistics", "scored")


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
    return found and {name: value for name, value in found.items() if name not in _WRITTEN}


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
    record = read_evaluation(out)
    if record is None:
        return [_problem(names.EVALUATION, "is absent")]
    try:
        written, scored = (
            {path: CommittedFile(**entry) for path, entry in record[name].items()}
            for name in _WRITTEN
        )
    except (KeyError, TypeError, AttributeError):
        return [_problem(names.EVALUATION, "says that the last evaluation broke off")]
    sizes = files.listing(out, names.SCORES)
    problems = []
    if other := sorted(sizes.keys() - scored.keys()):
        problems.append(_problem(names.EVALUATION, f"does not know {other[0]}"))
    for path, found in files.sizes(files.join(out, path) for path in written).items():
        sizes[path.removeprefix(files.join(out, ""))] = found
    for path, entry in {**written, **scored}.items():
        kind = "scores" if path in scored and path in sizes else "statistics"
        if path not in sizes:
            problems.append(_problem(path, "is missing", kind))
        elif sizes[path] != entry.bytes:
            problems.append(_problem(path, f"has {sizes[path]} bytes of {entry.bytes}", kind))
        elif by_hash and files.hash_of(files.join(out, path)) != entry.sha256:
            what = "has changed since the statistics were written (SHA-256)"
            problems.append(_problem(path, what, kind))
    return problems


def check_statistics(out: str) -> None:
    """Check that the statistics are whole and of the last evaluation.

    Raises:
        SettingsError: they are not, or there are none.
    """
    if problems := statistics_problems(out, by_hash=True):
        if read_evaluation(out) is None:
            raise SettingsError(f"{out} has no statistics: run `backlight evaluate {out}` first")
        raise SettingsError(
            f"the last evaluation of {out} broke off, or its statistics have been changed "
            f"({problems[0]}): run `backlight evaluate {out}` to its end"
        )


def _problem(path: str, what: str, kind: str = "statistics") -> Problem:
    return Problem(kind, path, f"{path} {what}")
