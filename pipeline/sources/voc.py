"""Pascal VOC: one XML file of boxes per image, and lists of image ids by split.

Some images have masks too, see `pipeline.sources.voc_masks`.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.sources.boxes import clip_box
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.voc_masks import MaskFiles
from transforms.pixels import Size

_DEFAULT_SPLIT = "test"  # the split on which the pointing game is reported
_READERS = 16  # threads that fetch annotations, for the sake of object stores


def read_voc(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a Pascal VOC split, in the order of its list.

    Args:
        root: the folder that holds VOCdevkit, VOCdevkit itself, or one year's folder (VOC2007).
        split: a file of ImageSets/Main without `.txt`; by default `test`. A class's list
            (`dog_test`) flags images that lack the class with -1; they are left out.
        annotations: must be `None`: the annotations lie in the dataset's own folder.
        notes: takes what is left out.

    Raises:
        SettingsError: not a VOC folder, no such split, an absent or malformed XML file, or a file
            of masks that does not fit its annotation.
    """
    if annotations is not None:
        raise SettingsError("--source voc reads ROOT's own Annotations folder; drop --annotations")
    year = _year_folder(root)
    names = _names(os.path.join(year, "ImageSets", "Main"), split or _DEFAULT_SPLIT)
    photos = set(files.below(os.path.join(year, "JPEGImages")))
    masks = MaskFiles.below(year)
    with ThreadPoolExecutor(_READERS) as threads:
        yield from threads.map(partial(_example, root, year, photos, masks), names)


def _year_folder(root: str) -> str:
    lists = "ImageSets/Main/*.txt"
    found = {
        path.rsplit("/", 3)[0]
        for inside in ("", "VOC20*/", "VOCdevkit/VOC20*/")
        for path in files.matching(root, inside + lists)
    }
    if not found:
        raise SettingsError(
            f"no ImageSets/Main in --root {root}; give the folder that holds VOCdevkit, "
            "VOCdevkit itself, or VOCdevkit/VOC2007"
        )
    if len(found) > 1:
        years = ", ".join(sorted(map(os.path.basename, found)))
        raise SettingsError(f"--root {root} holds {years}; give one")
    return found.pop()


def _names(lists: str, split: str) -> list[str]:
    path = os.path.join(lists, f"{split}.txt")
    if not files.is_file(path):
        found = map(os.path.basename, files.matching(lists, "*.txt"))
        splits = [name.removesuffix(".txt") for name in found]
        # VOC has a list for each class and split, too many to show beside the plain ones
        shown = [name for name in splits if "_" not in name] or splits
        raise SettingsError(f"no split {split!r} in {lists}; valid splits: {', '.join(shown)}")
    rows = (line.split() for line in files.read_text(path).splitlines())
    return [row[0] for row in rows if row and row[1:] != ["-1"]]


def _example(root: str, year: str, photos: Container[str], masks: MaskFiles, name: str) -> Example:
    path = os.path.join(year, "Annotations", f"{name}.xml")
    try:
        annotation = ElementTree.fromstring(files.read_bytes(path))
        size = _size(annotation)
        boxed = [_region(found, size) for found in annotation.iterfind("object")]
    except FileNotFoundError:
        raise SettingsError(
            f"no annotation {path} for image {name!r}, which the split lists"
        ) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from None
    regions = tuple(boxed)
    if own := masks.of_image(name, [region.class_name for region in boxed], size):
        regions = tuple(replace(r, rle=rle) for r, rle in zip(boxed, own.rles, strict=True))
        # A photo of another size than its masks is then a failure of that image.
        size = own.size
    photo = os.path.join(year, "JPEGImages", _photo(photos, name, annotation))
    return Example(
        image_id=image_id_from_path(f"{name}.jpg"),
        path=os.path.relpath(photo, root),
        labels=tuple(dict.fromkeys(region.class_name for region in regions)),
        regions=regions,
        size=size,
    )


def _photo(photos: Container[str], name: str, annotation: ElementTree.Element) -> str:
    # other people's sets in this layout hold PNGs, which only <filename> tells
    stated = annotation.findtext("filename", "")
    usual = f"{name}.jpg"
    return stated if stated in photos and usual not in photos else usual


def _size(annotation: ElementTree.Element) -> Size | None:
    height, width = (int(annotation.findtext(f"size/{side}", "0")) for side in ("height", "width"))
    return (height, width) if width > 0 and height > 0 else None


def _region(found: ElementTree.Element, size: Size | None) -> Region:
    class_name = _text(found, "name")
    sides = ("xmin", "ymin", "xmax", "ymax")
    x0, y0, x1, y1 = (float(_text(found, f"bndbox/{side}")) for side in sides)
    return Region(
        class_name=class_name,
        box=clip_box((x0 - 1, y0 - 1, x1, y1), size),
        difficult=found.findtext("difficult", "0").strip() == "1",
    )


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"an <object> without <{path}>")
    return text
