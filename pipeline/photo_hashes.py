"""Are the photos those that the run was begun with? By the SHA-256 of their bytes.

`images/` has the hash of every photo that was explained. A shard that is made again compares its
photos with the hashes that its older files have, and a run that goes on first compares a few photos
of the shards that it keeps.
"""

import hashlib
import os

import pyarrow as pa

from pipeline import files
from pipeline.errors import InputChangedError
from pipeline.images import ImageError, read
from pipeline.plan import Plan
from pipeline.store import names, schemas
from pipeline.store.commit import committed
from pipeline.store.parquet import opened

_SHARDS = 16
"""Of so many shards the first and the last photo are compared when a run goes on."""


def known_photos(out: str, plan: Plan, index: int) -> dict[str, str]:
    """Image id -> the hash of its photo, by the images file of shard `index`, committed or not.

    Empty where there is none of this run, or a broken one.

    Raises:
        OSError: the store or the network fails.
    """
    path = files.join(out, names.shard_file(names.IMAGES, index, plan.shards))
    try:
        with opened(path) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            if metadata.get(schemas.RUN_ID) != plan.run_id.encode():
                return {}
            rows = parquet.read(["image_id", "photo_sha256"], use_threads=False).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        if not files.is_broken(path, error):
            raise
        return {}
    return dict(zip(rows["image_id"], rows["photo_sha256"], strict=True))


def check_photos_are_the_same(out: str, plan: Plan) -> None:
    """Compare some photos of the committed shards with those that are there now.

    A photo that cannot be read any more is passed over: its maps are there.

    Raises:
        InputChangedError: one is another; the message names its file.
        OSError: the store or the network fails.
    """
    records = [record for record in committed(out) if record.run_id == plan.run_id]
    step = max(1, -(-len(records) // _SHARDS))
    for record in records[::step]:
        path = files.join(out, names.shard_file(names.IMAGES, record.index, record.count))
        try:
            with opened(path) as parquet:
                table = parquet.read(["path", "photo_sha256"], use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            if not files.is_broken(path, error):
                raise
            continue
        rows = table.to_pylist()
        for row in [*rows[:1], *rows[1:][-1:]]:
            try:
                content = read(os.path.join(plan.root, row["path"]))
            except ImageError:
                continue
            if hash_of(content) != row["photo_sha256"]:
                raise photo_changed(row["path"])


def hash_of(content: bytes) -> str:
    """SHA-256 of a photo's bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def photo_changed(path: str) -> InputChangedError:
    """The error that names a photo with other bytes than before."""
    return InputChangedError(
        f"the photo {path} is not the one that this run has explained: its bytes are others. Put "
        "the photos back, or explain the new ones: into another OUT, or afresh with --overwrite"
    )


def photo_gone(path: str, why: str) -> InputChangedError:
    """The error that names a photo that was explained and that cannot be used any more."""
    return InputChangedError(
        f"the photo {path}, which this run has explained, cannot be used any more ({why}), and its "
        "maps have to be made again. Put it back and run the same command again"
    )
