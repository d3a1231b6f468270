"""Sources: one file per dataset format, each with a function that yields the dataset's examples.

This is the first step of a run: `read_examples` reads and checks the whole list, so that wrong
settings fail here, before any work. A new source is one new file and one entry in `SOURCES`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.sources.cls_loc import read_cls_loc
from pipeline.sources.coco import read_coco
from pipeline.sources.image_ids import check_image_ids
from pipeline.sources.imagefolder import read_imagefolder
from pipeline.sources.table import read_table
from pipeline.sources.voc import read_voc
from transforms.names import unknown_name

Read = Callable[[str, str | None, str | None, Notes], Iterator[Example]]
"""`(root, split, annotations, notes)` to the examples, in the dataset's own order; paths or URLs.

What the reader leaves out, or takes for something else, it adds to the notes.
"""


@dataclass(frozen=True)
class Source:
    """One format of datasets.

    Attributes:
        read: yields the examples; raises SettingsError where the settings do not fit the dataset.
        description: what the dataset looks like, in a few words.
        whole_photos: whether the network sees photos whole by default, because their objects may
            lie at the border; otherwise it sees a central square.
        class_map: the shipped class map (`pipeline.model.classes.CLASS_MAPS`) from its classes to
            ImageNet's, if there is one.
        region: which pixels are an object's by default, a name of
            `pipeline.regions.REGIONS`.
    """

    read: Read
    description: str
    whole_photos: bool = False
    class_map: str | None = None
    region: str = "boxes"


SOURCES: dict[str, Source] = {
    "voc": Source(read_voc, "a VOCdevkit", whole_photos=True, class_map="voc"),
    "coco": Source(
        read_coco, "an instances JSON", whole_photos=True, class_map="coco", region="masks"
    ),
    "cls_loc": Source(
        read_cls_loc, "ImageNet's CLS-LOC layout, with synsets as labels", whole_photos=True
    ),
    "imagefolder": Source(read_imagefolder, "a folder per class, or a flat folder"),
    "table": Source(read_table, "a CSV or JSON lines file of paths, labels and boxes"),
}

_TRIED = 20  # requests: enough to find one image of a set that is there


def read_examples(
    source: str,
    root: str | os.PathLike[str],
    *,
    split: str | None = None,
    annotations: str | os.PathLike[str] | None = None,
    notes: Notes | None = None,
) -> Sequence[Example]:
    """Read the list of examples of a dataset and check it; no image is opened.

    A single missing image is left for the run to report; a root that holds none is an error.

    Args:
        source: a name in `SOURCES`.
        root: the dataset's folder, a path or a URL; the examples' paths are relative to it.
        split: which part of the dataset, where the format has parts.
        annotations: the annotation file, as given or else relative to `root`.
        notes: takes what was left out or taken for something else.

    Raises:
        SettingsError: when the source is unknown; there is no such root, annotations or split; an
            annotation is malformed; the set is empty; image ids are unusable or repeat; or no
            listed image exists.
    """
    notes = Notes() if notes is None else notes
    if source not in SOURCES:
        raise SettingsError(unknown_name("source", source, SOURCES))
    root = os.fspath(root)
    try:
        found_root = files.is_folder(root)
    except OSError as error:  # no such bucket, or no right to look
        raise SettingsError(f"cannot list --root {root}: {error}") from error
    if not found_root:
        raise SettingsError(f"--root {root} is not a folder; give the folder of the dataset")
    found = None if annotations is None else _find_annotations(root, os.fspath(annotations))
    examples = Packed(_with_problems_noted(SOURCES[source].read(root, split, found, notes), notes))
    if not examples:
        noted = "".join(f"; {note}" for note in notes.all())
        raise SettingsError(f"the {source} source found no image in {found or root}{noted}")
    if all(example.problem for example in examples):
        raise SettingsError(
            f"none of the {len(examples):,} images can be used; the first: {examples[0].problem}. "
            "Correct the files, or leave the images out of the list"
        )
    check_image_ids(examples)
    if not _any_exists(root, examples):
        raise SettingsError(
            f"none of the {len(examples)} listed images exists; the first should be "
            f"{os.path.join(root, examples[0].path)}. Check --root"
        )
    return examples


def _with_problems_noted(examples: Iterable[Example], notes: Notes) -> Iterator[Example]:
    for example in examples:
        if example.problem:
            what = "that cannot be used and costs a row of errors/"
            notes.add("image", what, example.problem)
        yield example


def _any_exists(root: str, examples: Sequence[Example]) -> bool:
    paths = (os.path.join(root, example.path) for example in examples)
    if not files.is_object_store(root):
        return any(map(files.is_file, paths))
    if any(map(files.is_file, islice(paths, _TRIED))):
        return True
    listed = {example.path for example in examples}
    return any(path in listed for path in files.below(root))


def _find_annotations(root: str, annotations: str) -> str:
    for path in (annotations, os.path.join(root, annotations)):
        if files.is_file(path):
            return path
    raise SettingsError(
        f"no annotations file {annotations}: neither as given nor relative to --root {root}"
    )
