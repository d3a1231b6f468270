import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.images import ImageError, decode
from pipeline.notes import Note, Notes
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


@pytest.mark.parametrize(
    ("xml", "photos", "split"),
    [
        ("Annotations", "JPEGImages", None),  # Kaggle
        ("Annotations", "images", None),  # Label Studio
        ("annotations/xmls", "images", None),  # the Oxford pets
        ("labels", "data", None),  # FiftyOne
        (".", ".", None),  # labelImg
        ("train", "train", "train"),  # Roboflow
    ],
)
def test_without_lists_all_xml_files_beside_photos_are_read(
    tmp_path: Path, xml: str, photos: str, split: str | None
) -> None:
    for folder in (xml, photos):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / xml / "b.xml").write_text(annotation(GOOD))
    (tmp_path / xml / "a.xml").write_text(annotation())
    for name in ("a.jpg", "b.png", "c.jpg"):
        (tmp_path / photos / name).touch()
    notes = Notes()
    examples = read_examples("voc", tmp_path, split=split, notes=notes)
    assert [example.labels for example in examples] == [(), ("dog",)]
    assert [(tmp_path / example.path).name for example in examples] == ["a.jpg", "b.png"]
    assert all((tmp_path / example.path).is_file() for example in examples)
    first, second = map(str, notes.all())
    assert first.startswith("2 images of all XML files in ")
    assert second == "1 photo left out: no XML file has its name (c.jpg)"
    if split:
        with pytest.raises(SettingsError, match=r"--split for a folder in it, of: train\)"):
            read_examples("voc", tmp_path)


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


GOOD = boxed("dog", 3, 3, 9, 9)
GOOD_BOX = (2, 2, 9, 9)


def read(root: Path, text: str) -> tuple[Example, list[Note]]:
    """The image `a17` with this annotation as it is read, and what was noted."""
    folder = root / "VOCdevkit/VOC2007"
    if not folder.exists():
        devkit(root, {"a17": ""})
    (folder / "Annotations/a17.xml").write_text(text)
    notes = Notes()
    (example,) = read_examples("voc", root, notes=notes)
    return example, list(notes.all())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("<object><name>dog</name></object>", "it has no box"),
        (boxed("", 1, 1, 2, 2), "it has no class name"),
        ("<object><bndbox><xmin>1</xmin></bndbox></object>", "it has no class name"),
        (boxed("dog", "left", 1, 2, 2), "its box is not four finite numbers"),
        (boxed("dog", "", 1, 2, 2), "its box is not four finite numbers"),
        (boxed("dog", 1, 1, "inf", 2), "its box is not four finite numbers"),
        (boxed("dog", 20, 1, 10, 2), "its box has no area inside the image"),
        (boxed("dog", 60, 60, 80, 80), "its box has no area inside the image"),
        (boxed("dog", 9, 6, 8, 15), "its box has no area inside the image"),
    ],
)
def test_an_unusable_object_is_left_out_and_named(tmp_path: Path, wrong: str, reason: str) -> None:
    example, (note,) = read(tmp_path, annotation(wrong, GOOD))
    assert [region.box for region in example.regions] == [GOOD_BOX]
    assert note == Note("object", f"left out: {reason}", 1, ("a17.xml, object 1",))
    with pytest.raises(SettingsError, match=f"1 of 1 objects cannot be used.*{reason}.*a17.xml"):
        read(tmp_path, annotation(wrong))


ENTITIES = (
    '<!DOCTYPE a [<!ENTITY b "' + "x" * 1000 + '"><!ENTITY c "' + "&b;" * 1000 + '">'
    "]><annotation><object><name>&c;</name></object></annotation>"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is no XML: no element found"),
        ("<annotation><object>", "it is no XML: no element found"),
        ("no XML", "it is no XML: syntax error"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "it is no XML: "),
        (
            '<?xml version="1.0" encoding="ascii"?><annotation>\u72d7',
            "it is no text in ascii; save",
        ),
        ("<html></html>", "its root is <html>, not <annotation>"),
        (ENTITIES, "it declares entities"),
    ],
)
def test_a_broken_annotation_is_a_problem_of_its_image_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    folder = devkit(tmp_path, {"000007": text, "000008": annotation(GOOD)})
    notes = Notes()
    broken, good = read_examples("voc", tmp_path, notes=notes)
    path = f"{folder}/Annotations/000007.xml"
    assert broken.problem.startswith(path)
    assert message in broken.problem
    assert (broken.labels, good.labels, good.problem) == ((), ("dog",), "")
    assert [(note.noun, note.count, note.names) for note in notes.all()] == [
        ("image", 1, (broken.problem,))
    ]
    (folder / "ImageSets/Main/test.txt").write_text("000007\n")
    with pytest.raises(SettingsError, match=f"none of the 1 images .*{path}: .*{message}"):
        read_examples("voc", tmp_path)


