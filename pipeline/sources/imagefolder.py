"""Folders of images: one folder per class, or one flat folder without labels."""

import os
import unicodedata
from collections.abc import Iterator

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.sources.columns import Columns
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.photo_folders import PhotoFolder, photos_below
from pipeline.sources.splits import SPLITS


def read_imagefolder(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Every image below a folder, sorted by path; its label is the first folder on the way to it.

    Images that lie in the folder itself have no label. `photos_below` says what is left out. The
    image id is the path below the folder without extension, `/` written `__`.

    Args:
        root: the folder of the class folders, or of the splits.
        split: a folder of `root` to read instead of `root` itself, e.g. `val`.
        annotations: must be `None`: the folders are the labels.
        notes: takes what is left out.

    Raises:
        SettingsError: no such split, none where the folders are splits, annotations given, a folder
            that cannot be read, or two folders of the same name in two Unicode forms.
    """
    if annotations is not None:
        raise SettingsError(
            "--source imagefolder takes its labels from the folders; drop --annotations, "
            "or use --source table"
        )
    found = photos_below(_folder(root, split), notes)
    _class_names(found.folders)
    _check_no_splits(root, split, found)
    labelled = any("/" in path for path in found.photos)
    if only := _only_folder(found):
        below = only if split is None else f"{split}/{only}"
        notes.say(
            f"all photos lie in folders of {only!r}, which is their label; with --split {below} "
            "those folders are the labels"
        )
    for path in sorted(found.photos):
        first, *others = path.split("/")
        if labelled and not others:
            notes.add("photo", "without a label: not in the folder of a class", path)
        yield Example(
            image_id=image_id_from_path(path),
            path=path if split is None else os.path.normpath(f"{split}/{path}"),
            labels=(unicodedata.normalize("NFC", first),) if others else (),
        )


def folder_classes(root: str, split: str | None, columns: Columns) -> tuple[str, ...]:
    """The classes in the order that torchvision's `ImageFolder` numbers them: sorted by name.

    Raises:
        SettingsError: as `read_imagefolder`.
    """
    return _class_names(photos_below(_folder(root, split), Notes()).folders)


def _folder(root: str, split: str | None) -> str:
    folder = root if split is None else os.path.join(root, split)
    if not files.is_folder(folder):
        folders = sorted({path.split("/")[0] for path in files.below(root) if "/" in path})
        raise SettingsError(
            f"no folder {split!r} in --root {root}; it holds: {', '.join(folders[:10]) or 'none'}"
        )
    return folder


def _check_no_splits(root: str, split: str | None, found: PhotoFolder) -> None:
    """Check that the folders are classes, and not splits with a folder for each class."""
    folders = {path.split("/")[0] for path in found.photos if "/" in path}
    splits = sorted(folder for folder in folders if folder.lower() in SPLITS)
    are_splits = splits and len(splits) == len(folders)
    if are_splits and (_is_deep(found) or len(splits) > 1):  # a train may be a class
        below = "" if split is None else f"{split}/"
        raise SettingsError(
            f"the folders in {_folder(root, split)} are splits and no classes: "
            f"{', '.join(splits)}; give --split {below}{splits[0]}"
        )


def _only_folder(found: PhotoFolder) -> str | None:
    """The folder in whose folders all photos lie."""
    firsts = {path.split("/")[0] for path in found.photos}
    return firsts.pop() if _is_deep(found) and len(firsts) == 1 else None


def _is_deep(found: PhotoFolder) -> bool:
    """Whether all photos lie in folders of the first folders."""
    return all(path.count("/") > 1 for path in found.photos)


def _class_names(folders: set[str]) -> tuple[str, ...]:
    # sorted as they are written, which is how torchvision sorts them
    names: dict[str, str] = {}
    for folder in sorted(folders):
        name = unicodedata.normalize("NFC", folder)
        if name in names:
            raise SettingsError(
                f"the folders {names[name]!a} and {folder!a} are one name in two Unicode forms; "
                "rename one of them, or move their photos together"
            )
        names[name] = folder
    return tuple(names)
