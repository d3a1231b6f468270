"""Tar shards: which files a pattern stands for, and the members of one, read by their headers.

A member's bytes stay where they are: a header says where they begin and how many they are.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from threading import Event
from typing import BinaryIO

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.errors import SettingsError
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.photo_bytes import open_regular
from pipeline.sources.splits import SPLITS

SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_WILD = re.compile(r"[*?\[{]")
_BLOCK = 512
_HEADERS = 8 * _BLOCK  # asked for at a URL: of a photo and of the labels before it
_AFTER_THE_END = 20 * _BLOCK  # tar fills its last record with zeros
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""How files of gzip, bzip2, xz, zstd and lz4 begin."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, at which byte it begins, and how many bytes it has."""

    name: str
    start: int
    size: int
    content: bytes | None


def folder_of(pattern: str) -> str:
    """The folder that the shards lie in: what stands before the first wildcard of a pattern.

    A local folder of that very name is one, whatever is in its name.
    """
    if not files.is_object_store(pattern) and os.path.isdir(pattern):
        return pattern
    literal = pattern
    if wild := _WILD.search(pattern):
        literal = os.path.dirname(pattern[: wild.start()])
    elif pattern.lower().endswith((SUFFIX, *_COMPRESSED)):
        literal = os.path.dirname(pattern)
    return literal or "."


def shards_of(root: str, split: str | None) -> list[str]:
    """The shards, relative to `folder_of(root)`: sorted, or in the order of the braces.

    Args:
        root: a folder, or a pattern such as `set/train-{000..012}.tar` or `set/*.tar`.
        split: a pattern below that folder; or a part of the set: a folder, or how names begin.

    Raises:
        SettingsError: there are none, some of the braces are missing, or they are compressed.
    """
    folder = folder_of(root)
    if folder.rstrip("/") == root.rstrip("/"):
        found = sorted(path for path in files.below(folder) if _is_shard(path))
        if split is not None:
            found = _of_split(folder, split, found)
    elif split is not None:
        raise SettingsError(f"--root {root} names the shards, so leave out --split {split}")
    else:
        found = _matching(folder, os.path.relpath(root, folder) if folder == "." else _rest(root))
    if compressed := [path for path in found if path.lower().endswith(_COMPRESSED)]:
        raise SettingsError(
            f"{len(compressed)} of {len(found)} shards are compressed ({compressed[0]}), so that "
            "no photo in them can be read alone; unpack them to .tar"
        )
    if not found:
        raise SettingsError(f"no .tar shard in {root}{'' if split is None else f', split {split}'}")
    return found


def parts_of(shards: Iterable[str]) -> tuple[str, ...]:
    """The splits that the names of shards begin with, as `train` of `train-000.tar`."""
    first = dict.fromkeys(re.split(r"[/._-]", path)[0] for path in shards)
    return tuple(word for word in first if word.lower() in SPLITS)


def members_of_all(
    folder: str, shards: Sequence[str], contents: frozenset[str], notes: Notes
) -> Iterator[tuple[str, Iterable[Member]]]:
    """Each shard with its `members`, in order.

    At a URL every header is a request, so that several shards are read at once; memory: the members
    of some 64 shards, as `Packed`.
    """
    if not files.is_object_store(folder):
        for shard in shards:
            yield shard, members(folder, shard, contents, notes)
        return
    ended = Event()

    def read(shard: str) -> tuple[Packed[Member], Notes]:
        own = Notes()
        found = members(folder, shard, contents, own)
        return Packed(takewhile(lambda _: not ended.is_set(), found)), own

    try:
        for shard, (found, own) in zip(shards, read_ahead(read, shards), strict=True):
            notes.extend(own.all())
            yield shard, found
    finally:
        ended.set()