def test_an_image_without_annotation_is_a_problem_of_that_image(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"000001": annotation(), "000002": annotation(GOOD)})
    (folder / "Annotations/000001.xml").unlink()
    missing, _ = read_examples("voc", tmp_path)
    assert missing.problem.endswith(
        "Annotations/000001.xml for image '000001', which the split lists"
    )


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [("50.0", "40.0", (40, 50)), ("", "", None), ("0", "40", None), (" 50 ", "40", (40, 50))],
)
def test_sizes_may_be_floats_empty_or_zero(
    tmp_path: Path, width: str, height: str, size: tuple[int, int] | None
) -> None:
    sides = f"<size><width>{width}</width><height>{height}</height></size>"
    example, notes = read(tmp_path, f"<annotation>{sides}{GOOD}</annotation>")
    assert (example.size, example.regions[0].box, notes) == (size, GOOD_BOX, [])
    example, notes = read(tmp_path, f"<annotation>{GOOD}</annotation>")
    assert (example.size, notes) == (None, [])


def test_a_size_that_is_none_is_unknown_and_noted(tmp_path: Path) -> None:
    sides = "<size><width>wide</width><height>40</height></size>"
    example, (note,) = read(tmp_path, f"<annotation>{sides}{GOOD}</annotation>")
    assert example.size is None
    assert note.names == ("a17.xml: 'wide' is no number of pixels",)


@pytest.mark.parametrize(
    ("written", "difficult"),
    [
        *[(text, True) for text in ("1", "true", "1.0", "Yes", " 1 ")],
        *[(text, False) for text in ("0", "false", "0.0", "no", "", "None")],
    ],
)
def test_difficult_is_read_in_its_spellings(tmp_path: Path, written: str, difficult: bool) -> None:
    text = GOOD.replace("<difficult>0", f"<difficult>{written}")
    example, notes = read(tmp_path, annotation(text))
    assert (example.regions[0].difficult, notes) == (difficult, [])


def test_another_difficult_is_taken_as_none_and_noted(tmp_path: Path) -> None:
    text = GOOD.replace("<difficult>0", "<difficult>Unspecified")
    example, (note,) = read(tmp_path, annotation(GOOD, text))
    assert [region.difficult for region in example.regions] == [False, False]
    assert note.names == ("a17.xml, object 2: Unspecified",)


def test_an_annotation_in_a_namespace_is_read_as_any_other(tmp_path: Path) -> None:
    plain = annotation(GOOD)
    in_namespace = plain.replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    prefixed = re.sub("<(/?)", r"<\1v:", plain).replace(
        "<v:annotation>", '<v:annotation xmlns:v="http://example.org/voc">'
    )
    assert read(tmp_path, plain) == read(tmp_path, in_namespace) == read(tmp_path, prefixed)
    assert read(tmp_path, "\ufeff" + plain) == read(tmp_path, plain)


@pytest.mark.parametrize(
    ("encoding", "declared", "before"),
    [
        ("gb2312", "gb2312", ""),
        ("utf-16", "utf-16", ""),
        ("utf-16", "utf-8", ""),
        ("utf-16-le", "UTF-16", ""),
        ("utf-8", "utf-16", ""),
        ("utf-8-sig", "utf-8", ""),
        ("utf-8", "utf-8", "\r\n "),
        ("utf-8", "", ""),
        ("shift-jis", "Shift_JIS", ""),
    ],
)
def test_an_annotation_may_be_in_any_encoding(
    tmp_path: Path, encoding: str, declared: str, before: str
) -> None:
    folder = devkit(tmp_path, {"a17": ""})
    head = f'{before}<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    text = head + annotation(GOOD.replace("dog", "\u72ac"))
    (folder / "Annotations/a17.xml").write_bytes(text.encode(encoding))
    (example,) = read_examples("voc", tmp_path)
    assert (example.labels, example.size) == (("\u72ac",), (40, 50))
    assert [region.box for region in example.regions] == [GOOD_BOX]


