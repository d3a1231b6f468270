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
from pipeline.photo_bytes import file_of
from pipeline.sources.cls_loc import read_cls_loc
from pipeline.sources.coco import read_coco
from pipeline.sources.columns import NO_COLUMNS, Columns
from pipeline.sources.hf import hf_classes, read_hf
from pipeline.sources.image_ids import check_image_ids
from pipeline.sources.imagefolder import folder_classes, read_imagefolder
from pipeline.sources.inside import check_inside
from pipeline.sources.table import read_table
from pipeline.sources.tar_shards import folder_of
from pipeline.sources.voc import read_voc
from pipeline.sources.webdataset import read_webdataset
from transforms.names import unknown_name

Read = Callable[..., Iterator[Example]]
"""`(root, split, annotations, notes)` to the examples, in the dataset's own order; paths or URLs.

What the reader leaves out, or takes for something else, it adds to the notes. One that
`takes_columns` has a fifth argument, the `pipeline.sources.columns.Columns` of the settings.
"""

ClassOrder = Callable[[str, str | None, Columns], tuple[str, ...]]
"""`(root, split, columns)` to the names of the set's classes, in the order that it numbers them."""


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
        takes_columns: whether the settings name columns of it.
        has_box_formats: whether its boxes may be of any format, which the settings name.
        class_order: how the set itself numbers its classes, where it does.
        folder: the folder that the examples' paths are relative to, of what the user gives as root.
    """

    read: Read
    description: str
    whole_photos: bool = False
    class_map: str | None = None
    region: str = "boxes"
    takes_columns: bool = False
    has_box_formats: bool = False
    class_order: ClassOrder | None = None
    folder: Callable[[str], str] = str


SOURCES: dict[str, Source] = {
    "voc": Source(read_voc, "a VOCdevkit", whole_photos=True, class_map="voc"),
    "coco": Source(
        read_coco, "an instances JSON", whole_photos=True, class_map="coco", region="masks"
    ),
    "cls_loc": Source(
        read_cls_loc, "ImageNet's CLS-LOC layout, with synsets as labels", whole_photos=True
    ),
    "imagefolder": Source(
        read_imagefolder, "a folder per class, or a flat folder", class_order=folder_classes
    ),
    "table": Source(
        read_table,
        "a CSV, JSON or Parquet file of paths (or photos), labels and boxes",
        takes_columns=True,
    ),
    "webdataset": Source(
        read_webdataset,
        "tar shards of photos with cls or json: a folder, or a pattern such as 'x-{000..012}.tar'",
        takes_columns=True,
        folder=folder_of,
    ),
    "hf": Source(
        read_hf,
        "a Hugging Face dataset on disk: a folder of save_to_disk, or of Parquet files",
        takes_columns=True,
        has_box_formats=True,
        class_order=hf_classes,
    ),
}

_TRIED = 20  # requests: enough to find one image of a set that is there


def check_root(source: str, root: str) -> None:
    """Check that there is a folder to read a dataset from.

    Raises:
        SettingsError: there is none, or it cannot be listed.
    """
    try:
        is_there = files.is_folder(SOURCES[source].folder(root))
    except OSError as error:  # no such bucket, or no right to look
        raise SettingsError(f"cannot list --root {root}: {error}") from error
    if not is_there:
        raise SettingsError(f"--root {root} is not a folder; give the folder of the dataset")


def read_examples(
    source: str,
    root: str | os.PathLike[str],
    *,
    split: str | None = None,
    annotations: str | os.PathLike[str] | None = None,
    notes: Notes | None = None,
    columns: Columns = NO_COLUMNS,
    follow_links: bool = False,
) -> Sequence[Example]:
    """Read the list of examples of a dataset and check it; no image is opened.

    A single missing image is left for the run to report; a root that holds none is an error.

    Args:
        source: a name in `SOURCES`.
        root: the dataset's folder, a path or a URL; the examples' paths are relative to it.
        split: which part of the dataset, where the format has parts.
        annotations: the annotation file, as given or else relative to `root`.
        notes: takes what was left out or taken for something else.
        columns: the columns of the photo and the label, where the format has columns.
        follow_links: whether photos may lie behind links that lead out of `root`.

    Raises:
        SettingsError: when the source is unknown; there is no such root, annotations or split; an
            annotation is malformed; the set is empty; image ids are unusable or repeat; photos
            lie outside of `root`; or no listed image exists.
    """
    notes = Notes() if notes is None else notes
    if source not in SOURCES:
        raise SettingsError(unknown_name("source", source, SOURCES))
    entry = SOURCES[source]
    if columns.box_format is not None and not entry.has_box_formats:
        others = ", ".join(name for name, other in SOURCES.items() if other.has_box_formats)
        raise SettingsError(
            f"the boxes of --source {source} are of one format: leave out --box-format, which is "
            f"for {others}"
        )
    if columns != NO_COLUMNS and not entry.takes_columns:
        others = ", ".join(name for name, other in SOURCES.items() if other.takes_columns)
        raise SettingsError(
            f"--source {source} has no columns: leave out --image-column and --label-column, "
            f"which are for {others}"
        )
    root = os.fspath(root)
    check_root(source, root)
    folder = entry.folder(root)
    found = None if annotations is None else _find_annotations(root, os.fspath(annotations))
    asked = (columns,) if entry.takes_columns else ()
    try:
        read = entry.read(root, split, found, notes, *asked)
        examples = Packed(_with_problems_noted(read, notes))
    except OSError as error:
        raise SettingsError(f"cannot read the dataset: {error}; check --root") from error
    if not examples:
        noted = "".join(f"; {note}" for note in notes.all())
        raise SettingsError(f"the {source} source found no image in {found or root}{noted}")
    if all(example.problem for example in examples):
        raise SettingsError(
            f"none of the {len(examples):,} images can be used; the first: {examples[0].problem}. "
            "Correct the files, or leave the images out of the list"
        )
    check_image_ids(examples)
    paths = (example.path for example in examples)
    check_inside(folder, paths, found, follow_links=follow_links)
    if not _any_exists(folder, examples):
        raise SettingsError(
            f"none of the {len(examples)} listed images exists; the first should be "
            f"{os.path.join(folder, examples[0].path)}{_elsewhere(folder, examples[0].path)}"
        )
    return examples


def _with_problems_noted(examples: Iterable[Example], notes: Notes) -> Iterator[Example]:
    for example in examples:
        if example.problem:
            what = "that cannot be used and costs a row of errors/"
            notes.add("image", what, example.problem)
        yield example


def _any_exists(root: str, examples: Sequence[Example]) -> bool:
    paths = (os.path.join(root, file_of(example.path)) for example in examples)
    if not files.is_object_store(root):
        return any(map(files.is_file, paths))
    if any(map(files.is_file, islice(paths, _TRIED))):
        return True
    listed = {file_of(example.path) for example in examples}
    return any(path in listed for path in files.below(root))


def _elsewhere(root: str, path: str) -> str:
    """Where else below a local root there is a file of that name, and what to check."""
    name = os.path.basename(path)
    below = () if files.is_object_store(root) else files.below(root)
    try:
        found = next((other for other in below if os.path.basename(other) == name), None)
    except OSError:  # a folder that may not be read
        found = None
    if found is None:
        return ". Check --root"
    return (
        f", and there is {os.path.join(root, found)}. Check --root and, if the set has parts, "
        "--split"
    )


def _find_annotations(root: str, annotations: str) -> str:
    for path in (annotations, os.path.join(root, annotations)):
        if files.is_file(path):
            return path
    raise SettingsError(
        f"no annotations file {annotations}: neither as given nor relative to --root {root}"
    )
