"""Tar shards: which files a pattern stands for, and the members of one, read by their headers.

A member's bytes stay where they are: a header says where they begin and how many they are.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.notes import Notes
from pipeline.photo_bytes import open_regular

SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_WILD = re.compile(r"[*?\[{]")
_BLOCK = 512
_AFTER_THE_END = 20 * _BLOCK  # tar fills its last record with zeros
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name, at which byte it begins, and how many bytes it has."""

    name: str
    start: int
    size: int
    content: bytes | None


def folder_of(pattern: str) -> str:
    """The folder that the shards lie in: what stands before the first wildcard of a pattern."""
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


def members(folder: str, shard: str, contents: frozenset[str], notes: Notes) -> Iterator[Member]:
    """The files in a shard, in its order; memory: one of them.

    The content is read of those whose name ends with one of `contents`. A shard that is broken, or
    ends too early, is read up to there, and noted.
    """
    path = os.path.join(folder, shard)
    with open_regular(path) as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (found := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]
                    if found.isdir():
                        continue
                    if not found.isfile() or found.issparse():
                        notes.add("member", "left out: a link, or no plain file", _at(shard, found))
                        continue
                    if found.offset_data + found.size > whole:
                        notes.add("member", "left out: the shard ends within it", _at(shard, found))
                        return
                    content = None
                    if found.name.rsplit(".", 1)[-1].lower() in contents:
                        file.seek(found.offset_data)
                        content = file.read(found.size)
                    yield Member(found.name, found.offset_data, found.size, content)
                end = tar.offset
        except (tarfile.TarError, EOFError) as error:
            notes.add("shard", f"read up to where it is broken ({error})", shard)
            return
        file.seek(end)
        after = file.read(_AFTER_THE_END)
        if any(after[:_BLOCK]):
            notes.add("shard", "read up to where it is broken (no header of a member)", shard)
        elif any(after):
            notes.add("shard", "read up to its end mark, after which more follows", shard)
        elif len(after) < _BLOCK:
            notes.add("shard", "without an end mark, so that it may be cut off", shard)


def _at(shard: str, found: tarfile.TarInfo) -> str:
    return f"{shard}: {found.name}"


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
