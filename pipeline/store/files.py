"""Opening, listing, renaming and deleting, on a local disk or an object store.

The only module that talks to Beam's FileSystems: what a run reads (photos, annotations, weights)
and what it writes under OUT go through here. Paths are local paths or URLs (`gs://bucket/run`,
`s3://bucket/run`); a URL needs the matching extra, such as `pip install 'backlight[gcp]'`.
"""

import errno
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO
from uuid import uuid4

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import SettingsError
from pipeline.store import names

_READ_BLOCK = 1 << 20


def join(out: str, *parts: str) -> str:
    """`out/part/part`. Raises SettingsError where `out` holds a character that Beam globs on."""
    if special := re.search(r"[*?\[]", out):
        raise SettingsError(
            f"OUT may not contain {special[0]!r}: {out}; choose a name without * ? ["
        )
    return "/".join((out.rstrip("/"), *parts))


def is_object_store(path: str) -> bool:
    """Whether the path is a URL: a store without folders and without a cheap rename."""
    return FileSystems.get_scheme(path) is not None


def absolute(path: str) -> str:
    """The path as any working directory understands it; a URL is one already."""
    return path if is_object_store(path) else os.path.abspath(path)


class HashedFile(io.BufferedIOBase):
    """A new file that counts and hashes (SHA-256) the bytes as they pass.

    Parent folders are made. `close` flushes to the disk, so that a commit record written after it
    never outlives the bytes that it vouches for. Write errors (a full disk) surface as OSError.
    """

    def __init__(self, path: str) -> None:
        self._local = not is_object_store(path)
        self._handle = _system(path).create(path, compression_type=CompressionTypes.UNCOMPRESSED)
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
    upload ends, so one that broke off is deleted.
    """
    final = join(out, name)
    if is_object_store(out):
        try:
            with HashedFile(final) as file:
                yield file
        except BaseException:
            delete(final)
            raise
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


def read_text(path: str, encoding: str = "utf-8") -> str:
    """The whole file, decoded. Raises OSError, or UnicodeDecodeError."""
    return read_bytes(path).decode(encoding)


def read_bytes(path: str) -> bytes:
    """The whole file. Raises OSError, FileNotFoundError where it is absent."""
    with open_read(path) as file:
        return file.read()


def open_read(path: str) -> BinaryIO:
    """A seekable binary file. Raises OSError, FileNotFoundError where it is absent."""
    try:
        return _system(path).open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (OSError, SettingsError):
        raise
    except Exception as error:  # every store's client has its own
        if exists(path):
            raise OSError(f"cannot read {path}: {error}") from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error


def hash_of(path: str) -> str:
    """SHA-256 of the file, in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as file:
        while block := file.read(_READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def exists(path: str) -> bool:
    """Whether the file is there."""
    return bool(_system(path).exists(path))


def is_file(path: str) -> bool:
    """Whether it is there and no folder; one request on an object store."""
    return exists(path) if is_object_store(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Whether it is a folder; on an object store, whether anything lies below. One request."""
    if not is_object_store(path):
        return os.path.isdir(path)
    below = f"{glob.escape(path.rstrip('/'))}/**"
    return bool(_system(path).match([below], limits=[1])[0].metadata_list)


def sizes(paths: Iterable[str]) -> dict[str, int]:
    """Path -> bytes, for those of `paths` that exist; one request a path on an object store."""
    return {match.path: match.size_in_bytes for path in paths for match in _match(path)}


def listing(out: str, folder: str) -> dict[str, int]:
    """`folder/file` -> bytes, for the files directly in `out/folder`, in one listing."""
    found = sorted(_match(join(out, folder, "*")), key=lambda file: file.path)
    return {f"{folder}/{file.path.rsplit('/', 1)[1]}": file.size_in_bytes for file in found}


def matching(folder: str, pattern: str) -> list[str]:
    """Paths of the files (on a local disk, also the folders) that are `folder/pattern`, sorted.

    `*` stands for any text without a slash. On an object store this lists everything below the
    last folder before the first `*`.
    """
    escaped = os.path.join(glob.escape(folder), pattern)
    if not is_object_store(folder):
        return sorted(glob.glob(escaped))
    return sorted(match.path for match in _match(escaped))


def below(folder: str) -> Iterator[str]:
    """Paths, relative to `folder`, of all files below that are not hidden, in one listing."""
    if is_object_store(folder):
        prefix = folder.rstrip("/") + "/"
        for match in _match(f"{glob.escape(prefix)}**"):
            path = match.path.removeprefix(prefix)
            if not path.endswith("/") and not re.search(r"(^|/)\.", path):
                yield path
        return
    for parent, folders, inside in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(parent, folder)
        for name in inside:
            if not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"


def rename(source: str, destination: str) -> None:
    """Move a local file into place, over an older one, making the folder where it is absent."""
    folder = destination.rsplit("/", 1)[0]
    if not exists(folder):
        try:
            _system(folder).mkdirs(folder)
        except OSError:
            if not exists(folder):  # otherwise another worker made it first
                raise
    _system(source).rename([source], [destination])


def delete(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens where it is absent."""
    found = [path] if exists(path) else []
    if is_object_store(path):
        found += [match.path for match in _match(f"{path}/**")]
    if found:
        _system(path).delete(found)


def _match(pattern: str) -> list[FileMetadata]:
    """The files of a pattern; on a local disk with their sizes, which takes a stat each."""
    found: list[FileMetadata] = _system(pattern).match([pattern])[0].metadata_list
    return found


def _system(path: str) -> FileSystem:
    """Beam's file system for the path. Raises SettingsError where none of that kind is there."""
    try:
        return FileSystems.get_filesystem(path)
    except ValueError as error:
        raise SettingsError(
            f"cannot reach {path}: no client for {FileSystems.get_scheme(path)}:// is installed; "
            "valid: a local path, gs:// (pip install 'backlight[gcp]'), s3:// (pip install "
            "'backlight[aws]')"
        ) from error
