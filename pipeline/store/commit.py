"""The commit protocol: a shard exists when its json does, and a run when `_SUCCESS` does.

On a local disk the files of a shard are written to `_tmp/N-<uuid>/`, closed, re-opened and counted,
and renamed into place; on an object store they are written straight to their final keys. The commit
record `_meta/shards/N.json` comes last. A worker that dies leaves at most files without a record,
which no reader looks at and the next worker overwrites; two workers on one shard write equal bytes.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from pipeline.errors import BacklightError
from pipeline.store import files, names, schemas
from pipeline.store.card import dataset_card
from pipeline.store.encoding import MapDtype
from pipeline.store.files import HashedFile
from pipeline.store.parquet import count_rows, write_maps, write_row_groups
from pipeline.store.records import ErrorRecord, ImageRecord, MapRecord
from pipeline.store.rows import errors_table, images_table
from pipeline.store.tar import count_samples, write_tar

FORMATS = {"parquet": "maps", "webdataset": "tars"}
"""Format of maps -> the folder that holds it."""

_ALWAYS = ("images", "errors")
_READERS = 16  # threads that fetch commit records


class IncompleteRunError(BacklightError):
    """The run cannot be finalised: the message says what is missing and how to go on."""


@dataclass(frozen=True)
class ShardInfo:
    """What every shard of a run needs to know to be written."""

    index: int
    count: int
    """The run's shards."""
    run_id: str
    formats: tuple[str, ...]
    """Of FORMATS."""
    map_dtype: MapDtype
    versions: Mapping[str, str]
    """Of torch, torchvision and backlight."""


@dataclass(frozen=True)
class CommittedFile:
    """One file of a shard, as it was when it was committed."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CommitRecord:
    """`_meta/shards/N.json`: what a shard holds."""

    index: int
    count: int
    run_id: str
    schema_version: str
    map_dtype: MapDtype
    maps: int
    """That the files hold."""
    images: int
    errors: int
    lost_maps: int
    """Maps that the errors cost."""
    planned_maps: int
    """maps + lost_maps + unkept_maps."""
    names: dict[str, list[str]]
    """The variants, methods, layers and roles that occur, sorted."""
    files: dict[str, CommittedFile]
    """Path in OUT -> its bytes and hash."""
    versions: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)
    """Timings, device and whatever else may differ between two equal shards."""
    unkept_maps: int = 0
    """Maps that were scored and not kept."""


def write_shard(
    out: str,
    info: ShardInfo,
    images: Sequence[tuple[ImageRecord, Sequence[MapRecord]]],
    errors: Sequence[ErrorRecord],
    extra: Mapping[str, Any],
    unkept_maps: int = 0,
) -> CommitRecord:
    """Write and commit one shard; afterwards, and only then, readers see it.

    Every shard has an images and an errors file (perhaps without rows) and one file of maps a
    format. Raises OSError where the disk refuses (the shard is then not committed, and nothing of
    it stays in `_tmp`), ValueError where the maps of an image contradict each other.
    """
    metadata = schemas.metadata(info.run_id, info.versions)
    rows = [(image.image_id, record) for image, records in images for record in records]
    with_maps = sum(1 for _, records in images if records)
    shard: dict[str, _File] = {
        "images": _File(
            lambda file: write_row_groups(
                file, [images_table([image for image, _ in images])], schemas.IMAGES, metadata
            ),
            count_rows,
            len(images),
        ),
        "errors": _File(
            lambda file: write_row_groups(file, [errors_table(errors)], schemas.ERRORS, metadata),
            count_rows,
            len(errors),
        ),
        "maps": _File(
            lambda file: write_maps(file, rows, info.map_dtype, metadata), count_rows, len(rows)
        ),
        "tars": _File(
            lambda file: write_tar(file, images, info.map_dtype), count_samples, with_maps
        ),
    }
    kinds = (*_ALWAYS, *(FORMATS[name] for name in info.formats))
    lost = sum(error.planned_maps for error in errors)
    record = CommitRecord(
        index=info.index,
        count=info.count,
        run_id=info.run_id,
        schema_version=schemas.SCHEMA_VERSION,
        map_dtype=info.map_dtype,
        maps=len(rows),
        images=len(images),
        errors=len(errors),
        lost_maps=lost,
        planned_maps=len(rows) + lost + unkept_maps,
        names={
            name: sorted({getattr(row, name) for _, row in rows})
            for name in ("variant", "method", "layer", "role")
        },
        files=_write_files(out, info, {kind: shard[kind] for kind in kinds}),
        versions=dict(info.versions),
        extra=dict(extra),
        unkept_maps=unkept_maps,
    )
    files.write_text(out, names.commit_file(info.index), json.dumps(asdict(record), indent=1))
    return record


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
    """All commit records, by index: one listing, and one small read a shard."""
    indexes = sorted(
        int(stem)
        for path in files.listing(out, names.COMMITS)
        if (stem := path.rsplit("/", 1)[1].removesuffix(".json")).isdecimal()
    )
    with ThreadPoolExecutor(_READERS) as pool:
        records = pool.map(lambda index: read_commit(out, index), indexes)
        return [record for record in records if record is not None]


def finalise(
    out: str,
    run_id: str,
    shard_count: int,
    planned_maps: int,
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check that the run is whole, describe it, and write `_SUCCESS`; returns dataset_info.

    `about` is what the dataset card says of the run (for instance Model, Source, Licence). Raises
    IncompleteRunError where a shard is missing, or maps + lost maps are not `planned_maps`.
    """
    records = committed(out)
    if problems := _missing(out, records, run_id, shard_count):
        raise IncompleteRunError(f"{problems[0]}; run the same command again to write what is left")
    maps, lost = sum(r.maps for r in records), sum(r.lost_maps for r in records)
    unkept = sum(r.unkept_maps for r in records)
    if (found := maps + lost + unkept) != planned_maps:
        raise IncompleteRunError(
            f"{maps} maps written, {unkept} not kept and {lost} lost to errors make {found}, but "
            f"the plan has {planned_maps}; the plan and the shards are not of one run: start "
            "afresh with --overwrite"
        )
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
        "formats": [
            name
            for name, kind in FORMATS.items()
            if names.shard_file(kind, 0, shard_count) in records[0].files
        ],
        "map_dtype": records[0].map_dtype,
        **{f"{name}s": all_names(records, name) for name in records[0].names},
        "versions": records[0].versions,
        "conventions": schemas.CONVENTIONS,
        "about": dict(about or {}),
    }
    files.write_text(out, names.DATASET_INFO, json.dumps(info, indent=1))
    files.write_text(out, names.CARD, dataset_card(info))
    remove_temporary(out)
    if files.is_object_store(out):
        files.write_text(out, names.SUCCESS, "")
    else:
        with HashedFile(files.join(out, names.SUCCESS)):
            pass  # not through `_tmp`, which must be gone by now
    return info


