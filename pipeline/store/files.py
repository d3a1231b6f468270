"""Opening, listing, renaming and deleting under OUT, on a local disk or an object store.

The only module of the store that talks to Beam's FileSystems. Paths are local paths or URLs
(`gs://bucket/run`, `s3://bucket/run`); a URL needs the matching extra of apache-beam.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO
from uuid import uuid4

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import SettingsError
from pipeline.store import names

_READ_BLOCK = 1 << 20


def join(out: str, *parts: str) -> str:
    """`out/part/part`. Raises SettingsError where `out` holds a character that Beam globs on."""
    if glob := re.search(r"[*?\[]", out):
        raise SettingsError(f"OUT may not contain {glob[0]!r}: {out}; choose a name without * ? [")
    return "/".join((out.rstrip("/"), *parts))


def is_object_store(path: str) -> bool:
    """Whether the path is a URL: a store without folders and without a cheap rename."""
    return FileSystems.get_scheme(path) is not None


class HashedFile(io.BufferedIOBase):
    """A new file that counts and hashes (SHA-256) the bytes as they pass.

    Parent folders are made. `close` flushes to the disk, so that a commit record written after it
    never outlives the bytes that it vouches for. Write errors (a full disk) surface as OSError.
    """

    def __init__(self, path: str) -> None:
        self._local = not is_object_store(path)
        self._handle = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """The hash of everything written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, block: bytes | memoryview) -> int:  # type: ignore[override]
        size = memoryview(block).nbytes
        self._handle.write(block)
        self._digest.update(block)
        self.bytes += size
        return size

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._local:
                self._handle.flush()
                os.fsync(self._handle.fileno())
        finally:
            super().close()
            self._handle.close()


@contextmanager
def replacing(out: str, name: str) -> Iterator[HashedFile]:
    """Write `out/name` whole or not at all: a reader sees the old file or the new one.

    Goes through `_tmp` and a rename on a local disk; an object store shows an object only when its
    upload ends.
    """
    final = join(out, name)
    if is_object_store(out):
        with HashedFile(final) as file:
            yield file
        return
    staged = join(out, names.TEMPORARY, uuid4().hex)
    try:
        with HashedFile(staged) as file:
            yield file
        rename(staged, final)
    except OSError as error:
        delete(staged)
        message = (
            f"cannot write {final}: {error.strerror or error}. Make room or check the path, and "
            "run the same command again"
        )
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error
    except BaseException:
        delete(staged)
        raise


def write_text(out: str, name: str, text: str) -> None:
    """Write `out/name` as UTF-8, whole or not at all."""
    with replacing(out, name) as file:
        file.write(text.encode())


def read_text(path: str) -> str:
    """The whole file, decoded as UTF-8."""
    with open_read(path) as file:
        return file.read().decode()


def open_read(path: str) -> BinaryIO:
    """A seekable binary file. Raises OSError where it is absent."""
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def hash_of(path: str) -> str:
    """SHA-256 of the file, in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as file:
        while block := file.read(_READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def exists(path: str) -> bool:
    """Whether the file is there."""
    return bool(FileSystems.exists(path))


def sizes(paths: Iterable[str]) -> dict[str, int]:
    """Path -> bytes, for those of `paths` that exist; one request a path on an object store."""
    matches = FileSystems.match(list(paths))
    return {match.path: match.size_in_bytes for found in matches for match in found.metadata_list}


def listing(out: str, folder: str) -> dict[str, int]:
    """`folder/file` -> bytes, for the files directly in `out/folder`, in one listing."""
    (found,) = FileSystems.match([join(out, folder, "*")])
    return {f"{folder}/{file.path.rsplit('/', 1)[1]}": file.size_in_bytes
            for file in sorted(found.metadata_list, key=lambda file: file.path)}  # fmt: skip


def rename(source: str, destination: str) -> None:
    """Move a local file into place, over an older one, making the folder where it is absent."""
    folder = destination.rsplit("/", 1)[0]
    if not exists(folder):
        try:
            FileSystems.mkdirs(folder)
        except OSError:
            if not exists(folder):  # otherwise another worker made it first
                raise
    FileSystems.rename([source], [destination])


def delete(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens where it is absent."""
    if not is_object_store(path):
        if exists(path):
            FileSystems.delete([path])
        return
    (below,) = FileSystems.match([f"{path}/**"])
    found = [file.path for file in below.metadata_list] + ([path] if exists(path) else [])
    FileSystems.delete(found)
