"""COCO: one JSON file of instances, with masks as polygons or run lengths.

Files in this format come from many programs, so it is read as they write it: ids as numbers or as
text, boxes without masks and masks without boxes, sizes of 0. What cannot be used is left out and
noted.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes, shown
from pipeline.sources.flags import SPELLINGS, flag
from pipeline.sources.gzipped import open_unpacked
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.masks import is_written, rle_of
from pipeline.sources.objects import Annotated, Objects
from pipeline.sources.paths import PhotoPaths
from pipeline.sources.sizes import size_of_photo, stated_size
from transforms.pixels import Size

_Json = dict[str, Any]

MOST_STRAY = 0.5
"""The share of the annotations that may belong to no image of the file."""

_LONGEST_NUMBER = 30  # digits
_FEWEST_BOXES = 10
_MOST_CORNERS = 0.95  # of the boxes, of which a few are wrong either way
_MOST_OPENED = 20  # photos whose size is not stated
_URL_PARTS = 4  # slashes of https://host/folder/file
_BESIDE_PHOTOS = "_annotations.coco.json"  # as Roboflow exports it

_OTHER_FILES = {
    "caption": "captions",
    "segments_info": "panoptic segmentation",
    "keypoints": "keypoints",
}
"""What a file of COCO is whose annotations have this key, and neither boxes nor masks."""


def read_coco(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a COCO split, in the order of its file; images without annotations are kept.

    Ids that differ in type alone, such as 7 and "7", are the same; so are 7 and "007" where no
    other id is meant. An image without a file name is the file at the end of its `coco_url`, as in
    LVIS. The file may be packed with gzip. An image that states no size, or 0, has its boxes as
    they stand; where it has masks, its file is opened for the size, and for the first few such
    images to tell boxes from corners. A box that is missing or unusable beside a mask is that of
    the mask, and without a usable mask the box counts.

    Args:
        root: the folder that holds `annotations/` and the folders of images.
        split: the folder of images, e.g. `train2017`, in `root` or in `root/images`; without one
            the images lie in `root`.
        annotations: the instances file; by default `annotations/instances_<split>.json`, or
            `_annotations.coco.json` beside the images.
        notes: takes what is left out.

    Raises:
        SettingsError: neither split nor annotations; no such file, or not an instances file; an
            ids repeat; more than `MOST_STRAY` of the annotations belong to no image, or too many of
            them cannot be used; or the boxes are corners.
    """
    path = annotations or _default_annotations(root, split)
    split = _images_folder(root, split)
    instances = _read_instances(path)
    class_names = _class_names(path, instances.categories)
    listed = _by_id(path, instances.images, notes)
    by_image = _by_image(path, instances.annotations, listed, notes)
    objects = Objects(notes, "annotation")
    paths = PhotoPaths(root if split is None else os.path.join(root, split), notes)
    corners, categories = _Corners(), _Alike(class_names)
    for image in instances.images:
        key = _key(image.get("id"))
        if key is not None and listed[key] is not image:
            continue
        try:
            file_name = _file_name(image, paths, notes)
        except ValueError as error:
            name = f"image {shown(image.get('id'))}, {shown(image.get('file_name'))}"
            notes.add("image", f"left out: {error}", name)
            continue
        found = by_image.get(key, ()) if key is not None else ()
        example = _example(
            root, split, image, file_name, found, class_names, categories, objects, notes
        )
        corners.count(found, example.size, partial(size_of_photo, root, example.path))
        yield example
    corners.check(path)
    objects.settle(path, _kind(instances.annotations))


def _default_annotations(root: str, split: str | None) -> str:
    folder = os.path.join(root, "annotations")
    path = os.path.join(folder, f"instances_{split}.json")
    if split is not None and files.is_file(path):
        return path
    beside = os.path.join(root, split or "", _BESIDE_PHOTOS)
    if files.is_file(beside):
        return beside
    found = map(os.path.basename, files.matching(folder, "instances_*.json"))
    known = [name.removeprefix("instances_").removesuffix(".json") for name in found]
    exported = files.matching(root, f"*/{_BESIDE_PHOTOS}")
    known += [os.path.basename(os.path.dirname(each)) for each in exported]
    wrong = "--source coco needs a split" if split is None else f"no {path}"
    raise SettingsError(
        f"{wrong}; splits with a file in {folder}, or with {_BESIDE_PHOTOS}: "
        f"{', '.join(known) or 'none'}. Give --split, or --annotations FILE for another layout"
    )


def _images_folder(root: str, split: str | None) -> str | None:
    """The folder of images below the root; CVAT, Ultralytics and others have it in `images/`."""
    if split is None or files.is_folder(os.path.join(root, split)):
        return split
    inner = f"images/{split}"
    return inner if files.is_folder(os.path.join(root, inner)) else split


@dataclass(frozen=True)
class _Instances:
    images: Sequence[_Json]
    annotations: Sequence[_Json]
    categories: Sequence[_Json]