def verify(out: str) -> list[str]:
    """Every problem of OUT, in words; empty where all is well. Reads every byte of every file."""
    records = committed(out)
    if not records:
        return [f"{out} has no committed shard"]
    first = records[0]
    problems = _missing(out, records, first.run_id, first.count)
    known: set[str] = set()
    for record in records:
        known |= record.files.keys()
        for path, entry in record.files.items():
            try:
                changed = files.hash_of(files.join(out, path)) != entry.sha256
            except OSError:
                continue  # `_missing` has named it
            if changed:
                problems.append(f"{path} has changed since it was committed (SHA-256)")
    for folder in (*_ALWAYS, *FORMATS.values()):
        strays = files.listing(out, folder).keys() - known
        problems += [f"{path} belongs to no committed shard" for path in sorted(strays)]
    if not files.exists(files.join(out, names.SUCCESS)):
        problems.append("_SUCCESS is absent: the run has not been finalised")
    return problems


def all_names(records: Iterable[CommitRecord], name: str) -> list[str]:
    """The variants, methods, layers or roles that occur in any of the shards, sorted."""
    return sorted({value for record in records for value in record.names[name]})


def remove_temporary(out: str) -> None:
    """Delete `_tmp` with what crashed workers left; call it only while no worker writes."""
    files.delete(files.join(out, names.TEMPORARY))


@dataclass(frozen=True)
class _File:
    write: Callable[[HashedFile], int]
    count: Callable[[str], int]
    rows: int


def _write_files(out: str, info: ShardInfo, shard: Mapping[str, _File]) -> dict[str, CommittedFile]:
    """Write, re-open, count and move into place the files of one shard."""
    final = {kind: names.shard_file(kind, info.index, info.count) for kind in shard}
    folder = files.join(out, names.TEMPORARY, f"{info.index:05d}-{uuid4().hex}")
    local = not files.is_object_store(out)
    staged = {k: f"{folder}/{k}" if local else files.join(out, final[k]) for k in shard}
    try:
        entries = {final[kind]: _write_file(staged[kind], shard[kind]) for kind in shard}
        if local:
            for kind in shard:
                files.rename(staged[kind], files.join(out, final[kind]))
    except OSError as error:
        message = (
            f"shard {info.index} is not committed, its files could not be written to {out}: "
            f"{error.strerror or error}. Make room or check the path, and run the same command "
            "again: committed shards are kept"
        )
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error
    finally:
        if local:
            files.delete(folder)
    return entries


def _write_file(path: str, content: _File) -> CommittedFile:
    with HashedFile(path) as file:
        content.write(file)
    found = content.count(path)
    if found != content.rows:
        raise OSError(f"{path} reads back {found} rows of the {content.rows} written")
    return CommittedFile(file.bytes, file.sha256)


def _missing(out: str, records: Sequence[CommitRecord], run_id: str, shard_count: int) -> list[str]:
    """What keeps the records from being exactly the run's shards, with all their files."""
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
