import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.model.classes import read_class_map
from pipeline.notes import Note, Notes
from pipeline.sources import read_examples
from pipeline.sources.masks import decoded_run_lengths

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


@pytest.mark.parametrize("annotations", [None, "annotations/instances_val2017.json"])
def test_the_folder_of_a_split_may_lie_in_one_of_images(
    tmp_path: Path, annotations: str | None
) -> None:
    write(tmp_path, annotated([SQUARE]))
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images/val2017")
    examples = read_examples("coco", tmp_path, split="val2017", annotations=annotations)
    assert [example.path for example in examples] == [
        "images/val2017/000007.jpg",
        "images/val2017/000008.jpg",
    ]


def test_the_annotations_may_lie_beside_the_photos(tmp_path: Path) -> None:
    path = write(tmp_path, annotated([SQUARE]))
    path.rename(tmp_path / "val2017/_annotations.coco.json")
    example = read_examples("coco", tmp_path, split="val2017")[0]
    assert (example.path, example.labels) == ("val2017/000007.jpg", ("dog",))
    (example, _) = read_examples("coco", tmp_path / "val2017")
    assert (example.path, example.labels) == ("000007.jpg", ("dog",))
    with pytest.raises(SettingsError, match=r"needs a split; .*: val2017\. Give --split"):
        read_examples("coco", tmp_path)


def read(root: Path, *annotations: dict[str, Any], **changes: object) -> tuple[Example, list[Note]]:
    """The first image as it is read, and what was noted."""
    write(root, *annotations, **changes)
    notes = Notes()
    example = read_examples("coco", root, split="val2017", notes=notes)[0]
    return example, list(notes.all())


GOOD = annotated([SQUARE], id=1)
OTHER = {"id": 8, "file_name": "000008.jpg", "width": 5, "height": 4}
BOX = (2, 1, 6, 5)


@pytest.mark.parametrize(
    ("of_image", "of_annotation", "category"),
    [(7, "7", "1"), ("7", 7, 1.0), (7.0, " 7 ", 1), ("a7", "a7", "1.0"), (7, 7.0, "1")],
)
def test_ids_that_differ_in_type_alone_are_the_same(
    tmp_path: Path, of_image: object, of_annotation: object, category: object
) -> None:
    images = [{"id": of_image, "file_name": "000007.jpg", "width": WIDTH, "height": HEIGHT}]
    categories = [{"id": "1.0" if category == "1.0" else 1, "name": 2}]
    example, notes = read(
        tmp_path,
        annotated([SQUARE], image_id=of_annotation, category_id=category),
        images=images,
        categories=categories,
    )
    assert (example.labels, notes) == (("2",), [])


@pytest.mark.parametrize(
    ("of_image", "of_annotation"),
    [("000000000007", 7), (7, "007"), (7, "7.0"), ("7.0", 7), (7, "7.")],
)
def test_ids_are_the_same_number_however_it_is_written(
    tmp_path: Path, of_image: object, of_annotation: object
) -> None:
    images = [{"id": of_image, "file_name": "000007.jpg", "width": WIDTH, "height": HEIGHT}]
    categories = [{"id": of_image, "name": "dog"}]
    found = annotated([SQUARE], image_id=of_annotation, category_id=of_annotation)
    example, notes = read(tmp_path, found, images=images, categories=categories)
    assert (example.labels, notes) == (("dog",), [])


