import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.errors import SettingsError
from pipeline.model.classes import read_class_map
from pipeline.sources import read_examples

WIDTH, HEIGHT = 12, 8
SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]
FAR = [8, 1, 11, 1, 11, 4, 8, 4]


def mask_of(rle: str | None) -> np.ndarray:
    return coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": rle}).astype(bool)


def annotated(segmentation: object, **fields: object) -> dict[str, Any]:
    fields = {"image_id": 7, "category_id": 1, "bbox": [2.0, 1.0, 4.0, 4.0], "iscrowd": 0} | fields
    return {"segmentation": segmentation, **fields}


def write(root: Path, *annotations: dict[str, Any], **changes: object) -> Path:
    images = [
        {"id": 7, "file_name": "000007.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 8, "file_name": "000008.jpg", "width": 5, "height": 4},
    ]
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir(exist_ok=True)
    for image in images:
        (root / "val2017" / str(image["file_name"])).touch()
    categories = [{"id": 1, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
    content = {"images": images, "annotations": annotations, "categories": categories} | changes
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    return path


def test_images_come_in_order_with_labels_boxes_and_sizes(tmp_path: Path) -> None:
    brush = annotated([FAR], category_id=90, bbox=[8.5, 1.0, 2.25, 3.0])
    write(tmp_path, brush, annotated([SQUARE]), brush)
    first, second = read_examples("coco", tmp_path, split="val2017")
    assert (first.image_id, first.path) == ("000007", "val2017/000007.jpg")
    assert first.labels == ("toothbrush", "dog")
    assert [region.box for region in first.regions[:2]] == [(8.5, 1, 10.75, 4), (2, 1, 6, 5)]
    assert first.size == (HEIGHT, WIDTH)
    assert (second.image_id, second.labels, second.regions) == ("000008", (), ())


def test_the_polygons_of_an_object_become_one_mask(tmp_path: Path) -> None:
    write(tmp_path, annotated([SQUARE, FAR]))
    (region,) = read_examples("coco", tmp_path, split="val2017")[0].regions
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 2:6] = expected[1:4, 8:11] = True
    assert np.array_equal(mask_of(region.rle), expected)


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_compressed_or_not_become_the_same_mask(
    tmp_path: Path, compressed: bool
) -> None:
    # columns first: 10 off, 3 on, rest off
    rle: dict[str, Any] = {"size": [HEIGHT, WIDTH], "counts": [10, 3, HEIGHT * WIDTH - 13]}
    if compressed:
        rle["counts"] = coco_mask.frPyObjects(rle, HEIGHT, WIDTH)["counts"].decode()
    write(tmp_path, annotated(rle, iscrowd=1))
    (region,) = read_examples("coco", tmp_path, split="val2017")[0].regions
    assert region.crowd
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[2:5, 1] = True
    assert np.array_equal(mask_of(region.rle), expected)


@pytest.mark.parametrize("segmentation", [[], [[1, 2, 3, 4]]])
def test_an_object_without_an_area_in_its_polygons_keeps_its_box(
    tmp_path: Path, segmentation: list[list[int]]
) -> None:
    write(tmp_path, annotated(segmentation))
    (region,) = read_examples("coco", tmp_path, split="val2017")[0].regions
    assert (region.rle, region.box) == (None, (2, 1, 6, 5))


def test_annotations_alone_put_the_images_into_the_root(tmp_path: Path) -> None:
    path = write(tmp_path, annotated([SQUARE]))
    examples = read_examples("coco", tmp_path / "val2017", annotations=path)
    assert [example.path for example in examples] == ["000007.jpg", "000008.jpg"]


def test_a_missing_or_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(SettingsError, match=r"needs a split; .*: val2017\. Give --split"):
        read_examples("coco", tmp_path)
    with pytest.raises(SettingsError, match=r"instances_test2017.json; .*: val2017"):
        read_examples("coco", tmp_path, split="test2017")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (annotated([SQUARE], category_id=3), "KeyError"),
        (annotated([SQUARE], bbox=[1, 2, 3]), "ValueError"),
        (annotated({"size": [WIDTH, HEIGHT], "counts": [96]}), "mask of size"),
    ],
)
def test_a_malformed_annotation_names_file_and_image(
    tmp_path: Path, annotation: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, annotation)
    with pytest.raises(SettingsError, match=f"{path}: image .*000007.jpg.*{message}"):
        read_examples("coco", tmp_path, split="val2017")


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": []}'])
def test_another_file_is_not_an_instances_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path)
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"{path} is not a COCO instances file"):
        read_examples("coco", tmp_path, split="val2017")


def test_the_real_set_is_read_whole(shared_data: Path) -> None:
    root = shared_data / "coco"
    examples = read_examples("coco", root, split="train2017")
    regions = [region for example in examples for region in example.regions]
    assert (len(examples), len(regions)) == (80, 705)
    assert sum(region.crowd for region in regions) == 6
    assert all((root / example.path).is_file() for example in examples)
    assert {region.class_name for region in regions} <= set(read_class_map("coco", 1000))


def test_the_real_masks_are_those_of_pycocotools_and_lie_in_their_boxes(shared_data: Path) -> None:
    root = shared_data / "coco"
    reference = COCO(root / "annotations" / "instances_train2017.json")
    examples = {
        example.image_id: example for example in read_examples("coco", root, split="train2017")
    }
    for image in list(reference.imgs.values())[::8]:
        example = examples[Path(image["file_name"]).stem]
        annotations = reference.imgToAnns[image["id"]]
        assert len(annotations) == len(example.regions)
        for annotation, region in zip(annotations, example.regions, strict=True):
            rle = {"size": [image["height"], image["width"]], "counts": region.rle}
            mask = coco_mask.decode(rle)
            assert np.array_equal(mask, reference.annToMask(annotation))
            inside = Image.new("1", (image["width"], image["height"]))
            x0, y0, x1, y1 = region.box
            ImageDraw.Draw(inside).rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), fill=1)
            assert not mask[~np.asarray(inside)].any()


def test_the_coco_class_map_has_the_categories_of_the_real_set(shared_data: Path) -> None:
    path = shared_data / "coco" / "annotations" / "instances_train2017.json"
    names = [category["name"] for category in json.loads(path.read_text())["categories"]]
    assert set(names) == set(read_class_map("coco", 1000))
