"""Paths of photos as the datasets write them: below the root, and with slashes."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import unquote

from pipeline import files
from pipeline.notes import Notes
from pipeline.photo_formats import is_photo_name

FILE_URL = "file://"


class PhotoPaths:
    """Brings the paths of a set below its root; what is taken for something else is noted.

    Memory: the names in the folders of photos that are not where their path says.
    """

    def __init__(self, root: str, notes: Notes) -> None:
        self._root = root
        self._notes = notes
        self._above = files.absolute(root)
        self._is_local = not files.is_object_store(root)
        self._names = lru_cache(maxsize=None)(_names)

    def below(self, written: str) -> str:
        r"""The path of a photo, relative to the root, with slashes.

        A path below the root may also be absolute, begin with `~`, or be a URL of `file://`. Where
        no file of the name as written exists, a backslash is read as a slash, as files made on
        Windows have it; on a local disk, the path is that of the one file whose name differs in
        the case or the Unicode form of its letters alone, in spaces at its ends, in what a URL
        quotes (`%20`), or by a suffix that is not written.

        Raises:
            ValueError: the path is empty or no text, or does not lie below the root; the message is
                a reason that names no value.
        """
        if not written.strip():
            raise ValueError("it has no path")
        if not files.is_whole(written):
            raise ValueError("its path has half of a character, so that it is no text")
        path = written
        if path.startswith(FILE_URL):
            path = unquote(path.removeprefix(FILE_URL))
        if path.startswith("~") and not self._is_file(path):
            path = os.path.expanduser(path)
        if "\\" in path and not self._is_file(path):
            path = path.replace("\\", "/")
            self._notes.add("path", "read with its backslashes, as of Windows, as slashes", written)
        posix = PurePosixPath(path)
        if posix.is_absolute() and posix.is_relative_to(self._above):
            posix = posix.relative_to(self._above)
        if posix.is_absolute() or ".." in posix.parts or re.match("[A-Za-z]:/", path):
            raise ValueError("its path is not below --root; write it relative to that folder")
        path = posix.as_posix()
        if self._is_local and not self._is_file(path) and (found := self._respelt(path)):
            same = _composed(path) == _composed(found)  # then they look alike, too
            both = f"{written!a}: {found!a}" if same else f"{written}: {found}"
            self._notes.add("path", "taken for that of a file spelt alike", both)
            return found
        return path

    def _is_file(self, path: str) -> bool:
        return files.is_file(os.path.join(self._root, path))

    def _respelt(self, path: str) -> str | None:
        """The one file that the path is taken for, if there is one."""
        for spelling in dict.fromkeys((path, unquote(path))):
            *parents, base = spelling.split("/")
            folder = ""
            for parent in parents:
                inside = self._alike(folder, _folded(parent))
                own = [name for name in inside if name == parent] or inside
                if len(own) != 1:
                    break
                folder += f"{own[0]}/"
            else:
                keys = (_folded(base),) if is_photo_name(base) else (_folded(base), _stem(base))
                for key in keys:
                    found = [folder + name for name in self._alike(folder, key)]
                    if len(found) == 1 and self._is_file(found[0]):
                        return found[0]
        return None

    def _alike(self, folder: str, key: str) -> Sequence[str]:
        return self._names(os.path.join(self._root, folder)).get(key, ())


def _names(folder: str) -> dict[str, tuple[str, ...]]:
    """What is in a folder, by its folded name; photos also by their name without suffix."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        names: Iterable[str] = sorted(os.listdir(folder))
    except (OSError, ValueError):  # not there, or no name of a folder
        return found
    for name in names:
        keys = [_folded(name)]
        if is_photo_name(name):
            keys.append(_stem(os.path.splitext(name)[0]))
        for key in keys:
            found[key] = (*found.get(key, ()), name)
    return found


def _folded(name: str) -> str:
    return _composed(_composed(name.strip()).casefold())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return f"{_folded(name)}/"  # no name of a file has a slash