def test_an_id_as_it_is_written_wins_over_the_same_number(tmp_path: Path) -> None:
    images = [
        {"id": "007", "file_name": "000007.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 7, "file_name": "000008.jpg", "width": WIDTH, "height": HEIGHT},
    ]
    write(tmp_path, annotated([SQUARE], image_id="007"), GOOD, GOOD, images=images)
    first, second = read_examples("coco", tmp_path, split="val2017")
    assert (len(first.regions), len(second.regions)) == (1, 2)
    neither = annotated([SQUARE], image_id="7.0", id=3)
    write(tmp_path, neither, GOOD, images=images)
    notes = Notes()
    read_examples("coco", tmp_path, split="val2017", notes=notes)
    assert [note.names for note in notes.all()] == [("annotation 3 of image 7.0",)]


def test_a_box_that_is_cut_at_the_border_is_noted(tmp_path: Path) -> None:
    example, (note,) = read(
        tmp_path, annotated([], id=5, bbox=[4, 2, 20, 3]), annotated([], bbox=[0, 0, WIDTH + 1, 8])
    )
    assert [region.box for region in example.regions] == [(4, 2, WIDTH, 5), (0, 0, WIDTH, HEIGHT)]
    assert (note.count, note.names) == (1, ("annotation 5 of image 7",))
    assert note.what == "whose box is cut at the border of its photo"


def test_boxes_that_are_corners_are_refused(tmp_path: Path) -> None:
    corners = [annotated([], bbox=[4 + i / 9, 3, 9 + i / 9, 7]) for i in range(10)]
    with pytest.raises(SettingsError, match=r"10 of 10 boxes reach out .* as left, top, right, bo"):
        read(tmp_path, *corners)
    extents = annotated([], bbox=[4, 3, 2, 2])
    assert len(read(tmp_path, *corners, extents)[0].regions) == 11


def test_boxes_that_are_corners_are_refused_with_one_that_is_unusable(tmp_path: Path) -> None:
    for unusable in ([7, 6, 7, 6], [4, 3, 4, 3], [math.nan, 1, 2, 3]):
        corners = [annotated([], bbox=[7, 5, 10 + i % 2, 7]) for i in range(30)]
        with pytest.raises(SettingsError, match=r"30 lie inside as left, top, right, bottom"):
            read(tmp_path, *corners, annotated([], bbox=unusable))


def test_boxes_that_are_corners_are_refused_by_the_photo_where_no_size_is_stated(
    tmp_path: Path,
) -> None:
    images = [{"id": 7, "file_name": "000007.jpg"}, OTHER]
    corners = [annotated([], bbox=[7, 5, 10 + i % 2, 7]) for i in range(11)]
    write(tmp_path, *corners, images=images)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "val2017/000007.jpg")
    with pytest.raises(SettingsError, match=r"11 of 11 boxes reach out .* correct them"):
        read_examples("coco", tmp_path, split="val2017")


def test_boxes_in_shares_of_the_photo_are_refused(tmp_path: Path) -> None:
    shares = annotated([], bbox=[0.1, 0.2, 0.5, 0.25])
    with pytest.raises(SettingsError, match=r"all 2 boxes lie between 0 and 1.* in pixels"):
        read(tmp_path, shares, shares)
    assert len(read(tmp_path, shares, GOOD)[0].regions) == 2


def test_the_file_may_be_packed_with_gzip(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed)
    assert read_examples("coco", tmp_path, split="val2017")[0].labels == ("dog",)
    path.write_bytes(packed[:-20])
    with pytest.raises(SettingsError, match=r"the gzip file is broken.*fetch it again"):
        read_examples("coco", tmp_path, split="val2017")


