"""Folders of images: one folder per class, or one flat folder without labels."""

import os
from collections.abc import Iterator

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.photo_formats import FORMAT_OF_SUFFIX
from pipeline.sources.image_ids import image_id_from_path


def read_imagefolder(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Every image below a folder, sorted by path; its label is the first folder on the way to it.

    Images that lie in the folder itself have no label. Hidden files and folders are skipped, links
    followed. The image id is the path below the folder without extension, `/` written `__`.

    Args:
        root: the folder of the class folders, or of the splits.
        split: a folder of `root` to read instead of `root` itself, e.g. `val`.
        annotations: must be `None`: the folders are the labels.
        notes: takes what is left out.

    Raises:
        SettingsError: no such split, or annotations given.
    """
    if annotations is not None:
        raise SettingsError(
            "--source imagefolder takes its labels from the folders; drop --annotations, "
            "or use --source table"
        )
    folder = root if split is None else os.path.join(root, split)
    if not files.is_folder(folder):
        folders = sorted({path.split("/")[0] for path in files.below(root) if "/" in path})
        raise SettingsError(
            f"no folder {split!r} in --root {root}; it holds: {', '.join(folders[:10]) or 'none'}"
        )
    for path in sorted(filter(_is_image, files.below(folder))):
        first, *others = path.split("/")
        yield Example(
            image_id=image_id_from_path(path),
            path=path if split is None else os.path.normpath(f"{split}/{path}"),
            labels=(first,) if others else (),
        )


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in FORMAT_OF_SUFFIX
