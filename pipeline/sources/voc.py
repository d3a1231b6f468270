"""Pascal VOC: one XML file of boxes per image, and lists of image ids by split.

Some images have masks too, see `pipeline.sources.voc_masks`.
"""

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Note, Notes
from pipeline.photo_formats import is_photo_name
from pipeline.sources.boxes import clip_box
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.listed import listed_lines
from pipeline.sources.objects import Annotated, Objects
from pipeline.sources.sizes import size_of_photo
from pipeline.sources.voc_masks import MaskFiles
from pipeline.sources.voc_xml import read_annotation
from transforms.pixels import Size

_USUAL = ("Annotations", "JPEGImages")
"""The folders of annotations and photos in that of a year."""

_OF_TOOLS = (
    *(("Annotations", "images"), ("annotations", "images"), ("annotations/xmls", "images")),
    *(("labels", "data"), ("labels", "images"), ("", "")),
)
"""The same where tools write them: Label Studio, Kaggle, the Oxford pets, FiftyOne, labelImg."""

_LISTS = "Main"
_COMMENT = "#"
_DEFAULT_SPLIT = "test"  # the split on which the pointing game is reported
_LACKS_CLASS = "-1"
_FLAGS = ("1", "0", _LACKS_CLASS)  # of a class's list; 0: all its objects are difficult


