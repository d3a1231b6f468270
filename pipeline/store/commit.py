"""Commit records: a shard exists when its json does.

The record `_meta/shards/N.json` is written last, after all files of the shard
(`pipeline.store.shard`). So a worker that dies leaves at most files without a record, which no
reader looks at and the next worker overwrites; two workers on one shard write equal bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.store import names
from pipeline.store.encoding import MapDtype
from pipeline.store.problems import Problem

LISTED = ("variant", "method", "layer", "role")
"""The parts of a map's identity whose values a commit record lists."""


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

    def to_json(self) -> str:
        """The content of the file."""
        return json.dumps(asdict(self), indent=1)


def read_commit(out: str, index: int) -> CommitRecord | None:
    """The commit record of shard `index`; None where there is none, or a broken one.

    Raises:
        OSError: whether there is one is not known: the store or the network fails.
    """
    path = files.join(out, names.commit_file(index))
    try:
        text = files.read_text(path)
        fields = files.parsed_json(text)
        entries = {path: CommittedFile(**entry) for path, entry in fields["files"].items()}
        record = CommitRecord(**{**fields, "files": entries})
        return record if _is_sound(record, index) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not files.is_broken(path, error):
            raise
        return None


def is_committed(out: str, index: int, run_id: str) -> bool:
    """Whether this run wrote shard `index` and all its files are there with their sizes.

    Raises:
        OSError: as `read_commit`.
    """
    record = read_commit(out, index)
    if record is None or record.run_id != run_id:
        return False
    expected = {files.join(out, path): entry.bytes for path, entry in record.files.items()}
    return files.sizes(expected) == expected


def committed(out: str) -> list[CommitRecord]:
    """All commit records, by index: one listing, and one small read per shard.

    Raises:
        OSError: as `read_commit`.
    """
    records = read_ahead(partial(read_commit, out), commit_indexes(out))
    return [record for record in records if record is not None]


def commit_indexes(out: str) -> list[int]:
    """The shards that have a commit record, which perhaps cannot be read; one listing."""
    listed = files.listing(out, names.COMMITS)
    stems = (path.rsplit("/", 1)[1].removesuffix(".json") for path in listed)
    indexes = {int(stem) for stem in stems if stem.isascii() and stem.isdecimal()}
    return sorted(index for index in indexes if names.commit_file(index) in listed)


def shard_paths(folder: str, records: Iterable[CommitRecord]) -> list[str]:
    """The paths in OUT of the shards' files in one of its folders."""
    return [names.shard_file(folder, record.index, record.count) for record in records]


def entry_of(content: bytes) -> CommittedFile:
    """The bytes and the SHA-256 of a file with this content."""
    return CommittedFile(len(content), hashlib.sha256(content).hexdigest())


def entries_of(out: str, paths: Iterable[str]) -> dict[str, CommittedFile]:
    """The bytes and the SHA-256 of files of OUT as they are now, read in blocks."""
    places = {path: files.join(out, path) for path in paths}
    sizes = files.sizes(places.values())
    return {p: CommittedFile(sizes[place], files.hash_of(place)) for p, place in places.items()}


def all_names(records: Iterable[CommitRecord], name: str) -> list[str]:
    """The variants, methods, layers or roles (one of `LISTED`) of all the shards, sorted."""
    return sorted({value for record in records for value in record.names[name]})


def problems_of(
    out: str, records: Sequence[CommitRecord], run_id: str, shard_count: int
) -> list[Problem]:
    """What keeps the records from being exactly the run's shards with all their files.

    One listing per folder; sizes are compared, and no file is read.
    """
    problems = []
    own = {record.index for record in records if record.run_id == run_id}
    if absent := sorted(set(range(shard_count)) - own):
        what = f"{len(absent)} of {shard_count} shards are missing: {_ranges(absent)}"
        problems.append(Problem("record", names.COMMITS, what))
    foreign = sorted({r.index for r in records} - own | {i for i in own if i >= shard_count})
    for index in foreign:
        what = f"{names.commit_file(index)} is a shard of another run"
        problems.append(Problem("record", names.commit_file(index), what, index))
    on_disk: dict[str, int] = {}
    for folder in {path.split("/")[0] for record in records for path in record.files}:
        on_disk |= files.listing(out, folder)
    for record in records:
        for path, entry in record.files.items():
            if path not in on_disk:
                problems.append(Problem("missing", path, f"{path} is missing", record.index))
            elif on_disk[path] != entry.bytes:
                what = f"{path} has {on_disk[path]} bytes, committed were {entry.bytes}"
                problems.append(Problem("changed", path, what, record.index))
    return problems


def _is_sound(record: CommitRecord, index: int) -> bool:
    """Whether the fields are what they may be, and the record is that of its file."""
    counts = (record.maps, record.images, record.errors, record.lost_maps, record.planned_maps)
    numbers = (record.index, record.count, record.unkept_maps, *counts)
    sizes = [entry.bytes for entry in record.files.values()]
    texts = (record.run_id, record.schema_version, record.map_dtype)
    return (
        all(type(number) is int and number >= 0 for number in (*numbers, *sizes))
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(record.names[name], list) for name in LISTED)
        and isinstance(record.extra, dict)
        and record.index == index < record.count
        and all(map(_below, record.files))
    )


def _below(path: str) -> bool:
    """Whether a path in OUT leads to no other place."""
    parts = path.split("/")
    return path.isprintable() and not path.startswith("/") and ".." not in parts


def _ranges(indexes: Sequence[int]) -> str:
    """`[0, 1, 2, 7]` -> `0-2, 7`."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