def test_an_image_without_a_file_name_is_the_file_of_its_url(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/val2017/000007.jpg"
    images = [{"id": 7, "coco_url": url, "width": WIDTH, "height": HEIGHT}]
    path = write(tmp_path, GOOD, images=images)
    for split in ("val2017", None):
        notes = Notes()
        (example,) = read_examples("coco", tmp_path, split=split, annotations=path, notes=notes)
        assert (example.path, example.labels) == ("val2017/000007.jpg", ("dog",))
        (note,) = notes.all()
        assert (note.count, note.names) == (1, ("val2017/000007.jpg",))


def test_a_file_name_that_is_a_number_is_that_of_a_file_with_a_suffix(tmp_path: Path) -> None:
    path = write(tmp_path, images=[{"id": 7, "file_name": 4711, "width": WIDTH, "height": HEIGHT}])
    (tmp_path / "val2017" / "4711.jpg").touch()
    (example,) = read_examples("coco", tmp_path, split="val2017", annotations=path)
    assert example.path == "val2017/4711.jpg"


def test_one_photo_under_two_ids_is_named(tmp_path: Path) -> None:
    first = {"id": 7, "file_name": "000007.jpg"}
    with pytest.raises(SettingsError, match=r"000007.jpg, which is listed twice.*List each image"):
        read(tmp_path, images=[first, first | {"id": 8}])


def test_annotations_of_no_listed_image_are_counted_and_most_of_them_are_refused(
    tmp_path: Path,
) -> None:
    strays = [annotated([SQUARE], id=i, image_id=99) for i in (31, 32)]
    example, (note,) = read(tmp_path, *strays, GOOD, GOOD)
    assert len(example.regions) == 2
    assert (note.count, note.names[0]) == (2, "annotation 31 of image 99")
    with pytest.raises(SettingsError, match=r"val2017.json: 2 annotations of no image .*31 of im"):
        read(tmp_path, *strays, GOOD)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [6, 5, -4, -4]}, "its box has no area inside the image"),
        ({"bbox": [20, 1, 4, 4]}, "its box has no area inside the image"),
        ({"bbox": [math.nan] * 4}, "its box is not four finite numbers"),
        ({"bbox": [0, 0, math.inf, 1]}, "its box is not four finite numbers"),
        ({"bbox": [1, 2, 3]}, "its box is not four finite numbers"),
        ({"bbox": {"x": 1}}, "its box is not four finite numbers"),
        ({"bbox": [10**400, 0, 1, 1]}, "its box is not four finite numbers"),
        ({"category_id": 3}, "its category_id is that of no category"),
        ({"category_id": None}, "its category_id is that of no category"),
        ({"category_id": 5}, "it has no class name"),
    ],
)
def test_an_unusable_object_is_left_out_and_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    categories = [{"id": 1, "name": "dog"}, {"id": 5, "name": None}]
    example, (note,) = read(
        tmp_path, GOOD, annotated([], **({"id": 8123} | change)), categories=categories
    )
    assert [region.box for region in example.regions] == [BOX]
    assert example.labels == ("dog",)
    assert note == Note("annotation", f"left out: {reason}", 1, ("annotation 8123 of image 7",))


def test_a_set_of_which_most_objects_are_unusable_is_refused(tmp_path: Path) -> None:
    bad = [annotated([], id=i, bbox=[1, 1, 0, 5]) for i in range(3)]
    with pytest.raises(SettingsError, match=r"val2017.json: 3 of 5 annotations cannot be used"):
        read(tmp_path, *bad, GOOD, GOOD)
    assert read(tmp_path, *bad, *[GOOD] * 3)[1][0].count == 3


