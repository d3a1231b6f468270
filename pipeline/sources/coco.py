"""COCO: one JSON file of instances, with masks as polygons or run lengths."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.sources.image_ids import image_id_from_path
from transforms.pixels import Size

_Json = dict[str, Any]


def read_coco(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a COCO split, in the order of its file; images without annotations are kept.

    Args:
        root: the folder that holds `annotations/` and the folders of images.
        split: the folder of images, e.g. `train2017`; without one the images lie in `root`.
        annotations: the instances file; by default `annotations/instances_<split>.json`.
        notes: takes what is left out.

    Raises:
        SettingsError: neither split nor annotations, no such file, or not an instances file.
    """
    path = annotations or _default_annotations(root, split)
    try:
        instances = json.loads(files.read_bytes(path))
        class_names = {category["id"]: category["name"] for category in instances["categories"]}
        by_image: dict[int, list[_Json]] = defaultdict(list)
        for annotation in instances["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = instances["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is not a COCO instances file "
            f"(an object of images, annotations, categories): {error!r}"
        ) from None
    for image in images:
        try:
            yield _example(image, by_image[image["id"]], class_names, split)
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path}: image {image}: {error!r}") from None


def _default_annotations(root: str, split: str | None) -> str:
    folder = os.path.join(root, "annotations")
    path = os.path.join(folder, f"instances_{split}.json")
    if split is None or not files.is_file(path):
        found = map(os.path.basename, files.matching(folder, "instances_*.json"))
        known = [name.removeprefix("instances_").removesuffix(".json") for name in found]
        wrong = "--source coco needs a split" if split is None else f"no {path}"
        raise SettingsError(
            f"{wrong}; splits with a file in {folder}: {', '.join(known) or 'none'}. "
            "Give --split, or --annotations FILE for another layout"
        )
    return path


def _example(
    image: _Json,
    annotations: Sequence[_Json],
    class_names: Mapping[int, str],
    split: str | None,
) -> Example:
    size = (int(image["height"]), int(image["width"]))
    regions = tuple(_region(annotation, class_names, size) for annotation in annotations)
    file_name = image["file_name"]
    return Example(
        image_id=image_id_from_path(file_name),
        path=file_name if split is None else f"{split}/{file_name}",
        labels=tuple(dict.fromkeys(region.class_name for region in regions)),
        regions=regions,
        size=size,
    )


def _region(annotation: _Json, class_names: Mapping[int, str], size: Size) -> Region:
    left, top, width, height = (float(side) for side in annotation["bbox"])
    return Region(
        class_name=class_names[annotation["category_id"]],
        # not clip_box: train2017 holds boxes of no area, and the mask is the region anyway
        box=(left, top, left + width, top + height),
        rle=_rle(annotation["segmentation"], size),
        crowd=bool(annotation.get("iscrowd", 0)),
    )


def _rle(segmentation: list[list[float]] | _Json, size: Size) -> str | None:
    """Compressed RLE counts of polygons, of uncompressed RLE, or of compressed RLE as it is.

    `None` where no polygon has the three corners that an area needs.
    """
    from pycocotools import mask as coco_mask  # takes its time to import

    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"a mask of size {segmentation['size']} in an image of {[height, width]}"
            )
        if isinstance(segmentation["counts"], str):
            return str(segmentation["counts"])
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        # pycocotools takes a first polygon of four numbers for a box
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    counts: bytes = rle["counts"]
    return counts.decode("ascii")