def test_tags_may_be_in_capitals(tmp_path: Path) -> None:
    text = re.sub("</?[a-z]+>", lambda tag: tag[0].title(), annotation(GOOD))
    assert read(tmp_path, text) == read(tmp_path, annotation(GOOD))


def test_objects_may_stand_in_a_list_of_their_own(tmp_path: Path) -> None:
    assert read(tmp_path, annotation("<objects>", GOOD, "</objects>")) == read(
        tmp_path, annotation(GOOD)
    )


def test_a_second_name_or_box_is_noted_and_a_deleted_object_left_out(tmp_path: Path) -> None:
    twice = GOOD.replace("</object>", "<name>cat</name><bndbox/></object>")
    deleted = GOOD.replace("dog", "cat").replace("<difficult>", "<deleted>1</deleted><difficult>")
    example, notes = read(tmp_path, annotation(GOOD, twice, deleted))
    assert [region.box for region in example.regions] == [GOOD_BOX] * 2
    assert example.labels == ("dog",)
    assert [(note.what, note.names) for note in notes] == [
        ("with more than one <name>, of which the first counts", ("a17.xml, object 2",)),
        ("with more than one <bndbox>, of which the first counts", ("a17.xml, object 2",)),
        ("left out: its <deleted> is set", ("a17.xml, object 3",)),
    ]


def test_a_box_that_is_cut_at_the_border_is_noted(tmp_path: Path) -> None:
    example, (note,) = read(tmp_path, annotation(boxed("dog", 5, 6, 60, 15), GOOD))
    assert example.regions[0].box == (4, 5, 50, 15)
    assert note == Note(
        "object", "whose box is cut at the border of its photo", 1, ("a17.xml, object 1",)
    )


@pytest.mark.parametrize(
    "corners",
    [
        "<pt><x>5</x><y>6</y></pt><pt><x>20</x><y>6</y></pt><pt><x>20</x><y>15</y></pt>"
        "<pt><x>5</x><y>15</y></pt>",
        "<x1>5</x1><y1>6</y1><x2>20</x2><y2>6</y2><x3>20</x3><y3>15</y3><x4>5</x4><y4>15</y4>",
    ],
)
def test_a_polygon_becomes_a_mask_and_where_there_is_no_box_its_bounds(
    tmp_path: Path, corners: str
) -> None:
    polygon = f"<object><name>dog</name><polygon>{corners}</polygon></object>"
    example, notes = read(tmp_path, annotation(polygon))
    (mask,) = masks_of(example)
    expected = np.zeros((40, 50), dtype=np.uint8)
    expected[6:15, 5:20] = 1
    assert np.array_equal(mask, expected)
    assert (example.regions[0].box, notes) == ((5, 6, 20, 15), [])
    Image.new("RGB", (50, 40)).save(tmp_path / example.path)
    unknown, _ = read(tmp_path, annotation(polygon, width=0, height=0))
    assert (unknown.size, unknown.regions) == ((40, 50), example.regions)


def test_the_polygons_of_an_object_become_one_mask(tmp_path: Path) -> None:
    corners = (
        "<x1>{0}</x1><y1>6</y1><x2>{1}</x2><y2>6</y2><x3>{1}</x3><y3>15</y3><x4>{0}</x4><y4>15</y4>"
    )
    parts = "".join(f"<polygon>{corners.format(*ends)}</polygon>" for ends in ((5, 9), (20, 30)))
    example, notes = read(tmp_path, annotation(f"<object><name>dog</name>{parts}</object>"))
    expected = np.zeros((40, 50), dtype=np.uint8)
    expected[6:15, 5:9] = expected[6:15, 20:30] = 1
    assert np.array_equal(masks_of(example)[0], expected)
    assert (example.regions[0].box, notes) == ((5, 6, 30, 15), [])