RUNS = HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[math.nan, 1, 6, 1, 6, 5]], "a corner of its polygon is not a number"),
        ([[2, 1, 6, 1, 6, -math.inf]], "a corner of its polygon is not a number"),
        ([[math.inf, 1, 6, 1, 6, 5]], "a corner of its polygon is not a number"),
        ([SQUARE, [None] * 6], "a corner of its polygon is not a number"),
        ([[1e8, 1, 6, 1, 6, 5]], "a corner of its polygon lies far outside its image"),
        ([[2, 1, 6, 1, 6, -1e8]], "a corner of its polygon lies far outside its image"),
        ([[-10, -10, 20, 20] * 100_000], "its polygon is too long"),
        ([[2, 1, 6, 1, 6, 5, 2]], "its polygons are not lists of x and y by turns"),
        ([[[[2, 1], [6, 1], [6, 5]]]], "its polygons are not lists of x and y by turns"),
        ([["a", 1, 6, 1, 6, 5]], "its polygons are not lists of numbers"),
        ([{"x": 1}], "its polygons are not lists of numbers"),
        ("polygon", "its mask is neither polygons nor run lengths"),
        ([[20, 20, 21, 20, 21, 21]], "its mask has no pixel inside the image"),
        ([[1, 2, 3, 4]], "its polygons have fewer than three corners"),
        ({"size": [WIDTH, HEIGHT], "counts": [RUNS]}, "its mask is of another size than its image"),
        ({"size": HEIGHT, "counts": [RUNS]}, "its mask states no size"),
        ({"counts": [RUNS]}, "its mask states no size"),
        ({"size": [HEIGHT, WIDTH]}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "a0"}, "do not fill its image"),
        ({"size": [HEIGHT, WIDTH], "counts": "abc"}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "!0"}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooo1"}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20, RUNS]}, "do not fill its image"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 20]}, "do not fill its image"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, -10, RUNS]}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**400]}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, RUNS - 0.5]}, "its mask has no run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [RUNS]}, "its mask has no pixel inside the image"),
    ],
)
def test_the_box_of_an_unusable_mask_is_its_region(
    tmp_path: Path, segmentation: object, reason: str
) -> None:
    example, (note,) = read(tmp_path, annotated(segmentation, id=8123))
    (region,) = example.regions
    assert (region.rle, region.box) == (None, BOX)
    assert note.what.startswith("without its mask, so that its box counts: ")
    assert note.what.endswith(reason)
    assert note.names == ("annotation 8123 of image 7",)
    example, notes = read(tmp_path, GOOD, annotated(segmentation, bbox=None))
    assert (len(example.regions), len(notes)) == (1, 1)
    assert notes[0].what.startswith("left out: it has no box and ")
    assert notes[0].what.endswith(reason)


def test_run_lengths_as_text_are_decoded_as_pycocotools_writes_them() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        height, width = (int(side) for side in random.integers(1, 90, 2))
        pixels = random.random((height, width)) < random.choice([0.01, 0.5, 0.999])
        rle = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
        lengths = decoded_run_lengths(rle["counts"].decode())
        changes = np.flatnonzero(np.diff(pixels.ravel("F").astype(int), prepend=0)).tolist()
        assert lengths.tolist() == np.diff([0, *changes, pixels.size]).tolist()


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[2, 1], [6, 1], [6, 5], [2, 5]],
        [[[2, 1], [6, 1], [6, 5], [2, 5]]],
        [[str(number) for number in SQUARE]],
        [SQUARE, [1, 2], []],
    ],
)
def test_a_polygon_may_be_flat_alone_or_of_pairs(tmp_path: Path, segmentation: object) -> None:
    example, notes = read(tmp_path, annotated(segmentation))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 2:6] = True
    assert np.array_equal(mask_of(example.regions[0].rle), expected)
    assert notes == []


@pytest.mark.parametrize("segmentation", [None, [], "", {}, [[]]])
def test_without_a_mask_the_box_is_the_region(tmp_path: Path, segmentation: object) -> None:
    example, notes = read(tmp_path, annotated(segmentation))
    assert [(region.rle, region.box) for region in example.regions] == [(None, BOX)]
    assert notes == []


@pytest.mark.parametrize("bbox", [None, [], [None] * 4])
def test_without_a_box_the_bounds_of_the_mask_are_the_box(tmp_path: Path, bbox: object) -> None:
    example, notes = read(tmp_path, annotated([SQUARE], bbox=bbox))
    assert [region.box for region in example.regions] == [BOX]
    assert notes == []


def test_a_box_without_area_beside_a_mask_becomes_that_of_the_mask(tmp_path: Path) -> None:
    example, (note,) = read(tmp_path, annotated([SQUARE], bbox=[2, 1, 0, 4]))
    assert [region.box for region in example.regions] == [BOX]
    assert note.what == "with the box of its mask: its box has no area inside the image"