def members(folder: str, shard: str, contents: frozenset[str], notes: Notes) -> Iterator[Member]:
    """The files in a shard, in its order; memory: one of them.

    The content is read of those whose name ends with one of `contents`. A shard that is broken, or
    ends too early, is read up to there, and noted.
    """
    with open_regular(os.path.join(folder, shard), _HEADERS) as opened:
        file, whole = _for_headers(opened), opened.seek(0, os.SEEK_END)
        at, extra = 0, _Extra()
        while at < whole:
            block = _read(file, at, _BLOCK)
            if not any(block):
                if any(_read(file, at, _AFTER_THE_END)):
                    notes.add("shard", "read up to its end mark, after which more follows", shard)
                return
            try:
                header = _header(block)
            except ValueError as error:
                if not at and any(map(block.startswith, _PACKED)):
                    notes.add("shard", "left out: it is compressed; unpack it", shard)
                    return
                notes.add("shard", f"read up to where it is broken: {error}", f"{shard}, byte {at}")
                return
            size = header.size if extra.size is None else extra.size
            start, name = at + _BLOCK, extra.name or header.name
            if start + size > whole:
                notes.add("member", "left out: the shard ends within it", f"{shard}: {name}")
                return
            at = start + -(-size // _BLOCK) * _BLOCK
            if header.kind in _EXTRA_KINDS:
                extra = extra.with_more(header.kind, _read(file, start, size))
                continue
            extra = _Extra()
            if header.kind not in _FILE_KINDS:
                if header.kind != _FOLDER:
                    notes.add("member", "left out: a link, or no plain file", f"{shard}: {name}")
            elif not name.endswith("/"):
                wanted = name.rpartition(".")[2].lower() in contents
                yield Member(name, start, size, _read(file, start, size) if wanted else None)
        notes.add("shard", "without an end mark, so that it may be cut off", shard)


_FILE_KINDS = (b"0", b"\0", b"7")
_FOLDER = b"5"
_LONG_NAME, _PAX = b"L", b"x"
_EXTRA_KINDS = (_LONG_NAME, _PAX, b"K", b"g")
"""Headers that say more of the next member: a long name, or records; and those of links and all."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    size: int
    kind: bytes


@dataclass(frozen=True, slots=True)
class _Extra:
    """What the headers before a member's own say of it."""

    name: str = ""
    size: int | None = None

    def with_more(self, kind: bytes, content: bytes) -> "_Extra":
        """With what one more header says."""
        if kind == _LONG_NAME:
            return _Extra(_name(content), self.size)
        if kind != _PAX:
            return self
        records = dict(re.findall(rb"\d+ ([^=]+)=([^\n]*)\n", content))
        name = records[b"path"].decode(errors="replace") if b"path" in records else ""
        size = int(records[b"size"]) if b"size" in records else self.size
        return _Extra(name or self.name, size)


def _header(block: bytes) -> _Header:
    """The header of a member, as POSIX (ustar, pax) and GNU write it.

    Raises:
        ValueError: it is none.
    """
    stated = block[148:156].split(b"\0")[0].strip()
    if len(block) < _BLOCK or not stated.isdigit() or int(stated, 8) != _checksum(block):
        raise ValueError("no header of a member")
    name = _name(block[:100])
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = f"{_name(block[345:500])}/{name}"
    return _Header(name, _number(block[124:136]), block[156:157])


def _checksum(block: bytes) -> int:
    """The sum of the bytes, with spaces in the place of the checksum itself."""
    return sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(text: bytes) -> int:
    """A number in octal digits, or above 8 GiB in bytes."""
    if text[0] & 0x80:
        return int.from_bytes(text[1:])
    return int(text.split(b"\0")[0].strip() or b"0", 8)


def _name(text: bytes) -> str:
    return text.split(b"\0")[0].decode(errors="replace")


def _for_headers(file: BinaryIO) -> BinaryIO:
    """The same file; a local one without the reading ahead, which would fetch the photos."""
    raw = getattr(file, "raw", None)
    if not isinstance(raw, io.FileIO):
        return file
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return raw


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _is_shard(path: str) -> bool:
    return path.lower().endswith((SUFFIX, *_COMPRESSED))


def _of_split(folder: str, split: str, found: list[str]) -> list[str]:
    if _WILD.search(split) or split.lower().endswith(SUFFIX):
        return _matching(folder, split)
    own = [path for path in found if re.split(r"[/._-]", path)[0] == split]
    own = own or [path for path in found if path.startswith(split)]
    if not own:
        raise SettingsError(
            f"no shard of split {split!r} in {folder}; it has {', '.join(found[:_SHOWN]) or 'none'}"
            f"{', ...' if len(found) > _SHOWN else ''}. Give the first part of their names, a "
            "folder, or a pattern such as 'train-{000..012}.tar'"
        )
    return own


def _rest(root: str) -> str:
    """The pattern of `root` below `folder_of(root)`."""
    return root[len(folder_of(root).rstrip("/")) + 1 :]


def _matching(folder: str, pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(pattern))
    except ValueError as error:
        raise SettingsError(f"the braces of {pattern} are not balanced: {error}") from None
    found: dict[str, None] = {}
    missing = []
    for each in patterns:
        if re.search(r"[*?\[]", each):
            paths = files.matching(folder, each)
            prefix = len(folder.rstrip("/")) + 1
            found |= dict.fromkeys(path[prefix:] for path in paths)
        elif files.is_file(os.path.join(folder, each)):
            found[each] = None
        else:
            missing.append(each)
    if missing:
        raise SettingsError(
            f"{len(missing)} of the {len(patterns)} shards of {pattern} are not in {folder}: "
            f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}; correct the "
            "pattern, or fetch them"
        )
    return list(found)
