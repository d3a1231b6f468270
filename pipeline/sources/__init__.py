"""Sources: one file a dataset format, each a function that yields the dataset's examples.

This is the first step of a run: `read_examples` reads and checks the whole list, so that wrong
settings fail here, before any work. A new format is one new file and one line in `SOURCES`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import SettingsError
from pipeline.sources.coco import read_coco
from pipeline.sources.example import Example, Region
from pipeline.sources.image_ids import check_image_ids
from pipeline.sources.imagefolder import read_imagefolder
from pipeline.sources.table import read_table
from pipeline.sources.voc import read_voc

__all__ = ["SOURCES", "Example", "Region", "Source", "read_examples"]

Source = Callable[[Path, str | None, Path | None], Iterator[Example]]
"""`(root, split, annotations)` to the examples, in the dataset's own order."""

SOURCES: dict[str, Source] = {
    "voc": read_voc,
    "coco": read_coco,
    "imagefolder": read_imagefolder,
    "table": read_table,
}


def read_examples(
    source: str, root: Path, *, split: str | None = None, annotations: Path | None = None
) -> list[Example]:
    """Read the list of examples of a dataset and check it; no image is opened.

    A single missing image is left for the run to report; a root that holds none is an error.

    Args:
        source: a name in `SOURCES`.
        root: the dataset's folder; the examples' paths are relative to it.
        split: which part of the dataset, where the format has parts.
        annotations: the annotation file, as given or else relative to `root`.

    Raises:
        SettingsError: unknown source, no such root, annotations or split, a malformed annotation,
            an empty set, unusable or repeated image ids, or no listed image under `root`.
    """
    if source not in SOURCES:
        raise SettingsError(f"unknown source {source!r}; valid sources: {', '.join(SOURCES)}")
    if not root.is_dir():
        raise SettingsError(f"--root {root} is not a folder; give the folder of the dataset")
    found = None if annotations is None else _find_annotations(root, annotations)
    examples = list(SOURCES[source](root, split, found))
    if not examples:
        raise SettingsError(f"the {source} source found no image in {found or root}")
    check_image_ids(examples)
    if not any((root / example.path).is_file() for example in examples):
        raise SettingsError(
            f"none of the {len(examples)} listed images exists; the first should be "
            f"{root / examples[0].path}. Check --root"
        )
    return examples


def _find_annotations(root: Path, annotations: Path) -> Path:
    for path in (annotations, root / annotations):
        if path.is_file():
            return path
    raise SettingsError(
        f"no annotations file {annotations}: neither as given nor relative to --root {root}"
    )