def test_annotations_with_neither_box_nor_mask_are_left_out_together(tmp_path: Path) -> None:
    without = [annotated([], bbox=[], id=8123), {"id": 8124, "image_id": 7, "category_id": 1}]
    example, (note,) = read(tmp_path, *without, *[GOOD] * 9)
    assert len(example.regions) == 9
    names = ("annotation 8123 of image 7", "annotation 8124 of image 7")
    assert note == Note("annotation", "left out: it has no box and no mask", 2, names)
    with pytest.raises(SettingsError, match=r"json: 2 of 3 annotations .*8123.* annotation 8124"):
        read(tmp_path, *without, GOOD)


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": None, "height": ""}])
def test_an_image_without_a_size_has_its_boxes_and_its_masks_in_that_of_its_file(
    tmp_path: Path, size: dict[str, object]
) -> None:
    images = [{"id": 7, "file_name": "000007.jpg", **size}, OTHER]
    example, notes = read(tmp_path, annotated([]), images=images)
    assert (example.size, example.regions[0].box, notes) == (None, BOX, [])

    sideways = Image.new("RGB", (HEIGHT, WIDTH))  # turned upright by its EXIF orientation
    exif = sideways.getexif()
    exif[0x0112] = 6
    photo = tmp_path / "val2017/000007.jpg"
    sideways.save(photo, exif=exif)
    examples = read_examples("coco", tmp_path, split="val2017")
    assert examples[0].size is None
    write(tmp_path, GOOD, images=images)
    sideways.save(photo, exif=exif)
    (example, _) = read_examples("coco", tmp_path, split="val2017")
    assert example.size == (HEIGHT, WIDTH)
    assert mask_of(example.regions[0].rle).sum() == 16


def test_a_size_that_is_none_is_unknown_and_noted(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "000007.jpg", "width": -3, "height": 8}]
    example, (note,) = read(tmp_path, annotated([]), images=images)
    assert example.size is None
    assert note.what == "of a size that is none, taken as unknown"


def test_a_mask_of_a_photo_beyond_all_limits_is_left_out(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "000007.jpg", "width": 10**6, "height": 10**6}]
    example, (note,) = read(tmp_path, GOOD, images=images)
    assert example.regions[0].rle is None
    assert note.what.endswith("its image is too large for a mask")


@pytest.mark.parametrize(
    ("iscrowd", "crowd"),
    [
        *[(written, True) for written in (1, "1", "true", True, 1.0)],
        *[(written, False) for written in (0, "0", None, "", "False", 0.0)],
    ],
)
def test_iscrowd_is_read_in_its_spellings(tmp_path: Path, iscrowd: object, crowd: bool) -> None:
    example, notes = read(tmp_path, annotated([SQUARE], iscrowd=iscrowd))
    assert (example.regions[0].crowd, notes) == (crowd, [])


def test_another_iscrowd_is_taken_as_none_and_noted(tmp_path: Path) -> None:
    example, (note,) = read(tmp_path, annotated([SQUARE], id=5, iscrowd="many"))
    assert not example.regions[0].crowd
    assert note.names == ("annotation 5 of image 7: many",)


def test_backslashes_are_slashes_where_no_such_file_is(tmp_path: Path) -> None:
    (tmp_path / "val2017/sub").mkdir(parents=True)
    (tmp_path / "val2017/sub/a.png").touch()
    (tmp_path / "val2017/odd\\b.png").touch()
    names = ("sub\\a.png", "odd\\b.png")
    images = [{"id": i, "file_name": name, "width": 5, "height": 4} for i, name in enumerate(names)]
    write(tmp_path, images=images)
    notes = Notes()
    examples = read_examples("coco", tmp_path, split="val2017", notes=notes)
    assert [example.path for example in examples] == ["val2017/sub/a.png", "val2017/odd\\b.png"]
    assert [example.image_id for example in examples] == ["sub__a", "odd__b"]
    assert [(note.noun, note.count, note.names) for note in notes.all()] == [
        ("path", 1, ("sub\\a.png",))
    ]


