"""The photos below a folder, and what else lies there."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.notes import Notes
from pipeline.photo_formats import is_photo_name

_PLAN = "_meta/plan.json"
"""By this file one knows an output of Backlight: its pictures are no photos of the dataset."""

_NO_PART_OF_A_SET = frozenset(
    {
        *("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot"),
        *("$recycle.bin", "system volume information", "lost+found"),
    }
)
"""What macOS, the network disks of Synology, Windows and Linux put there, in small letters."""


@dataclass
class PhotoFolder:
    """What is below a folder.

    Attributes:
        photos: the paths of the photos, relative to it.
        folders: the names of the folders directly in it, also of those without a photo.
    """

    photos: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)


def photos_below(folder: str, notes: Notes) -> PhotoFolder:
    """The photos below a folder. Links are followed, and no folder is counted twice.

    Left out, and noted: hidden files and folders, outputs of Backlight, files that have not the
    suffix of a photo, names that are not UTF-8, and links to a folder that is counted already.

    Raises:
        SettingsError: a folder cannot be read.
    """
    found = PhotoFolder()
    listed = _objects if files.is_object_store(folder) else _local
    for path in listed(folder, found.folders, notes):
        suffix = os.path.splitext(path)[1].lower()
        if not _is_text(path):
            notes.add("file", "left out: the name is not UTF-8", ascii(path))
        elif is_photo_name(path):
            found.photos.append(path)
        else:
            what = f"{suffix} is not a photo's suffix" if suffix else "without a suffix"
            notes.add("file", f"left out: {what}", path)
    return found


def _local(folder: str, top: set[str], notes: Notes) -> Iterator[str]:
    """The files, those behind links last: a folder counts where it lies, not where a link is."""
    seen: set[tuple[int, int]] = set()
    waiting, links = deque([""]), deque[str]()
    while waiting or links:
        relative = waiting.popleft() if waiting else links.popleft()
        path = os.path.join(folder, relative) if relative else folder
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in seen:
                notes.add("link", "left out: its folder is counted already", relative)
                continue
            seen.add((found.st_dev, found.st_ino))
            if relative and os.path.isfile(os.path.join(path, _PLAN)):
                notes.add("folder", "left out: an output of Backlight", relative)
                continue
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise SettingsError(
                f"cannot read the folder {path}: {error.strerror}; give the right to read it, or "
                "move it out of --root"
            ) from None
        if relative and "/" not in relative:
            top.add(relative)
        for entry in inside:
            below = f"{relative}/{entry.name}" if relative else entry.name
            is_folder = _is_folder(entry)
            if is_hidden(entry.name):
                notes.add("folder" if is_folder else "file", "left out: hidden", below)
            elif is_folder:
                (links if entry.is_symlink() else waiting).append(below)
            else:
                yield below


def _objects(folder: str, top: set[str], notes: Notes) -> Iterator[str]:
    paths = list(files.below(folder))
    outputs = tuple(path.removesuffix(_PLAN) for path in paths if path.endswith("/" + _PLAN))
    for output in outputs:
        notes.add("folder", "left out: an output of Backlight", output.rstrip("/"))
    for path in paths:
        parts = path.split("/")
        if path.startswith(outputs):
            continue
        if any(map(is_hidden, parts)):
            notes.add("file", "left out: hidden", path)
            continue
        top.update(parts[:-1][:1])
        yield path


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a dataset, but of a system's own."""
    return name.startswith(".") or name.lower() in _NO_PART_OF_A_SET


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
