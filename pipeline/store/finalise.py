"""The end of a run: it is checked, described, and marked as whole by `_SUCCESS`."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from pipeline import files
from pipeline.errors import BacklightError, UnreadableFileError
from pipeline.store import names, schemas
from pipeline.store.card import dataset_card
from pipeline.store.commit import CommittedFile, all_names, committed, entries_of, problems_of
from pipeline.store.croissant import croissant
from pipeline.store.formats import FORMATS
from pipeline.store.parquet import count_rows
from pipeline.store.problems import Problem


class IncompleteRunError(BacklightError):
    """The run cannot be finalised: the message says what is missing and how to go on."""


def finalise(
    out: str,
    run_id: str,
    shard_count: int,
    planned_maps: int,
    about: Mapping[str, str] | None = None,
    today: date | None = None,
) -> dict[str, Any]:
    """Check that the run is whole, describe it, and write `_SUCCESS`; returns `dataset_info.json`.

    `about` is what the dataset card says of the run (for instance Model, Source). `today` is the
    day on which the run is finished, in UTC; a run that was finished before keeps its day.

    Raises:
        IncompleteRunError: when a shard is missing, or maps + lost maps are not `planned_maps`.
    """
    records = committed(out)
    if problems := problems_of(out, records, run_id, shard_count):
        raise IncompleteRunError(f"{problems[0]}; run the same command again to write what is left")
    if not files.exists(files.join(out, names.MANIFEST)):
        raise IncompleteRunError(f"{names.MANIFEST} is missing; run the same command again")
    maps, lost = sum(r.maps for r in records), sum(r.lost_maps for r in records)
    unkept = sum(r.unkept_maps for r in records)
    if (found := maps + lost + unkept) != planned_maps:
        raise IncompleteRunError(
            f"{maps} maps written, {unkept} not kept and {lost} lost to errors make {found}, but "
            f"the plan has {planned_maps}; the plan and the shards are not of one run: start "
            "afresh with --overwrite"
        )
    first = records[0]
    info = {
        "schema_version": schemas.SCHEMA_VERSION,
        "run_id": run_id,
        "shards": shard_count,
        "images": sum(r.images for r in records),
        "maps": maps,
        "errors": sum(r.errors for r in records),
        "lost_maps": lost,
        "unkept_maps": unkept,
        "planned_maps": planned_maps,
        "first_shard_with_maps": next((r.index for r in records if r.maps), 0),
        "bytes": sum(entry.bytes for r in records for entry in r.files.values()),
        "formats": [name for name, f in FORMATS.items() if f.path(0, shard_count) in first.files],
        "map_dtype": first.map_dtype,
        **{f"{name}s": all_names(records, name) for name in first.names},
        "versions": first.versions,
        "conventions": schemas.CONVENTIONS,
        "about": dict(about or {}),
    }
    info["finished"] = _finished_before(out, run_id) or str(today or datetime.now(UTC).date())
    texts = {names.DATASET_INFO: json.dumps(info, indent=1), **_descriptions(out, info)}
    for name, text in texts.items():
        files.write_text(out, name, text)
    remove_temporary(out)
    vouched = entries_of(out, _VOUCHED)
    mark = {"run_id": run_id, "files": {name: vars(entry) for name, entry in vouched.items()}}
    files.write_text(out, names.SUCCESS, json.dumps(mark, indent=1))
    remove_temporary(out)  # which was needed to write this
    return info


def describe(out: str) -> None:
    """Write the card and `croissant.json` again for the tables that are there now.

    Called when scores and statistics have been written. `_SUCCESS` then vouches for the new ones;
    a command that breaks off between the two leaves a difference, which `finish_problems` names
    and the same command ends. Nothing is done where the run is not finalised, or broken.
    """
    try:
        mark = json.loads(files.read_text(files.join(out, names.SUCCESS)))
        info = json.loads(files.read_text(files.join(out, names.DATASET_INFO)))
        vouched = dict(mark["files"])
        if not vouched.keys() >= _VOUCHED.keys():
            return
        texts = _descriptions(out, info)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return
    for name, text in texts.items():
        content = text.encode()
        vouched[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if vouched == mark["files"]:
        return
    for name, text in texts.items():
        files.write_text(out, name, text)
    files.write_text(out, names.SUCCESS, json.dumps({**mark, "files": vouched}, indent=1))


def _descriptions(out: str, info: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the files that describe OUT to other programs, by path."""
    present = _tables_with_rows(out, info)
    return {names.CARD: dataset_card(info, present), names.CROISSANT: croissant(info, present)}


