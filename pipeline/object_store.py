"""Files of an object store (`gs://bucket/run`, `s3://bucket/run`), by Beam's FileSystems.

`pipeline.files` imports this module when it meets the first URL, so that a local disk needs no
Beam. A store has no folders and no rename: what is "below" a URL are the keys that begin with it.

An object is uploaded from a whole local file in one request, because Beam's writers publish what
they have got when an exception closes them. The request names the version that it replaces (on
Google's store the generation, on Amazon's the ETag), so that a writer never replaces what it has
not seen.

Every function raises OSError where the store refuses or is not reached, and SettingsError where no
client for this kind of URL is installed.
"""

import errno
import glob
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.value_provider import RuntimeValueProvider

from pipeline.errors import SettingsError
from pipeline.object_version import Version, absent

_TRIES = 10
_NO_OPTIONS = PipelineOptions([])
_READ_BYTES = 1 << 20


def version(url: str) -> Version | None:
    """The version that is there now; None where there is none. One request."""
    with _failures(url):
        return _store(url).version(_system(url), url)


def upload(path: str, url: str, replaces: Version | None) -> bool:
    """Put a local file there, whole or not at all, in place of `replaces` alone; one request.

    Where `replaces` has the same bytes nothing is asked or sent.

    Returns:
        False where something else than `replaces` is there by now; nothing was changed then.
    """
    if _holds(replaces, path):
        return True
    with _failures(url):
        is_done = _store(url).upload(_system(url), path, url, replaces)
    # A client whose answer is lost on the way tries again, and meets what it has put there.
    return is_done or _holds(version(url), path)


def _holds(found: Version | None, path: str) -> bool:
    return found is not None and found.md5 is not None and found.md5 == md5_of(path)


def replace(path: str, url: str) -> None:
    """Put a local file there, whole or not at all, whatever is there."""
    for _ in range(_TRIES):
        if upload(path, url, version(url)):
            return
    raise OSError(errno.EBUSY, "other writers change it all the time", url)