def read_voc(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a Pascal VOC split, in the order of its list.

    An image whose annotation is missing or broken has a problem, and costs one error row.

    Args:
        root: the folder that holds VOCdevkit, VOCdevkit itself, or one year's folder (VOC2007).
        split: a file of ImageSets/Main without `.txt`, by default `test`; or of another folder
            there, such as `Segmentation/val`. A class's list (`dog_test`) flags images that lack
            the class with -1; they are left out. Where there are no lists, a folder of root; all
            XML files in it or in root are read then.
        annotations: must be `None`: the annotations lie in the dataset's own folder.
        notes: takes what is left out.

    Raises:
        SettingsError: not a VOC folder, no such split, or most of the objects cannot be used.
    """
    if annotations is not None:
        raise SettingsError("--source voc reads ROOT's own Annotations folder; drop --annotations")
    folder = _year_folder(root)
    if folder is None:
        year = _without_lists(root, split)
        names = list(year.annotation_of)
        notes.add(
            "image", f"of all XML files in {year.xml}: no ImageSets list them", count=len(names)
        )
        bare = [photo for name, photo in year.photo_of.items() if name not in year.annotation_of]
        if bare:
            notes.add("photo", "left out: no XML file has its name", *bare, count=len(bare))
    else:
        year = _Year.below(folder, *_USUAL)
        names = _names(year, split, notes)
    objects = Objects(notes)
    for image in read_ahead(partial(_read_image, root, year), names):
        notes.extend(image.notes)
        yield Example(
            image_id=image_id_from_path(f"{image.name}.jpg"),
            path=image.path,
            labels=tuple(dict.fromkeys(o.class_name for o in image.objects if o.class_name)),
            regions=objects.regions(image.objects, image.size),
            size=image.size,
            problem=image.problem,
        )
    objects.settle(year.xml)


@dataclass(frozen=True)
class _Year:
    """The folder of a year, and the names of its files, found by listing each folder once.

    Attributes:
        folder: path of the folder.
        xml: path of the folder of annotations.
        jpeg: path of the folder of photos.
        annotation_of: the annotations by their names without suffix.
        photos: the photos.
        photo_of: the photos by their names without suffix.
        masks: the masks.
    """

    folder: str
    xml: str
    jpeg: str
    annotation_of: Mapping[str, str]
    photos: frozenset[str]
    photo_of: Mapping[str, str]
    masks: MaskFiles

    @classmethod
    def below(cls, folder: str, xml: str, jpeg: str) -> "_Year":
        xml, jpeg = (os.path.join(folder, below) if below else folder for below in (xml, jpeg))
        photos = sorted(filter(is_photo_name, files.below(jpeg)))
        annotations = sorted(files.below(xml))
        return cls(
            folder,
            xml,
            jpeg,
            {
                os.path.splitext(file)[0]: file
                for file in annotations
                if file.lower().endswith(".xml")
            },
            frozenset(photos),
            {os.path.splitext(photo)[0]: photo for photo in photos},
            MaskFiles.below(folder),
        )

    def has(self, name: str) -> bool:
        """Whether the image has an annotation or a photo."""
        return name in self.annotation_of or name in self.photo_of

    @cached_property
    def alike(self) -> Mapping[str, str | None]:
        """The images by their folded names, as their annotations have them, else their photos."""
        return _by_folded(self.photo_of) | _by_folded(self.annotation_of)

    @cached_property
    def photo_alike(self) -> Mapping[str, str | None]:
        """The photos without an annotation of their name, by their folded names without folder."""
        return _by_folded(self.photo_of.keys() - self.annotation_of, os.path.basename)

    def known(self, name: str) -> str | None:
        """The image of this name; if there is none, or a photo alone, that of one spelt alike."""
        alike = self.alike.get(_folded(name))
        is_own = alike not in self.annotation_of or alike in self.photo_of
        return name if name in self.annotation_of or (name in self.photo_of and is_own) else alike


@dataclass(frozen=True)
class _Image:
    """One image as its files have it."""

    name: str
    path: str
    size: Size | None = None
    objects: Sequence[Annotated] = ()
    notes: Sequence[Note] = ()
    problem: str = ""


def _year_folder(root: str) -> str | None:
    """The folder of the year with its lists; None where there are no lists."""
    lists = "ImageSets/*/*.txt"
    found = {
        path.rsplit("/", 3)[0]
        for inside in ("", "VOC20*/", "VOCdevkit/VOC20*/")
        for path in files.matching(root, inside + lists)
    }
    if len(found) > 1:
        years = ", ".join(sorted(map(os.path.basename, found)))
        raise SettingsError(f"--root {root} holds {years}; give one")
    return found.pop() if found else None


def _without_lists(root: str, split: str | None) -> _Year:
    """The XML files and photos where annotation tools write them, without lists of images.

    Raises:
        SettingsError: there are none.
    """
    folder = root if split is None else os.path.join(root, split)
    for xml, jpeg in (_USUAL, *_OF_TOOLS):
        if files.matching(os.path.join(folder, xml) if xml else folder, "*.xml"):
            year = _Year.below(folder, xml, jpeg)
            if year.photos:
                return year
    others = sorted({path.rsplit("/", 2)[1] for path in files.matching(root, "*/*.xml")})
    raise SettingsError(
        f"no ImageSets/Main in --root {root} with lists of images, and no photos with XML files in "
        f"{folder}; give the folder that holds VOCdevkit, VOCdevkit itself, VOCdevkit/VOC2007, or "
        f"one of XML files and photos (--split for a folder in it, of: {', '.join(others) or '-'})"
    )


def _names(year: _Year, split: str | None, notes: Notes) -> list[str]:
    """The images of a split, each once."""
    sets = os.path.join(year.folder, "ImageSets")
    name = split or _DEFAULT_SPLIT
    path = os.path.join(sets, f"{name}.txt" if "/" in name else f"{_LISTS}/{name}.txt")
    found = files.matching(sets, "*/*.txt")
    splits = [os.path.relpath(list_, sets).removesuffix(".txt") for list_ in found]
    splits = sorted(list_.removeprefix(f"{_LISTS}/") for list_ in splits)
    # VOC has a list for each class and split, too many to show beside the plain ones
    plain = [list_ for list_ in splits if "_" not in list_] or splits
    if not files.is_file(path):
        wrong = (
            f"no --split is given, and {sets}/{_LISTS} has no {_DEFAULT_SPLIT}.txt"
            if split is None
            else f"no split {split!r} in {sets}/{_LISTS}"
        )
        raise SettingsError(f"{wrong}; valid splits: {', '.join(plain)}. Give --split")
    names = list(_listed(year, path, notes))
    others = [list_ for list_ in plain if list_ != _DEFAULT_SPLIT]
    if split is None and others:
        notes.add(
            "image",
            f"listed by {_DEFAULT_SPLIT}.txt, since no --split is given; the set also has "
            f"{', '.join(others)}",
            count=len(names),
        )
    unique = dict.fromkeys(names)
    if len(unique) < len(names):
        again = len(names) - len(unique)
        notes.add("line", f"of {os.path.basename(path)} left out: listed before", count=again)
    return list(unique)


def _listed(year: _Year, path: str, notes: Notes) -> Iterator[str]:
    for line in listed_lines(path):
        name = _name(year, line)
        if name is None:
            continue
        if line.startswith(_COMMENT) and not year.has(name):
            what = f"of {os.path.basename(path)} left out: it is a comment"
            notes.add("line", what, line)
            continue
        yield name


def _name(year: _Year, line: str) -> str | None:
    """The image that a line of a split names; `None`: one that lacks the class of the list.

    A name may have spaces, a suffix, or folders before it; its letters may be in the other case or
    Unicode form, and commas may stand between the fields. What there is decides.
    """
    if known := _known_name(year, line):
        return known
    before, *flag = re.split(r"\s*[\s,;]\s*(?=\S+$)", line, maxsplit=1)
    if flag == [_LACKS_CLASS]:
        return None
    name = before if flag and flag[0] in _FLAGS else line
    return _known_name(year, name) or _known_name(year, re.split(r"[\s,;]", line)[0]) or name


def _known_name(year: _Year, written: str) -> str | None:
    """The image of that name which has an annotation or a photo, if there is one."""
    below = written.replace("\\", "/").rpartition("/")[2]
    for name in dict.fromkeys((written, below)):
        stem, suffix = os.path.splitext(name)
        has_suffix = is_photo_name(name) or suffix.lower() == ".xml"
        for candidate in (name, stem) if has_suffix else (name,):
            if known := year.known(candidate):
                return known
    return None


def _by_folded(names: Iterable[str], part: Callable[[str], str] = str) -> dict[str, str | None]:
    """Names by their folded part; `None` where several have one."""
    found: dict[str, str | None] = {}
    for name in names:
        key = _folded(part(name))
        found[key] = None if key in found else name
    return found


def _folded(name: str) -> str:
    """What is the same in small letters and one Unicode form (NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _read_image(root: str, year: _Year, name: str) -> _Image:
    file = year.annotation_of.get(name, f"{name}.xml")
    path = os.path.join(year.xml, file)
    notes = Notes()

    def photo(file_name: str) -> str:
        file = os.path.join(year.jpeg, _photo(year, name, file_name))
        return os.path.relpath(file, root)

    try:
        annotation = read_annotation(
            path, lambda file_name: size_of_photo(root, photo(file_name)), notes, first_pixel=1
        )
    except FileNotFoundError:
        problem = f"no annotation {path} for image {name!r}, which the split lists"
        return _Image(name, photo(""), problem=problem)
    except (IsADirectoryError, PermissionError, ValueError) as error:
        return _Image(name, photo(""), problem=f"{path}: {error}")
    objects, size = annotation.objects, annotation.size
    try:
        own = year.masks.of_image(name, [each.class_name for each in objects], size)
    except ValueError as error:
        notes.add("image", "without its masks, so that its boxes count", str(error))
        own = None
    if own:
        objects = tuple(
            _masked(each, rle, own.size) for each, rle in zip(objects, own.rles, strict=True)
        )
        # A photo of another size than its masks is then a failure of that image.
        size = own.size
    return _Image(name, photo(annotation.file_name), size, objects, notes.all())


def _masked(each: Annotated, rle: str | None, size: Size) -> Annotated:
    """The object with its mask, unless that lies outside of its box, as where numbers differ."""
    from pycocotools import mask

    if rle is not None and each.sides:
        try:
            left, top, right, bottom = clip_box(each.sides, size)
        except ValueError:
            return replace(each, rle=rle, no_mask="")
        pixels = mask.decode({"size": list(size), "counts": rle.encode()})
        if not pixels[int(top) : math.ceil(bottom), int(left) : math.ceil(right)].any():
            return replace(each, rle=None, no_mask="its mask has no pixel in its box")
    return replace(each, rle=rle, no_mask="")


def _photo(year: _Year, name: str, file_name: str) -> str:
    """The photo of an image: by its name, or else the one that its annotation states.

    Where there is none of that name, it is the only one whose name differs in case, Unicode form,
    folder or suffix.
    """
    usual = f"{name}.jpg"
    stated = file_name.replace("\\", "/").rpartition("/")[2]
    if usual in year.photos:
        return usual
    if stated in year.photos:
        return stated
    stem = os.path.splitext(stated)[0] if is_photo_name(stated) else stated
    alike = (year.photo_alike.get(_folded(written)) for written in (name, stem))
    found = name if name in year.photo_of else next(filter(None, alike), None)
    return usual if found is None else year.photo_of[found]