def _tables_with_rows(out: str, info: Mapping[str, Any]) -> set[str]:
    """The names of the tables that a reader finds rows in; many readers refuse one without rows."""
    counts = {
        **{FORMATS[name].folder: info["maps"] for name in info["formats"]},
        names.IMAGES: info["images"],
        names.ERRORS: info["errors"],
        "manifest": info["images"] + info["errors"],
    }
    for folder in (names.SCORES, "statistics"):
        listed = files.listing(out, folder)
        counts[folder] = any(_rows(files.join(out, path)) for path in listed)
    return {name for name, count in counts.items() if count}


def _rows(path: str) -> int:
    """The rows of a Parquet file; 0 where it cannot be read, which `verify` tells."""
    try:
        return count_rows(path)
    except (OSError, UnreadableFileError):
        return 0


def _finished_before(out: str, run_id: str) -> str:
    """The day on which this run was finished first, if it was."""
    try:
        info = json.loads(files.read_text(files.join(out, names.DATASET_INFO)))
        return str(date.fromisoformat(info["finished"])) if info["run_id"] == run_id else ""
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def finish_problems(out: str, run_id: str, *, by_hash: bool) -> list[Problem]:
    """What of the files that `_SUCCESS` vouches for is not as it was; by size, or by SHA-256."""
    try:
        mark = json.loads(files.read_text(files.join(out, names.SUCCESS)))
        found = {path: CommittedFile(**entry) for path, entry in mark["files"].items()}
    except FileNotFoundError:
        return [_finish(names.SUCCESS, "is absent: the run has not been finalised")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [_finish(names.SUCCESS, "is broken: it cannot be read")]
    if mark.get("run_id") != run_id:
        return [_finish(names.SUCCESS, f"is of another run ({mark.get('run_id')})")]
    problems = []
    if missing := _VOUCHED.keys() - found.keys():
        what = f"is broken: it does not name {', '.join(sorted(missing))}"
        problems.append(_finish(names.SUCCESS, what))
    sizes = files.sizes(files.join(out, path) for path in found)
    for path, entry in found.items():
        kind, place = _VOUCHED.get(path, "finish"), files.join(out, path)
        if place not in sizes:
            problems.append(Problem(kind, path, f"{path} is missing"))
        elif sizes[place] != entry.bytes:
            what = f"{path} has {sizes[place]} bytes, written were {entry.bytes}"
            problems.append(Problem(kind, path, what))
        elif by_hash and files.hash_of(place) != entry.sha256:
            problems.append(Problem(kind, path, f"{path} has changed since then (SHA-256)"))
    return problems


def lost_since(out: str, run_id: str, shard_count: int) -> list[Problem]:
    """What a run that was finished has lost since, by one listing per folder and sizes alone."""
    return [
        *problems_of(out, committed(out), run_id, shard_count),
        *finish_problems(out, run_id, by_hash=False),
    ]


def remove_temporary(out: str, kept: str = "") -> None:
    """Delete `_tmp` with what crashed workers left; call it only while no worker writes.

    Files in the folder `kept` of it stay.
    """
    folder = files.join(out, names.TEMPORARY)
    if not (kept and files.listing(out, kept)):
        files.delete(folder)
        return
    for name in list(files.below(folder)):
        path = f"{names.TEMPORARY}/{name}"
        if not path.startswith(f"{kept}/"):
            files.delete(files.join(out, path))


_VOUCHED = {
    names.MANIFEST: "manifest",
    **dict.fromkeys((names.DATASET_INFO, names.CARD, names.CROISSANT), "finish"),
}
"""The files that `_SUCCESS` vouches for, and the kind of problem that each makes."""


def _finish(path: str, what: str) -> Problem:
    return Problem("finish", path, f"{path} {what}")
