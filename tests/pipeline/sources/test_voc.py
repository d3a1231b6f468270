import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.images import ImageError, decode
from pipeline.sources import read_examples

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object>"""


def annotation(*objects: str, width: int = 50, height: int = 40, file_name: str = "") -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = f"<filename>{file_name}</filename>" if file_name else ""
    return f"<annotation>{name}{size}{''.join(objects)}</annotation>"


def boxed(name: str, *box: object, difficult: int = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def devkit(root: Path, annotations: dict[str, str], year: str = "VOCdevkit/VOC2007") -> Path:
    folder = root / year
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{name}\n" for name in annotations))
    for name, text in annotations.items():
        (folder / f"Annotations/{name}.xml").write_text(text)
        (folder / f"JPEGImages/{name}.jpg").touch()
    return folder


def test_boxes_are_zero_based_and_half_open_and_labels_in_order(tmp_path: Path) -> None:
    objects = boxed("dog", 1, 2, 50, 40), boxed("cat", "3.5", 4, 9, 9), boxed("dog", 5, 5, 6, 6)
    devkit(tmp_path, {"000001": annotation(*objects, boxed("cow", 7, 7, 8, 8, difficult=1))})
    assert read_examples("voc", tmp_path) == [
        Example(
            image_id="000001",
            path="VOCdevkit/VOC2007/JPEGImages/000001.jpg",
            labels=("dog", "cat", "cow"),
            regions=(
                Region("dog", (0, 1, 50, 40)),
                Region("cat", (2.5, 3, 9, 9)),
                Region("dog", (4, 4, 6, 6)),
                Region("cow", (6, 6, 8, 8), difficult=True),
            ),
            size=(40, 50),
        )
    ]


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_the_root_may_be_each_folder_down_to_the_year(tmp_path: Path, root: str) -> None:
    devkit(tmp_path, {"000001": annotation()})
    (example,) = read_examples("voc", tmp_path / root)
    assert (tmp_path / root / example.path).is_file()


def test_two_years_are_ambiguous(tmp_path: Path) -> None:
    devkit(tmp_path, {"1": annotation()})
    devkit(tmp_path, {"1": annotation()}, year="VOCdevkit/VOC2012")
    with pytest.raises(SettingsError, match="holds VOC2007, VOC2012; give one"):
        read_examples("voc", tmp_path)
    assert len(read_examples("voc", tmp_path / "VOCdevkit" / "VOC2012")) == 1


def test_another_folder_and_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no ImageSets/Main in --root"):
        read_examples("voc", tmp_path)
    folder = devkit(tmp_path, {"1": annotation()})
    with pytest.raises(SettingsError, match=r"no split 'val' .*; valid splits: test"):
        read_examples("voc", tmp_path, split="val")
    with pytest.raises(SettingsError, match="drop --annotations"):
        read_examples("voc", tmp_path, annotations=folder / "Annotations/1.xml")


def test_a_class_list_leaves_out_the_images_without_the_class(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {name: annotation() for name in "1234"})
    (folder / "ImageSets/Main/dog_test.txt").write_text("1 -1\n2  1\n3  0\n\n")
    examples = read_examples("voc", tmp_path, split="dog_test")
    assert [example.image_id for example in examples] == ["2", "3"]


def test_a_box_is_clipped_to_the_image_and_an_unknown_size_is_none(tmp_path: Path) -> None:
    cut = annotation(boxed("dog", 0, 0, 51, 90))
    unknown = annotation(boxed("dog", 0, 0, 51, 90), width=0, height=0)
    devkit(tmp_path, {"cut": cut, "unknown": unknown})
    first, second = read_examples("voc", tmp_path)
    assert first.regions[0].box == (0, 0, 50, 40)
    assert second.regions[0].box == (0, 0, 51, 90)
    assert second.size is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "no element found"),
        (annotation("<object><name>dog</name></object>"), "without <bndbox/xmin>"),
        (annotation(boxed("", 1, 1, 2, 2)), "without <name>"),
        (annotation(boxed("dog", "left", 1, 2, 2)), "'left'"),
        (annotation(boxed("dog", 20, 1, 10, 2)), "no area inside an image of 50 x 40 px"),
    ],
)
def test_a_malformed_annotation_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    folder = devkit(tmp_path, {"000007": text})
    with pytest.raises(SettingsError, match=f"{folder}/Annotations/000007.xml: .*{message}"):
        read_examples("voc", tmp_path)


def test_an_image_without_annotation_is_refused(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"000001": annotation()})
    (folder / "Annotations/000001.xml").unlink()
    with pytest.raises(SettingsError, match=re.escape("Annotations/000001.xml for image '000001'")):
        read_examples("voc", tmp_path)


def test_the_file_name_of_the_annotation_serves_where_there_is_no_jpg(tmp_path: Path) -> None:
    names = {"1": "1.png", "2": "absent.png", "3": "1.png"}
    folder = devkit(tmp_path, {name: annotation(file_name=file) for name, file in names.items()})
    (folder / "JPEGImages/1.jpg").rename(folder / "JPEGImages/1.png")
    paths = [Path(example.path).name for example in read_examples("voc", tmp_path)]
    assert paths == ["1.png", "2.jpg", "3.jpg"]


def test_the_real_photos_are_read_with_boxes_inside_them(shared_data: Path) -> None:
    root = shared_data / "voc"
    examples = [*read_examples("voc", root), *read_examples("voc", root, split="trainval")]
    assert len(examples) == len({example.image_id for example in examples}) == 40
    assert {example.labels for example in examples} == {("dog",)}
    first = next(example for example in examples if example.image_id == "000001")
    assert first.regions == (Region("dog", (92, 139, 344, 551)),)
    for example in examples[::5]:
        photo = decode(str(root / example.path), example.size)
        assert (photo.height, photo.width) == example.size


BORDER = 255


def draw_masks(folder: Path, file: str, numbers: np.ndarray) -> Path:
    """A palette PNG as VOC's: the value of a pixel is a number, its colour only for the eye."""
    image = Image.fromarray(numbers.astype(np.uint8), mode="P")
    image.putpalette([value % 256 for i in range(256) for value in (i * 64, i * 128, i * 32)])
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path