def test_file_names_may_be_absolute_or_start_with_the_folder_of_the_split(tmp_path: Path) -> None:
    names = ("val2017/000007.jpg", str(tmp_path / "val2017/000008.jpg"))
    images = [{"id": i, "file_name": name, "width": 5, "height": 4} for i, name in enumerate(names)]
    write(tmp_path, images=images)
    examples = read_examples("coco", tmp_path, split="val2017")
    assert [example.path for example in examples] == ["val2017/000007.jpg", "val2017/000008.jpg"]


def test_images_without_a_path_below_the_root_are_left_out(tmp_path: Path) -> None:
    names = (None, "", "/elsewhere/a.jpg", "../a.jpg", "C:\\a.jpg", "000007.jpg")
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    write(tmp_path, images=images)
    notes = Notes()
    (example,) = read_examples("coco", tmp_path, split="val2017", notes=notes)
    assert example.path == "val2017/000007.jpg"
    assert sum(note.count for note in notes.all() if note.noun == "image") == 5
    write(tmp_path, images=images[:1])
    with pytest.raises(SettingsError, match=r"found no image in .* no file_name"):
        read_examples("coco", tmp_path, split="val2017")


def test_repeated_ids_are_one_image_or_refused(tmp_path: Path) -> None:
    _, (note,) = read(tmp_path, images=[OTHER, OTHER | {"id": "8"}])
    assert note.what == "left out: it is listed before"
    with pytest.raises(SettingsError, match=r"two images have the id 8, 000008.jpg and 000007.jpg"):
        read(tmp_path, images=[OTHER, OTHER | {"file_name": "000007.jpg"}])
    with pytest.raises(SettingsError, match="two categories have the id 1, dog and cat"):
        read(tmp_path, categories=[{"id": 1, "name": "dog"}, {"id": "1", "name": "cat"}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
        ("[]", "it is a list"),
        ("3", "it is int"),
        ('[{"image_id": 1, "bbox": [], "score": 0.5}]', "a file of COCO results"),
        ('{"images": [], "annotations": []}', "'categories' is missing"),
        ('{"images": [], "annotations": [{"caption": "a dog"}]}', "a file of captions"),
        ('{"images": [], "annotations": [], "categories": {}}', "'categories' is no list"),
        ('{"images": [1], "annotations": [], "categories": []}', "'images' is no list of objects"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "categories": [], '
            '"annotations": [{"image_id": 1, "segments_info": []}]}',
            "1 of 1 annotations cannot be used.*a file of panoptic segmentation",
        ),
    ],
)
def test_another_file_is_not_an_instances_file_and_is_named_for_what_it_is(
    tmp_path: Path, content: str, message: str
) -> None:
    path = write(tmp_path)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError, match=f"{path}.*{message}"):
        read_examples("coco", tmp_path, split="val2017")


def test_a_byte_order_mark_before_the_file_is_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_examples("coco", tmp_path, split="val2017")[0].labels == ("dog",)


def test_the_real_set_is_read_whole(shared_data: Path) -> None:
    root = shared_data / "coco"
    notes = Notes()
    examples = read_examples("coco", root, split="train2017", notes=notes)
    assert notes.all() == ()
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


def test_the_real_set_without_sizes_has_the_same_masks(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "coco"
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    content["images"] = [image | {"width": 0, "height": 0} for image in content["images"][:20]]
    listed = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in listed]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    without_sizes = read_examples("coco", root, split="train2017", annotations=path)
    assert without_sizes == read_examples("coco", root, split="train2017")[:20]


def test_the_coco_class_map_has_the_categories_of_the_real_set(shared_data: Path) -> None:
    path = shared_data / "coco" / "annotations" / "instances_train2017.json"
    names = [category["name"] for category in json.loads(path.read_text())["categories"]]
    assert set(names) == set(read_class_map("coco", 1000))
