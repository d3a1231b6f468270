"""Folders of images: one folder a class, or one flat folder without labels."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.config import SettingsError
from pipeline.images import FORMAT_OF_SUFFIX
from pipeline.sources.example import Example
from pipeline.sources.image_ids import image_id_from_path


def read_imagefolder(root: Path, split: str | None, annotations: Path | None) -> Iterator[Example]:
    """Every image below a folder, sorted by path; its label is the first folder on the way to it.

    Images that lie in the folder itself have no label. Hidden files and folders are skipped, links
    followed. The image id is the path below the folder without extension, `/` written `__`.

    Args:
        root: the folder of the class folders, or of the splits.
        split: a folder of `root` to read instead of `root` itself, e.g. `val`.
        annotations: must be `None`: the folders are the labels.

    Raises:
        SettingsError: no such split, or annotations given.
    """
    if annotations is not None:
        raise SettingsError(
            "--source imagefolder takes its labels from the folders; drop --annotations, "
            "or use --source table"
        )
    folder = root if split is None else root / split
    if not folder.is_dir():
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise SettingsError(
            f"no folder {split!r} in --root {root}; it holds: {', '.join(folders[:10]) or 'none'}"
        )
    for path in sorted(_images(folder)):
        below = PurePosixPath(path)
        yield Example(
            image_id=image_id_from_path(path),
            path=(folder.relative_to(root) / path).as_posix(),
            labels=below.parts[:1] if len(below.parts) > 1 else (),
        )


def _images(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in FORMAT_OF_SUFFIX and not name.startswith("."):
                yield Path(parent, name).relative_to(folder).as_posix()
