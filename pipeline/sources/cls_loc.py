"""ImageNet's CLS-LOC layout: photos by synset, and an XML file of boxes for some of them.

    ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG
    ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG
    ILSVRC/Annotations/CLS-LOC/(the same).xml
    ILSVRC/ImageSets/CLS-LOC/{train_cls,train_loc,val,test}.txt      lines "path index"

The XML files are like Pascal VOC's, but their pixels count from 0, and the name of an object is its
synset. The photos of `val` may also lie in folders by synset, as of `train`. Source: the
development kit of ILSVRC 2012, in the layout of its later years.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Note, Notes
from pipeline.photo_formats import is_photo_name
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.listed import listed_lines
from pipeline.sources.objects import Annotated, Objects
from pipeline.sources.paths import PhotoPaths
from pipeline.sources.sizes import size_of_photo
from pipeline.sources.voc_xml import read_annotation
from transforms.pixels import Size

_INSIDE = ("", "ILSVRC")  # where the folders lie below --root
_LAYOUT = "CLS-LOC"
_DEFAULT_SPLIT = "val"
_SUFFIX = ".JPEG"


def read_cls_loc(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a split, in the order of its list.

    The labels are synsets: the folder of a photo, and the names of its objects. Photos without an
    XML file have no boxes, as most have in `train_cls`; that is noted. A broken XML file is a
    problem of its image, which costs one error row.

    Args:
        root: the folder that holds `Data/CLS-LOC`, or the one above it.
        split: a file of `ImageSets/CLS-LOC` without `.txt`, by default `val`; or where there are no
            such files, a folder of `Data/CLS-LOC`.
        annotations: must be `None`: the annotations lie in the dataset's own folder.
        notes: takes what is left out.

    Raises:
        SettingsError: not such a folder, no such split, or most of the objects cannot be used.
    """
    if annotations is not None:
        raise SettingsError(
            f"--source cls_loc reads ROOT's own Annotations/{_LAYOUT}; drop --annotations"
        )
    part = _part(root, split or _DEFAULT_SPLIT)
    objects = Objects(notes)
    for image in read_ahead(partial(_read_image, root, part), _names(part, notes)):
        notes.extend(image.notes)
        synsets = image.synset, *(each.class_name for each in image.objects)
        yield Example(
            image_id=image_id_from_path(image.name),
            path=os.path.relpath(os.path.join(part.photos, image.name), root),
            labels=tuple(dict.fromkeys(filter(None, synsets))),
            regions=objects.regions(image.objects, image.size),
            size=image.size,
            problem=image.problem,
        )
    objects.settle(part.xml)


@dataclass(frozen=True)
class _Part:
    """Where a split lies: its list (empty: there is none), and its folders of photos and XML."""

    listed: str
    photos: str
    xml: str


@dataclass(frozen=True)
class _Image:
    """One image as its files have it; `name` is its path below the folder of photos."""

    name: str
    synset: str
    size: Size | None = None
    objects: Sequence[Annotated] = ()
    notes: Sequence[Note] = ()
    problem: str = ""


def _part(root: str, split: str) -> _Part:
    folders = [os.path.join(root, inside) for inside in _INSIDE]
    above = next((f for f in folders if files.is_folder(os.path.join(f, "Data", _LAYOUT))), None)
    if above is None:
        raise SettingsError(
            f"no Data/{_LAYOUT} in --root {root}; give the folder that holds it, such as ILSVRC"
        )
    lists = os.path.join(above, "ImageSets", _LAYOUT)
    photos = os.path.join(above, "Data", _LAYOUT)
    listed = os.path.join(lists, f"{split}.txt")
    folder = split.partition("_")[0]  # train_cls and train_loc lie in train
    splits = [os.path.basename(path) for path in files.matching(lists, "*.txt")]
    if not files.is_file(listed):
        if splits or not files.is_folder(os.path.join(photos, split)):
            known = ", ".join(name.removesuffix(".txt") for name in splits)
            raise SettingsError(
                f"no split {split!r} in {lists}; valid splits: {known or 'none'}. Give --split"
            )
        listed, folder = "", split
    return _Part(
        listed, os.path.join(photos, folder), os.path.join(above, "Annotations", _LAYOUT, folder)
    )


def _names(part: _Part, notes: Notes) -> Iterator[str]:
    """The photos of a split, as paths below its folder of photos."""
    if not part.listed:
        yield from sorted(filter(is_photo_name, files.below(part.photos)))
        return
    paths = PhotoPaths(part.photos, notes)

    @cache
    def in_folders() -> Mapping[str, str]:
        photos = filter(is_photo_name, files.below(part.photos))
        return {os.path.splitext(os.path.basename(photo))[0]: photo for photo in photos}

    for line in listed_lines(part.listed):
        name = re.split(r"[\s,;]", line, maxsplit=1)[0].replace("\\", "/")  # the rest is a number
        usual = name if is_photo_name(name) else name + _SUFFIX
        is_there = files.is_object_store(part.photos) or files.is_file(f"{part.photos}/{usual}")
        try:
            found = usual if is_there else paths.below(name)
        except ValueError:  # which is said of all of them together
            found = usual
        found = found if is_photo_name(found) else usual
        if not is_there and "/" not in found and not files.is_file(f"{part.photos}/{found}"):
            sorted_in = in_folders().get(os.path.splitext(found)[0])
            if sorted_in is not None:
                notes.add("photo", "taken from the folder of a class", f"{found}: {sorted_in}")
                found = sorted_in
        yield found


def _read_image(root: str, part: _Part, name: str) -> _Image:
    synset = name.rpartition("/")[0].rpartition("/")[2]
    photo = os.path.relpath(os.path.join(part.photos, name), root)
    notes = Notes()
    for path in _xml_files(part, name, synset):
        try:
            annotation = read_annotation(
                path, lambda file_name: size_of_photo(root, photo), notes, first_pixel=0
            )
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError, ValueError) as error:
            return _Image(name, synset, problem=f"{path}: {error}")
        return _Image(name, synset, annotation.size, annotation.objects, notes.all())
    notes.add("image", "without an XML file, so without boxes", name)
    return _Image(name, synset, notes=notes.all())


def _xml_files(part: _Part, name: str, synset: str) -> Iterator[str]:
    """Where the XML file of a photo may be: those of `val` often stay when its photos move."""
    stem = os.path.splitext(name)[0]
    yield os.path.join(part.xml, f"{stem}.xml")
    base = os.path.basename(stem)
    if base != stem and not base.startswith(f"{synset}_"):  # as in `train`
        yield os.path.join(part.xml, f"{base}.xml")
