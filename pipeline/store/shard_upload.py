"""Committing a shard to an object store, where a twin may do the same at the same time.

Two workers may have one shard: Beam starts a slow one again, and a worker that was given up may
still run. Each looks at what is there, then at the commit record, and then replaces just what it
looked at: a file only where it differs, and the record last. An upload is refused if a twin changed
the object since, and the worker looks again. So a worker that fails leaves every committed file as
it is, and a shard that a twin has committed is left to the twin, also where two kinds of devices
compute different bytes.
"""

import errno
import os
from collections.abc import Mapping

from pipeline import files
from pipeline.object_version import Version
from pipeline.store import names
from pipeline.store.commit import CommitRecord, read_commit

_TRIES = 10


def upload_shard(out: str, record: CommitRecord, staged: Mapping[str, str]) -> CommitRecord:
    """Upload the files of a shard and then its record; returns the record that holds.

    Args:
        out: URL of the output.
        record: of the shard.
        staged: path in OUT -> the local file.

    Raises:
        OSError: the store refuses, or a twin changed the shard each time.
    """
    from pipeline import object_store

    md5 = {path: object_store.md5_of(file) for path, file in staged.items()}
    commit = names.commit_file(record.index)
    local = os.path.join(os.path.dirname(next(iter(staged.values()))), "record.json")
    with open(local, "w", encoding="utf-8") as file:
        file.write(record.to_json())
    for _ in range(_TRIES):
        seen = {path: object_store.version(files.join(out, path)) for path in (*staged, commit)}
        found = read_commit(out, record.index)
        if found and found.run_id == record.run_id and _holds(found, record, seen, md5):
            return found
        uploads = {**staged, commit: local}
        if all(object_store.upload(uploads[p], files.join(out, p), seen[p]) for p in uploads):
            return record
    raise OSError(errno.EBUSY, f"another worker writes shard {record.index} at the same time")


def _holds(
    found: CommitRecord,
    own: CommitRecord,
    seen: Mapping[str, Version | None],
    md5: Mapping[str, str],
) -> bool:
    """Whether the record in the store names the objects in the store."""
    if found.files.keys() != own.files.keys():
        return False
    for path, entry in found.files.items():
        there = seen[path]
        if there is None or there.bytes != entry.bytes:
            return False
        # It names this worker's file if, and only if, this worker's file is there.
        if there.md5 is not None and (there.md5 == md5[path]) != (entry == own.files[path]):
            return False
    return True
