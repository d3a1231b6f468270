"""Commit records: a shard exists when its json does.

The record `_meta/shards/N.json` is written last, after all files of the shard
(`pipeline.store.shard`). So a worker that dies leaves at most files without a record, which no
reader looks at and the next worker overwrites; two workers on one shard write equal bytes.
"""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import files
from pipeline.store import names
from pipeline.store.encoding import MapDtype

LISTED = ("variant", "method", "layer", "role")
"""The parts of a map's identity whose values a commit record lists."""

_READERS = 16  # threads that fetch commit records


@dataclass(frozen=True)
class CommittedFile:
    """One file of a shard, as it was when it was committed."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CommitRecord:
    """`_meta/shards/N.json`: what a shard holds.

    Attributes:
        index: of the shard.
        count: of the run's shards.
        run_id: of the run that wrote it.
        schema_version: of its tables.
        map_dtype: of the stored maps.
        maps: that the files hold.
        images: that were explained.
        errors: images that failed.
        lost_maps: maps that the errors cost.
        planned_maps: maps + lost_maps + unkept_maps.
        names: the variants, methods, layers and roles that occur, sorted.
        files: path in OUT -> its bytes and hash.
        versions: of the packages that decide the bytes.
        extra: timings, device and whatever else may differ between two equal shards.
        unkept_maps: maps that were scored and not kept.
    """

    index: int
    count: int
    run_id: str
    schema_version: str
    map_dtype: MapDtype
    maps: int
    images: int
    errors: int
    lost_maps: int
    planned_maps: int
    names: dict[str, list[str]]
    files: dict[str, CommittedFile]
    versions: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)
    unkept_maps: int = 0


def read_commit(out: str, index: int) -> CommitRecord | None:
    """The commit record of shard `index`; None where there is none, or none that can be read."""
    try:
        text = files.read_text(files.join(out, names.commit_file(index)))
        fields = json.loads(text)
        entries = {path: CommittedFile(**entry) for path, entry in fields["files"].items()}
        return CommitRecord(**{**fields, "files": entries})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_committed(out: str, index: int, run_id: str) -> bool:
    """Whether this run wrote shard `index` and all its files are there with their sizes."""
    record = read_commit(out, index)
    if record is None or record.run_id != run_id:
        return False
    expected = {files.join(out, path): entry.bytes for path, entry in record.files.items()}
    return files.sizes(expected) == expected


def committed(out: str) -> list[CommitRecord]:
    """All commit records, by index: one listing, and one small read per shard."""
    indexes = sorted(
        int(stem)
        for path in files.listing(out, names.COMMITS)
        if (stem := path.rsplit("/", 1)[1].removesuffix(".json")).isdecimal()
    )
    with ThreadPoolExecutor(_READERS) as pool:
        records = pool.map(lambda index: read_commit(out, index), indexes)
        return [record for record in records if record is not None]


def all_names(records: Iterable[CommitRecord], name: str) -> list[str]:
    """The variants, methods, layers or roles (one of `LISTED`) of all the shards, sorted."""
    return sorted({value for record in records for value in record.names[name]})


def problems_of(
    out: str, records: Sequence[CommitRecord], run_id: str, shard_count: int
) -> list[str]:
    """What keeps the records from being exactly the run's shards with all their files, in words."""
    problems = []
    own = {record.index for record in records if record.run_id == run_id}
    if absent := sorted(set(range(shard_count)) - own):
        problems.append(f"{len(absent)} of {shard_count} shards are missing: {_ranges(absent)}")
    foreign = sorted({r.index for r in records} - own | {i for i in own if i >= shard_count})
    if foreign:
        problems.append(f"shards of another run are in {out}: {_ranges(foreign)}")
    on_disk: dict[str, int] = {}
    for folder in {path.split("/")[0] for record in records for path in record.files}:
        on_disk |= files.listing(out, folder)
    for record in records:
        for path, entry in record.files.items():
            if path not in on_disk:
                problems.append(f"{path} is missing")
            elif on_disk[path] != entry.bytes:
                problems.append(f"{path} has {on_disk[path]} bytes, committed were {entry.bytes}")
    return problems


def _ranges(indexes: Sequence[int]) -> str:
    """`[0, 1, 2, 7]` -> `0-2, 7`."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
