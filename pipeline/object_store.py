"""Files of an object store (`gs://bucket/run`, `s3://bucket/run`), by Beam's FileSystems.

`pipeline.files` imports this module when it meets the first URL, so that a local disk needs no
Beam. A store has no folders and no rename: what is "below" a URL are the keys that begin with it.
"""

import errno
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol, cast

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, MatchResult
from apache_beam.io.filesystems import FileSystems

from pipeline.errors import SettingsError


def create(url: str) -> BinaryIO:
    """A new object to be written; it is there when the file is closed."""
    return _system(url).create(url, compression_type=CompressionTypes.UNCOMPRESSED)


def open_read(url: str) -> BinaryIO:
    """A seekable binary file.

    Raises:
        FileNotFoundError: when there is no such object.
        OSError: when it cannot be read.
        SettingsError: when no client for this kind of URL is installed.
    """
    try:
        return _system(url).open(url, compression_type=CompressionTypes.UNCOMPRESSED)
    except (OSError, SettingsError):
        raise
    except Exception as error:  # every store's client has its own
        if exists(url):
            raise OSError(f"cannot read {url}: {error}") from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error


def exists(url: str) -> bool:
    """Whether the object is there; one request."""
    return _system(url).exists(url)


def is_folder(url: str) -> bool:
    """Whether anything lies below; one request."""
    pattern = f"{glob.escape(url.rstrip('/'))}/**"
    return bool(_system(url).match([pattern], limits=[1])[0].metadata_list)


def sizes(urls: Iterable[str]) -> dict[str, int]:
    """URL -> bytes, for those of `urls` that exist; one request per URL."""
    return {match.path: match.size_in_bytes for url in urls for match in _match(url)}


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
        _system(url).delete(found)


def _match(pattern: str) -> list[FileMetadata]:
    found: list[FileMetadata] = _system(pattern).match([pattern])[0].metadata_list
    return found


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
    try:
        return cast(_FileSystem, FileSystems.get_filesystem(url))
    except ValueError as error:
        raise SettingsError(
            f"cannot reach {url}: no client for {url.strip().partition(':')[0]}:// is installed; "
            "valid: a local path, gs:// (pip install 'backlight[gcp]'), s3:// (pip install "
            "'backlight[aws]')"
        ) from error