def _read_instances(path: str) -> _Instances:
    try:
        with open_unpacked(path) as file:
            content = files.parsed_json(file.read())
    except ValueError as error:
        raise SettingsError(
            f"{path} is not a COCO instances file: no JSON: {error}. Correct it, save it as UTF-8, "
            "or fetch it again"
        ) from None
    wrong = f"{path} is not a COCO instances file (an object of images, annotations, categories): "
    if isinstance(content, list):
        is_results = any(isinstance(entry, dict) and "score" in entry for entry in content[:1])
        what = "a file of COCO results, which are detections" if is_results else "a list"
        raise SettingsError(f"{wrong}it is {what}; give the file of the annotations")
    if not isinstance(content, dict):
        raise SettingsError(f"{wrong}it is {type(content).__name__}; give an instances file")
    found: list[Sequence[_Json]] = []
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            missing = "is no list of objects" if key in content else "is missing"
            to_do = _kind(content.get("annotations")) or ". Add it, or give an instances file"
            raise SettingsError(f"{wrong}{key!r} {missing}{to_do}")
        found.append(entries)
    return _Instances(*found)


def _kind(annotations: object) -> str:
    """What sort of file this looks like, by its first annotation."""
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    kinds = [kind for key, kind in _OTHER_FILES.items() if isinstance(first, dict) and key in first]
    return f". It looks like a file of {kinds[0]}; give the instances file instead" if kinds else ""


def _key(written: object) -> str | None:
    """An id, the same for numbers and for text; `None` where there is none."""
    if isinstance(written, float) and written.is_integer():
        written = int(written)
    if isinstance(written, bool) or not isinstance(written, int | float | str):
        return None
    return str(written).strip() or None