def md5_of(path: str) -> str:
    """MD5 of a local file, in hexadecimal: the checksum that the stores keep."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read_bytes(url: str) -> bytes:
    """The whole object, as it is at one moment; one request.

    Raises:
        FileNotFoundError: when there is no such object.
        OSError: when it cannot be read.
        SettingsError: when no client for this kind of URL is installed.
    """
    with _failures_to_read(url):
        return _store(url).read(_system(url), url)


def open_read(url: str, block: int | None = None) -> BinaryIO:
    """A seekable binary file; `block` as in `pipeline.files.open_read`.

    Raises:
        FileNotFoundError: when there is no such object.
        OSError: when it cannot be read.
        SettingsError: when no client for this kind of URL is installed.
    """
    with _failures_to_read(url):
        file = _store(url).open(_system(url), url, block)
        return io.BufferedReader(_Reading(url, file), block or _READ_BYTES)


def exists(url: str) -> bool:
    """Whether the object is there; one request."""
    with _failures(url):
        return _system(url).exists(url)


def is_folder(url: str) -> bool:
    """Whether anything lies below; one request."""
    pattern = f"{glob.escape(url.rstrip('/'))}/**"
    with _failures(url):
        return bool(_system(url).match([pattern], limits=[1])[0].metadata_list)


def sizes(urls: Iterable[str]) -> dict[str, int]:
    """URL -> bytes, for those of `urls` that exist; one request per URL."""
    found = {url: version(url) for url in urls}
    return {url: there.bytes for url, there in found.items() if there}


def listing(folder: str) -> dict[str, int]:
    """File name -> bytes, for the objects directly below, in one listing."""
    found = sorted(_match(f"{folder}/*"), key=lambda match: str(match.path))
    return {match.path.rsplit("/", 1)[1]: match.size_in_bytes for match in found}


def matching(pattern: str) -> list[str]:
    """The URLs that match, sorted; lists everything below the last folder before the first `*`."""
    return sorted(match.path for match in _match(pattern))


def below(folder: str) -> Iterator[str]:
    """The keys of all objects below, relative to `folder`, that are not hidden, in one listing."""
    prefix = folder.rstrip("/") + "/"
    for match in _match(f"{glob.escape(prefix)}**"):
        path = match.path.removeprefix(prefix)
        if not path.endswith("/") and not re.search(r"(^|/)\.", path):
            yield path


def delete(url: str) -> None:
    """Delete the object and all that is below it; nothing happens where there is neither."""
    found = [url] if exists(url) else []
    found += [match.path for match in _match(f"{url}/**")]
    if found:
        with _failures(url):
            _system(url).delete(found)


def _match(pattern: str) -> list[FileMetadata]:
    with _failures(pattern):
        found: list[FileMetadata] = _system(pattern).match([pattern])[0].metadata_list
    return found


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """Turn what a store's client raises, each its own kind, into an OSError that names the URL."""
    try:
        yield
    except SettingsError:
        raise
    except BeamIOError as error:
        causes = {str(cause) for cause in (error.exception_details or {}).values()}
        raise OSError(f"{url}: {'; '.join(sorted(causes)) or error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        message = f"{url}: {error.strerror or error}"
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error
    except Exception as error:
        raise OSError(f"{url}: {error or type(error).__name__}") from error


@contextmanager
def _failures_to_read(url: str) -> Iterator[None]:
    """As `_failures`; not every client tells an absent object by an error of its own."""
    try:
        with _failures(url):
            yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or exists(url):
            raise
        raise absent(url) from error


class _Reading(io.RawIOBase):
    """A file of a store's client, whose failures come as those of this module."""

    def __init__(self, url: str, file: BinaryIO) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _failures(self._url):
            return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        with _failures(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with _failures(self._url):
            return self._file.read()

    def close(self) -> None:
        super().close()
        self._file.close()


@dataclass(frozen=True)
class _Store:
    """How one kind of store says what it has, sends a file, takes one, and opens one."""

    version: Callable[[Any, str], Version | None]
    read: Callable[[Any, str], bytes]
    upload: Callable[[Any, str, str, Version | None], bool]
    open: Callable[[Any, str, int | None], BinaryIO]


def _other_version(system: "_FileSystem", url: str) -> Version | None:
    found = system.match([glob.escape(url)])[0].metadata_list
    return Version("", found[0].size_in_bytes, None) if found else None


def _other_read(system: "_FileSystem", url: str) -> bytes:
    with _open(system, url, None) as file:
        return file.read()


def _other_upload(system: "_FileSystem", path: str, url: str, replaces: Version | None) -> bool:
    writer = system.create(url, compression_type=CompressionTypes.UNCOMPRESSED)
    with open(path, "rb") as file, writer:
        shutil.copyfileobj(file, writer)
    return True


def _open(system: "_FileSystem", url: str, block: int | None) -> BinaryIO:
    return system.open(url, compression_type=CompressionTypes.UNCOMPRESSED)


_OTHER = _Store(_other_version, _other_read, _other_upload, _open)
"""Any other file system of Beam: nothing is known of its conditions, nor of a broken upload."""


def _store(url: str) -> _Store:
    match _scheme(url):
        case "s3":
            from pipeline import amazon_store

            return _Store(amazon_store.version, amazon_store.read, amazon_store.upload, _open)
        case "gs":
            from pipeline import google_store

            return _Store(
                google_store.version, google_store.read, google_store.upload, google_store.open_read
            )
        case _:
            return _OTHER


class _FileSystem(Protocol):
    """What is used of Beam's FileSystem, with its types."""

    def create(self, path: str, *, compression_type: str) -> BinaryIO: ...
    def open(self, path: str, *, compression_type: str) -> BinaryIO: ...
    def exists(self, path: str) -> bool: ...
    def match(
        self, patterns: Sequence[str], limits: Sequence[int] | None = None
    ) -> Sequence[MatchResult]: ...
    def delete(self, paths: Sequence[str]) -> None: ...


def _system(url: str) -> _FileSystem:
    options = FileSystems._pipeline_options or RuntimeValueProvider.runtime_options
    try:
        if _scheme(url) == "s3":
            from pipeline.amazon_store import AmazonStore

            return cast(_FileSystem, AmazonStore.of(options or _NO_OPTIONS))
        return cast(_FileSystem, FileSystems.get_filesystem(url))
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"cannot reach {url}: no client for {_scheme(url)}:// is installed; "
            "valid: a local path, gs:// (pip install 'backlight[gcp]'), s3:// (pip install "
            "'backlight[aws]'). What is at https:// is only read"
        ) from error


def _scheme(url: str) -> str:
    return url.strip().partition(":")[0]