def test_a_rotated_box_becomes_a_mask_and_its_bounds(tmp_path: Path) -> None:
    def rotated(angle: object) -> str:
        sides = f"<cx>20</cx><cy>15</cy><w>16</w><h>6</h><angle>{angle}</angle>"
        return f"<object><name>dog</name><robndbox>{sides}</robndbox></object>"

    example, notes = read(tmp_path, annotation(rotated(0.5)))
    rows, columns = np.mgrid[:40, :50] + 0.5
    down, right = rows - 15, columns - 20
    along = right * np.cos(0.5) + down * np.sin(0.5)
    across = down * np.cos(0.5) - right * np.sin(0.5)
    expected = (abs(along) < 8) & (abs(across) < 3)
    (mask,) = masks_of(example)
    assert (mask & expected).sum() / (mask | expected).sum() > 0.85
    assert notes == []
    _, (note,) = read(tmp_path, annotation(GOOD, rotated("none")))
    assert note.what == "left out: it has no box and a corner of its polygon is not a number"


def test_an_unusable_polygon_leaves_the_box(tmp_path: Path) -> None:
    polygon = "<polygon><x1>nan</x1><y1>6</y1><x2>20</x2><y2>6</y2><x3>20</x3><y3>9</y3></polygon>"
    example, (note,) = read(tmp_path, annotation(GOOD.replace("<bndbox>", f"{polygon}<bndbox>")))
    assert (example.regions[0].rle, example.regions[0].box) == (None, GOOD_BOX)
    assert note.what.endswith("a corner of its polygon is not a number")


@pytest.mark.parametrize(
    "listed",
    [
        b"\xef\xbb\xbfa17\nmy photo 1\n",
        b"a17\r\n\r\nmy photo 1\r\n",
        b"a17.jpg\nmy photo 1.jpg\n",
        b"JPEGImages/a17.jpg\nAnnotations\\my photo 1.xml\n",
        b"a17  1\nmy photo 1 1\nb18 -1\n",
        b"a17\t0\nmy photo 1\t0\nb18.png\t-1\n",
        "a17\nmy photo 1".encode("utf-16"),
        b"A17\nMy Photo 1\n",
        b"a17,1\nmy photo 1, 1\nb18,-1\n",
        b"a17;0\nmy photo 1 ;0\n",
    ],
)
def test_a_split_names_images_in_many_ways(tmp_path: Path, listed: bytes) -> None:
    folder = devkit(tmp_path, dict.fromkeys(("a17", "my photo 1", "b18"), annotation(GOOD)))
    (folder / "ImageSets/Main/test.txt").write_bytes(listed)
    examples = read_examples("voc", tmp_path)
    assert [example.image_id for example in examples] == ["a17", "my photo 1"]


def test_names_of_a_split_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    names = ("caf\u00e9", "b")
    folder = devkit(tmp_path, dict.fromkeys(names, annotation(GOOD)))
    listed = unicodedata.normalize("NFD", "".join(f"{name}\n" for name in names))
    (folder / "ImageSets/Main/test.txt").write_text(listed, encoding="utf-8")
    examples = read_examples("voc", tmp_path)
    assert [(example.image_id, example.labels) for example in examples] == [
        (name, ("dog",)) for name in names
    ]


def test_comments_of_a_split_are_left_out_and_noted(tmp_path: Path) -> None:
    folder = devkit(tmp_path, dict.fromkeys(("a17", "#1"), annotation(GOOD)))
    (folder / "ImageSets/Main/test.txt").write_text("# all\na17\n#1\n")
    notes = Notes()
    examples = read_examples("voc", tmp_path, notes=notes)
    assert [example.image_id for example in examples] == ["a17", "#1"]
    (note,) = notes.all()
    assert str(note) == "1 line of test.txt left out: it is a comment (# all)"


