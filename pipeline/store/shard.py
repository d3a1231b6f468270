"""Writing one shard: its files, then the commit record that makes it one.

On a local disk the files are written to `_tmp/N-<uuid>/`, closed, re-opened and counted, and
renamed into place; on an object store they are written straight to their final keys.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from pipeline import files
from pipeline.files import HashedFile
from pipeline.store import names, schemas
from pipeline.store.commit import LISTED, CommitRecord, CommittedFile
from pipeline.store.encoding import MapDtype
from pipeline.store.formats import FORMATS
from pipeline.store.parquet import count_rows, write_row_groups
from pipeline.store.records import ErrorRecord, ImageAndMaps
from pipeline.store.rows import errors_table, images_table


@dataclass(frozen=True)
class ShardInfo:
    """What every shard of a run needs to know to be written.

    Attributes:
        index: of the shard.
        count: of the run's shards.
        run_id: of the run.
        formats: names in `FORMATS`; none where the maps are not kept.
        map_dtype: of the stored maps.
        versions: of torch, torchvision, backlight and whatever else decides the bytes.
    """

    index: int
    count: int
    run_id: str
    formats: tuple[str, ...]
    map_dtype: MapDtype
    versions: Mapping[str, str]


def write_shard(
    out: str,
    info: ShardInfo,
    images: Sequence[ImageAndMaps],
    errors: Sequence[ErrorRecord],
    extra: Mapping[str, Any],
    unkept_maps: int = 0,
) -> CommitRecord:
    """Write and commit one shard; afterwards, and only then, readers see it.

    Every shard has an images and an errors file (perhaps without rows) and one file of maps per
    format.

    Raises:
        OSError: when the disk refuses; the shard is then not committed, and nothing of it stays in
            `_tmp`.
        ValueError: when the maps of an image contradict each other.
    """
    maps = [record for _, records in images for record in records]
    lost = sum(error.planned_maps for error in errors)
    record = CommitRecord(
        index=info.index,
        count=info.count,
        run_id=info.run_id,
        schema_version=schemas.SCHEMA_VERSION,
        map_dtype=info.map_dtype,
        maps=len(maps),
        images=len(images),
        errors=len(errors),
        lost_maps=lost,
        planned_maps=len(maps) + lost + unkept_maps,
        names={name: sorted({getattr(m.key, name) for m in maps}) for name in LISTED},
        files=_write_files(out, info, _contents(info, images, errors)),
        versions=dict(info.versions),
        extra=dict(extra),
        unkept_maps=unkept_maps,
    )
    files.write_text(out, names.commit_file(info.index), json.dumps(asdict(record), indent=1))
    return record


@dataclass(frozen=True)
class _Content:
    """What one file holds: how it is written, and counted when it is read back."""

    write: Callable[[HashedFile], int]
    count: Callable[[str], int]


def _contents(
    info: ShardInfo, images: Sequence[ImageAndMaps], errors: Sequence[ErrorRecord]
) -> dict[str, _Content]:
    """The files of the shard: path in OUT -> its content."""
    metadata = schemas.metadata(info.run_id, info.versions)

    def rows_of_images(file: HashedFile) -> int:
        table = images_table([image for image, _ in images])
        return write_row_groups(file, [table], schemas.IMAGES, metadata)

    def rows_of_errors(file: HashedFile) -> int:
        return write_row_groups(file, [errors_table(errors)], schemas.ERRORS, metadata)

    def maps_by(name: str) -> Callable[[HashedFile], int]:
        return lambda file: FORMATS[name].write(file, images, info.map_dtype, metadata)

    shard = info.index, info.count
    return {
        names.shard_file(names.IMAGES, *shard): _Content(rows_of_images, count_rows),
        names.shard_file(names.ERRORS, *shard): _Content(rows_of_errors, count_rows),
        **{
            FORMATS[name].path(*shard): _Content(maps_by(name), FORMATS[name].count)
            for name in info.formats
        },
    }


def _write_files(
    out: str, info: ShardInfo, contents: Mapping[str, _Content]
) -> dict[str, CommittedFile]:
    """Write, re-open, count and move into place the files of one shard."""
    final = {path: files.join(out, path) for path in contents}
    folder = files.join(out, names.TEMPORARY, f"{info.index:05d}-{uuid4().hex}")
    local = not files.is_object_store(out)
    staged = {path: f"{folder}/{path.replace('/', '-')}" for path in contents} if local else final
    try:
        entries = {path: _write_file(staged[path], contents[path]) for path in contents}
        if local:
            for path in contents:
                files.rename(staged[path], final[path])
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


def _write_file(path: str, content: _Content) -> CommittedFile:
    with HashedFile(path) as file:
        written = content.write(file)
    found = content.count(path)
    if found != written:
        raise OSError(f"{path} reads back {found} rows of the {written} written")
    return CommittedFile(file.bytes, file.sha256)
