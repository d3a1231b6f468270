"""Pascal VOC: one XML file of boxes an image, and lists of image ids by split."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import SettingsError
from pipeline.sources.boxes import clip_box
from pipeline.sources.example import Example, Region
from pipeline.sources.image_ids import image_id_from_path

_DEFAULT_SPLIT = "test"  # the split on which the pointing game is reported


def read_voc(root: Path, split: str | None, annotations: Path | None) -> Iterator[Example]:
    """Examples of a Pascal VOC split, in the order of its list.

    Args:
        root: the folder that holds VOCdevkit, VOCdevkit itself, or one year's folder (VOC2007).
        split: a file of ImageSets/Main without `.txt`; by default `test`. Of a class's list
            (`dog_test`), the images flagged -1, which lack the class, are left out.
        annotations: must be `None`: the annotations lie in the dataset's own folder.

    Raises:
        SettingsError: not a VOC folder, no such split, an absent or malformed XML file.
    """
    if annotations is not None:
        raise SettingsError("--source voc reads ROOT's own Annotations folder; drop --annotations")
    year = _year_folder(root)
    for name in _names(year / "ImageSets" / "Main", split or _DEFAULT_SPLIT):
        yield _example(root, year, name)


def _year_folder(root: Path) -> Path:
    candidates = [root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*"))]
    found = [folder for folder in candidates if (folder / "ImageSets" / "Main").is_dir()]
    if not found:
        raise SettingsError(
            f"no ImageSets/Main in --root {root}; give the folder that holds VOCdevkit, "
            "VOCdevkit itself, or VOCdevkit/VOC2007"
        )
    if len(found) > 1:
        raise SettingsError(f"--root {root} holds {', '.join(f.name for f in found)}; give one")
    return found[0]


def _names(lists: Path, split: str) -> list[str]:
    path = lists / f"{split}.txt"
    if not path.is_file():
        splits = sorted(path.stem for path in lists.glob("*.txt"))
        # VOC has a list for each class and split, too many to show beside the plain ones
        shown = [name for name in splits if "_" not in name] or splits
        raise SettingsError(f"no split {split!r} in {lists}; valid splits: {', '.join(shown)}")
    rows = (line.split() for line in path.read_text().splitlines())
    return [row[0] for row in rows if row and row[1:] != ["-1"]]


def _example(root: Path, year: Path, name: str) -> Example:
    path = year / "Annotations" / f"{name}.xml"
    try:
        annotation = ElementTree.parse(path).getroot()
        size = _size(annotation)
        regions = tuple(_region(found, size) for found in annotation.iterfind("object"))
    except FileNotFoundError:
        raise SettingsError(
            f"no annotation {path} for image {name!r}, which the split lists"
        ) from None
    except (ElementTree.ParseError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from None
    return Example(
        image_id=image_id_from_path(f"{name}.jpg"),
        path=_image(year / "JPEGImages", name, annotation).relative_to(root).as_posix(),
        labels=tuple(dict.fromkeys(region.class_name for region in regions)),
        regions=regions,
        size=size,
    )


def _image(folder: Path, name: str, annotation: ElementTree.Element) -> Path:
    # other people's sets in this layout hold PNGs, which only <filename> tells
    stated = folder / annotation.findtext("filename", "")
    usual = folder / f"{name}.jpg"
    return stated if stated.is_file() and not usual.is_file() else usual


def _size(annotation: ElementTree.Element) -> tuple[int, int] | None:
    width, height = (int(annotation.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _region(found: ElementTree.Element, size: tuple[int, int] | None) -> Region:
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