def test_a_split_may_be_that_of_another_folder_of_lists(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"a17": annotation(GOOD), "b18": annotation(GOOD)})
    (folder / "ImageSets/Segmentation").mkdir()
    (folder / "ImageSets/Segmentation/val.txt").write_text("b18\n")
    (example,) = read_examples("voc", tmp_path, split="Segmentation/val")
    assert example.image_id == "b18"
    with pytest.raises(SettingsError, match=r"no split 'val' .*: Segmentation/val, test\. Give"):
        read_examples("voc", tmp_path, split="val")
    shutil.rmtree(folder / "ImageSets/Main")
    with pytest.raises(SettingsError, match=r"no --split is given.* Segmentation/val\. Give"):
        read_examples("voc", tmp_path)


def test_a_line_that_repeats_an_image_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"a17": annotation(GOOD)})
    (folder / "ImageSets/Main/test.txt").write_text("a17\na17.jpg\n")
    notes = Notes()
    (example,) = read_examples("voc", tmp_path, notes=notes)
    assert example.image_id == "a17"
    assert [str(note) for note in notes.all()] == ["1 line of test.txt left out: listed before"]
    (folder / "ImageSets/Main/test.txt").write_bytes(b"\xff\x00\x81")
    with pytest.raises(SettingsError, match=r"test.txt is no text"):
        read_examples("voc", tmp_path)


def test_without_a_split_the_one_that_is_read_is_said(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"a17": annotation(GOOD)})
    lists = folder / "ImageSets/Main"
    (lists / "train.txt").write_text("a17\n")
    notes = Notes()
    read_examples("voc", tmp_path, notes=notes)
    (note,) = notes.all()
    assert "test.txt, since no --split is given; the set also has train" in note.what
    notes = Notes()
    read_examples("voc", tmp_path, split="train", notes=notes)
    assert notes.all() == ()
    (lists / "test.txt").unlink()
    with pytest.raises(SettingsError, match=r"no --split is given.* valid splits: train\."):
        read_examples("voc", tmp_path)


def test_a_photo_may_have_any_suffix(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"a": annotation(GOOD), "b": annotation(GOOD, file_name="x/c.PNG")})
    (folder / "JPEGImages/a.jpg").rename(folder / "JPEGImages/a.JPEG")
    (folder / "JPEGImages/b.jpg").rename(folder / "JPEGImages/c.PNG")
    paths = [Path(example.path).name for example in read_examples("voc", tmp_path)]
    assert paths == ["a.JPEG", "c.PNG"]


def test_the_file_name_of_the_annotation_serves_where_there_is_no_jpg(tmp_path: Path) -> None:
    names = {"1": "1.png", "2": "absent.png", "3": "1.png"}
    folder = devkit(tmp_path, {name: annotation(file_name=file) for name, file in names.items()})
    (folder / "JPEGImages/1.jpg").rename(folder / "JPEGImages/1.png")
    paths = [Path(example.path).name for example in read_examples("voc", tmp_path)]
    assert paths == ["1.png", "2.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("image", "file_name", "photo"),
    [
        ("IMG1", "", "img1.jpg"),
        ("IMG1", "IMG1.JPG", "img1.jpeg"),
        ("caf\u00e9", "", "cafe\u0301.jpg"),
        ("a", "P1.JPG", "p1.jpg"),
        ("a", "p1", "p1.png"),
        ("a", "p.1", "p.1.png"),
        ("a", "day/p1.png", "day/p1.png"),
        ("a", "", "day/a.jpg"),
    ],
)
def test_the_only_photo_that_is_spelt_alike_serves(
    tmp_path: Path, image: str, file_name: str, photo: str
) -> None:
    folder = devkit(tmp_path, {image: annotation(GOOD, file_name=file_name)})
    (folder / f"JPEGImages/{photo}").parent.mkdir(exist_ok=True)
    (folder / f"JPEGImages/{image}.jpg").rename(folder / f"JPEGImages/{photo}")
    for listed in (image, image.lower(), image.title()):
        (folder / "ImageSets/Main/test.txt").write_text(listed)
        (example,) = read_examples("voc", tmp_path)
        assert example.path == f"VOCdevkit/VOC2007/JPEGImages/{photo}"
        assert (example.image_id, example.labels) == (image, ("dog",))


