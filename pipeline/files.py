"""Opening, listing, renaming and deleting, on a local disk or an object store.

What a run reads (photos, annotations, weights) and what it writes under OUT goes through here.
Paths are local paths or URLs (`gs://bucket/run`, `s3://bucket/run`). A local disk is the standard
library's; `pipeline.object_store` is imported for URLs, which need the matching extra, such as
`pip install 'backlight[gcp]'`. What is at `https://` or `http://` can only be read, by
`pipeline.http_file`.
"""

import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from pipeline.errors import SettingsError
from pipeline.temporary_folders import held_folder, new_folder

TEMPORARY = "_tmp"
"""The folder of OUT for files that are not whole yet."""

OF_ONE_FILE = {
    *(errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    *(errno.EILSEQ, errno.ENXIO, errno.ENODEV, errno.EOVERFLOW, errno.EIO, errno.ENODATA),
}
"""Errors that a local disk gives for one file and will give again; others may pass."""

_READ_BLOCK = 1 << 20
_URL = re.compile(r"\s*[a-zA-Z][-a-zA-Z0-9+.]*://")
_HALF = re.compile("[\ud800-\udfff]")
_WEB = re.compile(r"\s*https?://", re.I)


def join(out: str, *parts: str) -> str:
    """`out/part/part`.

    Raises:
        SettingsError: when `out` is empty, or holds a character that Beam globs on, or credentials.
    """
    if not out.strip():
        raise SettingsError("OUT is empty, perhaps by a variable without a value; give a folder")
    _check_no_credentials(out)
    if special := re.search(r"[*?\[]", out):
        raise SettingsError(
            f"OUT may not contain {special[0]!r}: {out}; choose a name without * ? ["
        )
    return "/".join((out.rstrip("/"), *parts))


def is_object_store(path: str) -> bool:
    """Whether the path is a URL: a store without folders and without a cheap rename."""
    return _URL.match(path) is not None


def absolute(path: str) -> str:
    """The path as any working directory understands it; a URL is one already."""
    return path if is_object_store(path) else os.path.abspath(path)


def expanded(path: str) -> str:
    """The path with `~` or `~user` at its beginning as the home folder, as a shell has it.

    So it is after the colon of a combination, `sum:~/weights.json`. Variables of the environment,
    such as `$DATA`, have their values where no file of the name as written exists.

    Raises:
        SettingsError: it is a URL with credentials.
    """
    _check_no_credentials(path)
    if "$" in path and not os.path.exists(path):
        path = os.path.expandvars(path)
        _check_no_credentials(path)
    before, colon, after = path.partition(":~")
    return before + ":" + os.path.expanduser("~" + after) if colon else os.path.expanduser(path)


_CREDENTIALS = re.compile(
    r"\s*[a-z][-a-z0-9+.]*://[^/?#@]*:[^/?#@]*@|[?&;](x-(amz|goog)-(signature|credential|security"
    r"-token)|sig|signature|awsaccesskeyid|googleaccessid|access_token|token|password)=",
    re.I,
)


def _check_no_credentials(path: str) -> None:
    """Check that a URL has no password and no signature: plans and messages would show them.

    Raises:
        SettingsError: it has, or one of the web has a user or a query; the message does not
            repeat them.
    """
    if is_object_store(path) and _CREDENTIALS.search(path):
        scheme, _, rest = path.strip().partition("://")
        place = rest.partition("?")[0]
        host, slash, below_host = place.partition("/")
        raise SettingsError(
            f"{scheme}://{host.rpartition('@')[2]}{slash}{below_host} was given with a password or "
            "a signature, which would stand in the plan: leave it out of the URL. The store's "
            "client finds credentials in its environment variables or its file of settings"
        )
    if _WEB.match(path):
        from pipeline import http_file

        http_file.check_url(path)


def check_folder(out: str) -> None:
    """Check that a local folder is there or can be made.

    Raises:
        SettingsError: it, or what would be above it, is a file.
    """
    path = os.path.abspath(out)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        raise SettingsError(f"{path} is a file; choose an empty or a new folder")


class HashedFile(io.BufferedIOBase):
    """A new local file that counts and hashes (SHA-256) the bytes as they pass.

    Parent folders are made. `close` flushes to the disk, so that a commit record written after it
    never outlives the bytes that it vouches for. Write errors (a full disk) surface as OSError.
    """

    def __init__(self, path: str) -> None:
        make_folder(os.path.dirname(path))
        self._handle = open(path, "wb")  # noqa: SIM115
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
        count = memoryview(block).nbytes
        self._handle.write(block)
        self._digest.update(block)
        self.bytes += count
        return count

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        finally:
            super().close()
            self._handle.close()


@contextmanager
def replacing(out: str, name: str) -> Iterator[HashedFile]:
    """Write `out/name` whole or not at all: a reader sees the old file or the new one.

    Raises:
        OSError: when it cannot be written; the old file, if there was one, is there then.
    """
    final = join(out, name)
    with staging(out) as folder:
        staged = os.path.join(folder, "file")
        try:
            with HashedFile(staged) as file:
                yield file
            publish(staged, final)
        except OSError as error:
            message = f"cannot write {final}: {reason(error)}. {to_do(out)}"
            raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


@contextmanager
def staging(out: str, prefix: str = "") -> Iterator[str]:
    """A local folder for files of `out` that are not whole yet; it is deleted at the end.

    It is in `out/_tmp`, or for an object store where this machine has its temporary files.
    """
    if is_object_store(out):
        with held_folder(new_folder("upload")) as folder:
            yield folder
        return
    folder = join(out, TEMPORARY, f"{prefix}{uuid4().hex}")
    try:
        yield folder
    finally:
        delete(folder)


def publish(staged: str, final: str) -> None:
    """Move a whole file from `staging` to its path or URL, over an older one.

    Raises:
        OSError: when it cannot be written; the old file, if there was one, is there then.
    """
    if is_object_store(final):
        from pipeline import object_store

        object_store.replace(staged, final)
    else:
        rename(staged, final)


def reason(error: OSError) -> str:
    """Why a file could not be read or written."""
    return error.strerror or str(error)


def is_broken(path: str, error: Exception) -> bool:
    """Whether the file is absent, or will fail again: so it has to be written again.

    False: the store or the network may answer the next time, and nothing is known of the file.
    """
    if not isinstance(error, OSError):  # its content
        return True
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return True
    return not is_object_store(path) and error.errno in OF_ONE_FILE


def to_do(out: str) -> str:
    """What the user does when files of `out` could not be written."""
    room = f" in {tempfile.gettempdir()}, where uploads wait," if is_object_store(out) else ""
    return f"Make room{room} or check the path, and run the same command again"


def write_text(out: str, name: str, text: str) -> None:
    """Write `out/name` as UTF-8, whole or not at all."""
    with replacing(out, name) as file:
        file.write(text.encode())


def read_text(path: str, encoding: str = "utf-8") -> str:
    """The whole file, decoded.

    Raises:
        OSError: when it cannot be read; FileNotFoundError when it is absent.
        UnicodeDecodeError: when it is not text in this encoding.
    """
    return read_bytes(path).decode(encoding)


def read_bytes(path: str) -> bytes:
    """The whole file; of a store, as it is at one moment, by one request.

    Raises:
        OSError: when it cannot be read; FileNotFoundError when it is absent.
    """
    if is_object_store(path):
        return _reader(path).read_bytes(path)
    with open(path, "rb") as file:
        return file.read()


def is_whole(text: str) -> bool:
    r"""Whether a file can hold the text: no character is a half.

    JSON may write one (`\ud83d`), and Python reads one from a terminal in another encoding.
    """
    return _HALF.search(text) is None


def parsed_json(content: str | bytes) -> Any:
    """The value that JSON from a file stands for.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def open_read(path: str, block: int | None = None) -> BinaryIO:
    """A seekable binary file.

    Args:
        path: of a file, or a URL.
        block: the bytes that a request for a part of a URL asks for, where fewer are wanted; by
            default as many as suit a file that is read from its beginning to its end.

    Raises:
        OSError: when it cannot be read; FileNotFoundError when it is absent.
    """
    if is_object_store(path):
        return _reader(path).open_read(path, block)
    return open(path, "rb")


class _Reader(Protocol):
    """How the files of URLs are found and read: a module for each kind."""

    def read_bytes(self, url: str) -> bytes: ...
    def open_read(self, url: str, block: int | None = None) -> BinaryIO: ...
    def exists(self, url: str) -> bool: ...
    def is_folder(self, url: str) -> bool: ...
    def matching(self, pattern: str) -> list[str]: ...
    def below(self, folder: str) -> Iterator[str]: ...


def _reader(url: str) -> _Reader:
    if _WEB.match(url):
        from pipeline import http_file

        return http_file
    from pipeline import object_store

    return object_store


def hash_of(path: str) -> str:
    """SHA-256 of the file, in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open_read(path) as file:
        while block := file.read(_READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def exists(path: str) -> bool:
    """Whether the file (on a local disk, also a folder) is there."""
    if is_object_store(path):
        return _reader(path).exists(path)
    return os.path.exists(path)


def is_file(path: str) -> bool:
    """Whether it is there and no folder; one request on an object store."""
    return exists(path) if is_object_store(path) else os.path.isfile(path)


def is_folder(path: str) -> bool:
    """Whether it is a folder; on an object store, whether anything lies below. One request."""
    if is_object_store(path):
        return _reader(path).is_folder(path)
    return os.path.isdir(path)


def sizes(paths: Iterable[str]) -> dict[str, int]:
    """Path -> bytes, for those of `paths` that exist; one request per path on an object store."""
    paths = list(paths)
    found: dict[str, int] = {}
    if urls := [path for path in paths if is_object_store(path)]:
        from pipeline import object_store

        found = object_store.sizes(urls)
    for path in paths:
        if not is_object_store(path):
            with suppress(FileNotFoundError, NotADirectoryError):
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    found[path] = status.st_size
    return found


def listing(out: str, folder: str) -> dict[str, int]:
    """`folder/file` -> bytes, for the files directly in `out/folder`, sorted, in one listing."""
    path = join(out, folder)
    if is_object_store(out):
        from pipeline import object_store

        return {f"{folder}/{name}": count for name, count in object_store.listing(path).items()}
    found: dict[str, int] = {}
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # gone since
                if entry.is_file():
                    found[f"{folder}/{entry.name}"] = entry.stat().st_size
    return dict(sorted(found.items()))


def matching(folder: str, pattern: str) -> list[str]:
    """Paths of the files (on a local disk, also the folders) that are `folder/pattern`, sorted.

    `*` stands for any text without a slash. On an object store this lists everything below the
    last folder before the first `*`.
    """
    escaped = os.path.join(glob.escape(folder), pattern)
    if is_object_store(folder):
        return _reader(folder).matching(escaped)
    return sorted(glob.glob(escaped))


def below(folder: str) -> Iterator[str]:
    """Paths, relative to `folder`, of all files below that are not hidden, in one listing."""
    if is_object_store(folder):
        yield from _reader(folder).below(folder)
        return
    seen: set[tuple[int, int]] = set()
    for parent, folders, inside in os.walk(folder, onerror=_raise, followlinks=True):
        found = os.stat(parent)
        if (found.st_dev, found.st_ino) in seen:  # a link leads back
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(parent, folder)
        for name in inside:
            if not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"


def rename(source: str, destination: str) -> None:
    """Move a local file into place, over an older one, where it stays when the power fails.

    The folder is made where it is absent.
    """
    folder = os.path.dirname(destination)
    make_folder(folder)
    os.replace(source, destination)
    _flush_folder(folder)


def make_folder(path: str) -> None:
    """Make a local folder, and those above it, where they are absent; they survive a power loss."""
    absent = []
    while path and not os.path.isdir(path):
        absent.append(path)
        path = os.path.dirname(path)
    if absent:
        os.makedirs(absent[0], exist_ok=True)
    for folder in reversed(absent):
        _flush_folder(os.path.dirname(folder) or os.curdir)


def delete_if_empty(folder: str) -> None:
    """Delete a local folder that has nothing in it; an object store has no folders."""
    if not is_object_store(folder):
        with suppress(OSError):
            os.rmdir(folder)


def delete_for_good(path: str) -> None:
    """Delete as `delete` does; what was deleted does not come back when the power fails."""
    delete(path)
    if not is_object_store(path) and os.path.isdir(folder := os.path.dirname(path) or os.curdir):
        _flush_folder(folder)


def remove_if_empty(out: str, folder: str) -> None:
    """Remove a local folder of `out`, and those above it in `out`, as far as they are empty."""
    while folder and not is_object_store(out):
        try:
            os.rmdir(join(out, folder))
        except FileNotFoundError:
            pass
        except OSError:  # not empty
            return
        folder = os.path.dirname(folder)


def delete(path: str) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens where it is absent."""
    if is_object_store(path):
        from pipeline import object_store

        object_store.delete(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.remove(path)


def _raise(error: OSError) -> None:
    """An absent folder has no files; of one that cannot be read that is not known."""
    if not isinstance(error, FileNotFoundError):
        raise error


_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""What a file system answers that cannot flush a folder, or a folder that may not be read."""


def _flush_folder(path: str) -> None:
    """Have the names in a local folder on the disk, as fsync has the bytes of a file there."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