def _class_names(path: str, categories: Sequence[_Json]) -> Mapping[str, str]:
    """The class names by the keys of their ids; empty where a category has none."""
    names: dict[str, str] = {}
    for category in categories:
        key, name = _key(category.get("id")), _key(category.get("name")) or ""
        if key is None:
            raise SettingsError(f"{path}: the category {shown(category)} has no id; give it one")
        if names.setdefault(key, name) != name:
            raise SettingsError(
                f"{path}: two categories have the id {shown(key)}, {shown(names[key])} and "
                f"{shown(name)}; give one of them another id"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise SettingsError(
                f"{path}: the name {shown(name)} of category {shown(key)} is no text; correct it"
            ) from None
    return names


def _by_id(path: str, images: Sequence[_Json], notes: Notes) -> Mapping[str, _Json]:
    listed: dict[str, _Json] = {}
    for image in images:
        key = _key(image.get("id"))
        if key is None:
            notes.add(
                "image",
                "without an id, so that no annotation belongs to it",
                shown(image.get("file_name")),
            )
            continue
        first = listed.setdefault(key, image)
        if first is not image:
            if first.get("file_name") != image.get("file_name"):
                raise SettingsError(
                    f"{path}: two images have the id {shown(key)}, "
                    f"{shown(first.get('file_name'))} and {shown(image.get('file_name'))}; give "
                    "each image an id of its own"
                )
            notes.add("image", "left out: it is listed before", shown(image.get("file_name")))
    return listed


def _by_image(
    path: str, annotations: Sequence[_Json], listed: Mapping[str, _Json], notes: Notes
) -> Mapping[str, Sequence[_Json]]:
    """The annotations of each image by the image's key; strays are noted."""
    by_image: dict[str, list[_Json]] = defaultdict(list)
    stray = Notes()
    strays = 0
    alike = _Alike(listed)
    for annotation in annotations:
        key = alike.key(annotation.get("image_id"))
        if key is None:
            strays += 1
            stray.add("annotation", "of no image that the file lists, left out", _name(annotation))
        else:
            by_image[key].append(annotation)
    for found in stray.all():
        if strays > MOST_STRAY * len(annotations):
            raise SettingsError(
                f"{path}: {found}, out of {len(annotations):,}; more than {MOST_STRAY:.0%} is an "
                "error, as the ids then fit another list of images. Correct each image_id, or give "
                "the file that lists the images"
            )
    notes.extend(stray.all())
    return by_image


class _Alike:
    """Finds the id that is meant: the same, or else the only one of the same number."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = frozenset(keys)

    @cached_property
    def _by_number(self) -> Mapping[int, str | None]:
        found: dict[int, str | None] = {}
        for key in self._keys:
            if (number := _number(key)) is not None:
                found[number] = None if number in found else key
        return found

    def key(self, written: object) -> str | None:
        key = _key(written)
        if key is None or key in self._keys:
            return key
        number = _number(key)
        return None if number is None else self._by_number.get(number)


def _number(key: str) -> int | None:
    """The whole number that is written, such as 7 of `007` and `7.0`."""
    found = re.fullmatch(r"(-?\d+)(?:\.0*)?", key, re.ASCII)
    return int(found[1]) if found and len(key) <= _LONGEST_NUMBER else None


class _Corners:
    """Are the boxes left, top, right, bottom, and not COCO's left, top, width, height?"""

    def __init__(self) -> None:
        self._boxes = 0
        self._beyond = 0
        self._as_corners = 0
        self._opened = 0

    def count(
        self,
        annotations: Iterable[_Json],
        size: Size | None,
        size_of_file: Callable[[], Size | None],
    ) -> None:
        boxes = [sides for found in annotations if (sides := _sides(found.get("bbox")))]
        if boxes and size is None and self._opened < _MOST_OPENED:
            self._opened += 1
            size = size_of_file()
        if size is None:
            return
        for left, top, right, bottom in boxes:
            height, width = size
            self._boxes += 1
            self._beyond += right > width + 1 or bottom > height + 1
            # what is written as width and height, taken for the right and the lower edge
            self._as_corners += (
                left < right - left <= width + 1 and top < bottom - top <= height + 1
            )

    def check(self, path: str) -> None:
        """Raise `SettingsError` where most boxes fit as corners alone."""
        fit = self._boxes >= _FEWEST_BOXES and self._as_corners >= _MOST_CORNERS * self._boxes
        if fit and self._beyond > self._boxes / 2:
            raise SettingsError(
                f"{path}: {self._beyond:,} of {self._boxes:,} boxes reach out of their image as "
                f"left, top, width, height, and {self._as_corners:,} lie inside as left, top, "
                "right, bottom. COCO's bbox is [left, top, width, height]; correct them"
            )


def _name(annotation: _Json) -> str:
    of_image = annotation.get("image_id")
    return f"annotation {shown(annotation.get('id'))} of image {shown(of_image)}"


def _file_name(image: _Json, paths: PhotoPaths, notes: Notes) -> str:
    written = image.get("file_name")
    written = str(written) if type(written) is int else written
    if not isinstance(written, str) or not written.strip():
        url = image.get("coco_url")
        if not isinstance(url, str) or url.count("/") < _URL_PARTS:
            raise ValueError("it has no file_name")
        written = "/".join(url.split("/")[-2:])
        notes.add("image", "without a file_name, taken for the file of its coco_url", written)
    if files.is_object_store(written):
        raise ValueError("its file_name is a URL; write the path of its file")
    return paths.below(written)


def _example(
    root: str,
    split: str | None,
    image: _Json,
    file_name: str,
    annotations: Sequence[_Json],
    class_names: Mapping[str, str],
    categories: "_Alike",
    objects: Objects,
    notes: Notes,
) -> Example:
    path = _path(root, split, file_name)
    try:
        size = stated_size(image.get("height"), image.get("width"))
    except ValueError as error:
        notes.add(
            "image", "of a size that is none, taken as unknown", f"{shown(file_name)}: {error}"
        )
        size = None
    if size is None and any(is_written(found.get("segmentation")) for found in annotations):
        size = size_of_photo(root, path)
    annotated = []
    for found in annotations:
        class_name = class_names.get(categories.key(found.get("category_id")) or "")
        if class_name is None:
            objects.leave_out("its category_id is that of no category", _name(found))
        else:
            annotated.append(_annotated(found, class_name, size, notes))
    return Example(
        image_id=image_id_from_path(file_name),
        path=path,
        labels=tuple(dict.fromkeys(each.class_name for each in annotated if each.class_name)),
        regions=objects.regions(annotated, size),
        size=size,
    )


def _path(root: str, split: str | None, file_name: str) -> str:
    """Some files name the photos relative to the root, with the folder of the split."""
    below = file_name if split is None else f"{split}/{file_name}"
    has_split = split is not None and file_name.startswith(f"{split}/")
    is_from_root = has_split and not files.is_file(os.path.join(root, below))
    return file_name if is_from_root else below


def _annotated(written: _Json, class_name: str, size: Size | None, notes: Notes) -> Annotated:
    name = _name(written)
    crowd = flag(written.get("iscrowd"))
    if crowd is None:
        notes.add(
            "annotation",
            f"of an iscrowd that is none of {SPELLINGS}, taken as 0",
            f"{name}: {shown(written.get('iscrowd'))}",
        )
    bbox = written.get("bbox")
    rle, no_mask = None, ""
    if is_written(segmentation := written.get("segmentation")):
        try:
            if size is None:
                raise ValueError("the size of its image is not known")
            rle = rle_of(segmentation, size)
        except ValueError as error:
            no_mask = str(error)
    elif not is_written(bbox):
        no_mask = "no mask"
    return Annotated(
        name=name,
        class_name=class_name,
        sides=_sides(bbox),
        rle=rle,
        crowd=bool(crowd),
        no_mask=no_mask,
    )


def _sides(bbox: object) -> tuple[float, ...] | None:
    """Left, top, right and bottom of COCO's left, top, width and height."""
    if not is_written(bbox):
        return None
    try:
        left, top, width, height = (float(side) for side in bbox)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return ()
    return left, top, left + width, top + height