def test_a_photo_of_another_annotation_is_not_taken_for_one_that_is_spelt_alike(
    tmp_path: Path,
) -> None:
    folder = devkit(tmp_path, dict.fromkeys(("a", "A", "b"), annotation(GOOD)))
    (folder / "JPEGImages/A.jpg").unlink()
    (folder / "ImageSets/Main/test.txt").write_text("A\nb\n")
    paths = [Path(example.path).name for example in read_examples("voc", tmp_path)]
    assert paths == ["A.jpg", "b.jpg"]


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_vocs_colours_are_those_of_its_palette(tmp_path: Path, mode: str) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE)})
    path = draw_masks(folder, "SegmentationObject/1.png", numbered_objects())
    red, green, border = (128, 0, 0), (0, 128, 0), (224, 224, 192)  # of 1, 2 and 255
    colours = np.zeros((40, 50, 3), dtype=np.uint8)
    for number, colour in ((1, red), (2, green), (BORDER, border)):
        colours[numbered_objects() == number] = colour
    Image.fromarray(colours).convert(mode).save(path)
    first, second, third = masks_of(read_examples("voc", tmp_path)[0])
    assert np.array_equal(first, numbered_objects() == 1)
    assert np.array_equal(second, numbered_objects() == 2)
    assert third is None
    colours[0, 0] = 1, 2, 3
    Image.fromarray(colours).convert(mode).save(path)
    notes = Notes()
    assert masks_of(read_examples("voc", tmp_path, notes=notes)[0]) == [None] * 3
    assert f"{path} has colours that are not those of VOC's palette" in notes.all()[0].names[0]


def test_a_mask_outside_of_the_box_is_that_of_another_class_and_not_taken(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE[:2])})
    classes = np.zeros((40, 50), dtype=np.uint8)
    classes[5:20, 5:15] = 12  # dog
    classes[30:35, 30:40] = 8  # cat in VOC, and something else in a set that numbers otherwise
    draw_masks(folder, "SegmentationClass/1.png", classes)
    notes = Notes()
    dog, cat = masks_of(read_examples("voc", tmp_path, notes=notes)[0])
    assert np.array_equal(dog, classes == 12)
    assert cat is None
    (note,) = notes.all()
    assert note.what.endswith("so that its box counts: its mask has no pixel in its box")
    assert note.names == ("1.xml, object 2",)


def test_objects_that_are_not_annotated_leave_the_masks_of_the_classes(tmp_path: Path) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE[:1])})
    path = draw_masks(folder, "SegmentationObject/1.png", numbered_objects())
    notes = Notes()
    assert masks_of(read_examples("voc", tmp_path, notes=notes)[0]) == [None]
    (note,) = notes.all()
    assert f"{path} numbers 2 objects, and the annotation has 1; add the file of" in note.names[0]
    classes = np.where(numbered_objects() == 1, 12, 0)
    draw_masks(folder, "SegmentationClass/1.png", classes)
    (mask,) = masks_of(read_examples("voc", tmp_path)[0])
    assert np.array_equal(mask, classes == 12)


def test_without_masks_that_can_be_used_the_boxes_count_and_the_file_is_named(
    tmp_path: Path,
) -> None:
    folder = devkit(tmp_path, {"1": annotation(*THREE)})
    path = folder / "SegmentationObject/1.png"

    def reason() -> str:
        notes = Notes()
        (example,) = read_examples("voc", tmp_path, notes=notes)
        assert masks_of(example) == [None] * 3
        (note,) = notes.all()
        assert note.what == "without its masks, so that its boxes count"
        return note.names[0]

    draw_masks(folder, "SegmentationObject/1.png", numbered_objects()[:30])
    assert reason() == f"{path} is of 50 x 30 px, and the annotation says 50 x 40"
    Image.fromarray(numbered_objects()).convert("F").save(path, format="TIFF")
    assert f"{path} has mode F" in reason()
    draw_masks(folder, "SegmentationObject/1.png", numbered_objects())
    path.write_bytes(path.read_bytes()[:60])
    assert f"cannot read the masks {path}" in reason()
    path.write_text("no picture")
    assert reason() == f"cannot read the masks {path}: it is no picture"


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