def masks_of(example: Example) -> list[Any]:
    assert example.size is not None
    return [
        None
        if region.rle is None
        else coco_mask.decode({"size": list(example.size), "counts": region.rle.encode()})
        for region in example.regions
    ]


def numbered_objects() -> np.ndarray:
    """Object 1 and 2 with a border around them, 40 x 50 pixels; there is no object 3."""
    numbers = np.zeros((40, 50), dtype=np.uint8)
    numbers[4:21, 4:31] = BORDER
    numbers[5:20, 5:15] = 1
    numbers[5:20, 20:30] = 2
    return numbers


THREE = (boxed("dog", 6, 6, 15, 20), boxed("cat", 21, 6, 30, 20), boxed("dog", 1, 30, 9, 40))


def test_each_object_has_the_mask_of_its_number_without_the_border(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE), "2": annotation(*THREE)})
    numbers = numbered_objects()
    draw_masks(folder, "SegmentationObject/1.png", numbers)
    masked, unmasked = read_examples("voc", tmp_path)
    first, second, third = masks_of(masked)
    assert np.array_equal(first, numbers == 1)
    assert np.array_equal(second, numbers == 2)
    assert third is None
    assert masks_of(unmasked) == [None, None, None]
    assert [r.box for r in masked.regions] == [r.box for r in unmasked.regions]


def test_with_a_file_of_classes_alone_each_object_has_the_mask_of_its_class(
    tmp_path: Path,
) -> None:
    unicorn = boxed("unicorn", 1, 1, 2, 2)
    folder = devkit(tmp_path, {"1": annotation(*THREE, unicorn)})
    classes = np.zeros((40, 50), dtype=np.uint8)
    classes[5:20, 5:15] = classes[30:, :9] = 12  # dog
    classes[5:20, 20:30] = 8  # cat
    classes[20] = BORDER
    draw_masks(folder, "SegmentationClass/1.png", classes)
    (example,) = read_examples("voc", tmp_path)
    dog, cat, other_dog, none = masks_of(example)
    assert np.array_equal(dog, classes == 12)
    assert np.array_equal(other_dog, dog)
    assert np.array_equal(cat, classes == 8)
    assert none is None


def test_objects_that_are_not_annotated_leave_the_masks_of_the_classes(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE[:1])})
    path = draw_masks(folder, "SegmentationObject/1.png", numbered_objects())
    with pytest.raises(SettingsError, match=f"{path} numbers 2 objects, .* has 1; add the file of"):
        read_examples("voc", tmp_path)
    classes = np.where(numbered_objects() == 2, 12, 0)
    draw_masks(folder, "SegmentationClass/1.png", classes)
    (mask,) = masks_of(read_examples("voc", tmp_path)[0])
    assert np.array_equal(mask, classes == 12)


def test_masks_that_are_no_numbers_or_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE)})
    path = draw_masks(folder, "SegmentationObject/1.png", numbered_objects()[:30])
    with pytest.raises(SettingsError, match=f"{path} is of 50 x 30 px, .* says 50 x 40"):
        read_examples("voc", tmp_path)
    Image.fromarray(numbered_objects()).convert("RGB").save(path)
    with pytest.raises(SettingsError, match=f"{path} has mode RGB"):
        read_examples("voc", tmp_path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SettingsError, match=f"cannot read the masks {path}"):
        read_examples("voc", tmp_path)


def test_a_photo_must_be_of_the_masks_size_where_the_annotation_states_none(
    tmp_path: Path,
) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE, width=0, height=0)})
    draw_masks(folder, "SegmentationObject/1.png", numbered_objects())
    (example,) = read_examples("voc", tmp_path)
    assert example.size == (40, 50)
    Image.new("RGB", (60, 40)).save(tmp_path / example.path)
    with pytest.raises(ImageError, match="60"):
        decode(str(tmp_path / example.path), example.size)
