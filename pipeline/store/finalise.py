"""The end of a run: it is checked, described, and marked as whole by `_SUCCESS`."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import files
from pipeline.errors import BacklightError
from pipeline.store import names, schemas
from pipeline.store.card import dataset_card
from pipeline.store.commit import CommittedFile, all_names, committed, entries_of, problems_of
from pipeline.store.formats import FORMATS
from pipeline.store.problems import Problem


class IncompleteRunError(BacklightError):
    """The run cannot be finalised: the message says what is missing and how to go on."""


def finalise(
    out: str,
    run_id: str,
    shard_count: int,
    planned_maps: int,
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check that the run is whole, describe it, and write `_SUCCESS`; returns `dataset_info.json`.

    `about` is what the dataset card says of the run (for instance Model, Source, Licence).

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
        "bytes": sum(entry.bytes for r in records for entry in r.files.values()),
        "formats": [name for name, f in FORMATS.items() if f.path(0, shard_count) in first.files],
        "map_dtype": first.map_dtype,
        **{f"{name}s": all_names(records, name) for name in first.names},
        "versions": first.versions,
        "conventions": schemas.CONVENTIONS,
        "about": dict(about or {}),
    }
    texts = {names.DATASET_INFO: json.dumps(info, indent=1), names.CARD: dataset_card(info)}
    for name, text in texts.items():
        files.write_text(out, name, text)
    remove_temporary(out)
    vouched = entries_of(out, _VOUCHED)
    mark = {"run_id": run_id, "files": {name: vars(entry) for name, entry in vouched.items()}}
    files.write_text(out, names.SUCCESS, json.dumps(mark, indent=1))
    remove_temporary(out)  # which was needed to write this
    return info


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


_VOUCHED = {names.MANIFEST: "manifest", names.DATASET_INFO: "finish", names.CARD: "finish"}
"""The files that `_SUCCESS` vouches for, and the kind of problem that each makes."""


def _finish(path: str, what: str) -> Problem:
    return Problem("finish", path, f"{path} {what}")
