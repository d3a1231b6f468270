"""Writing one shard: its files, then the commit record that makes it one.

The files are written to a local folder (on a local disk `_tmp/N-<uuid>/`), closed, re-opened and
counted, and then moved into place, or uploaded as `pipeline.store.shard_upload` says.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import files
from pipeline.files import HashedFile
from pipeline.store import names, schemas
from pipeline.store.commit import LISTED, CommitRecord, CommittedFile
from pipeline.store.encoding import MapDtype
from pipeline.store.formats import FORMATS
from pipeline.store.parquet import count_rows, write_row_groups
from pipeline.store.records import ErrorRecord, ImageAndMaps
from pipeline.store.rows import errors_table, images_table
from pipeline.store.shard_upload import upload_shard


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
    format. On an object store the record may be that of a twin, which wrote the same shard at the
    same time and was first.

    Raises:
        OSError: when the disk refuses; the shard is then not committed, and nothing of it stays in
            `_tmp`.
        ValueError: when the maps of an image contradict each other.
    """
    maps = [record for _, records in images for record in records]
    lost = sum(error.planned_maps for error in errors)
    contents = _contents(info, images, errors)
    with files.staging(out, f"{info.index:05d}-") as folder:
        staged = {path: f"{folder}/{path.replace('/', '-')}" for path in contents}
        try:
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
                files={path: _write_file(staged[path], contents[path]) for path in contents},
                versions=dict(info.versions),
                extra=dict(extra),
                unkept_maps=unkept_maps,
            )
            if files.is_object_store(out):
                return upload_shard(out, record, staged)
            for path in contents:
                files.rename(staged[path], files.join(out, path))
        except OSError as error:
            message = (
                f"shard {info.index} is not committed, its files could not be written to {out}: "
                f"{files.reason(error)}. {files.to_do(out)}: committed shards are kept"
            )
            raise (OSError(error.errno, message) if error.errno else OSError(message)) from error
    files.write_text(out, names.commit_file(info.index), record.to_json())
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


def _write_file(path: str, content: _Content) -> CommittedFile:
    with HashedFile(path) as file:
        written = content.write(file)
    found = content.count(path)
    if found != written:
        raise OSError(f"{path} reads back {found} rows of the {written} written")
    return CommittedFile(file.bytes, file.sha256)
