"""Annotations with something wrong in them are read, or refused in words: no other error, no crash.

What is read must also be scored, so every region becomes pixels here.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.regions import class_boxes, class_regions
from pipeline.sources import read_examples
from pipeline.sources.image_ids import check_image_ids

ROUNDS = 200
ODD = (
    *(None, True, False, 0, 1, -1, 2.5, 1e8, -1e30, math.nan, math.inf, 10**400, 2**63),
    *("", "0", "7", "dog", "x" * 300, "\ud800", "a\0b", "..", "\\", "true", "nan", "inf", "1e999"),
    *([], {}, [[]], [None], [[1, 2, 3, 4]], {"a": 1}, [0, 0, 5, 5], [[0, 0, 5, 0, 5, 5]]),
    {"size": [8, 12], "counts": [96]},
    {"size": [8, 12], "counts": "oooo"},
)


def mutated(value: Any, draw: random.Random) -> Any:
    """The JSON value with one part replaced, deleted, repeated or swapped with another."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(ODD)
    copy: Any = value.copy()
    key = draw.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
    match draw.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, list):
            copy.append(copy[key])
        case 2 if isinstance(copy, list):
            other = draw.randrange(len(copy))
            copy[key], copy[other] = copy[other], copy[key]
        case _:
            copy[key] = mutated(copy[key], draw)
    return copy


def use(examples: Sequence[Example]) -> None:
    """What planning and scoring do with the regions of examples."""
    check_image_ids(examples)
    for example in examples:
        for text in (*example.labels, example.image_id, example.path, example.problem):
            text.encode()
        height, width = example.size or (8, 12)
        if height * width <= 10**6:
            for region in ("boxes", "masks"):
                class_regions(example.regions, height, width, region)
        for boxes in class_boxes(example.regions, height, width).values():
            assert all(math.isfinite(side) for box in boxes for side in box)


def count_read(read: Callable[[Notes], Sequence[Example]]) -> int:
    """1 where the set is read and can be used, 0 where it is refused in words."""
    notes = Notes()
    said = ""
    try:
        use(read(notes))
    except SettingsError as refused:
        said = str(refused)
    said.encode()
    for note in notes.all():
        str(note).encode()
    return 0 if said else 1


def instances() -> dict[str, Any]:
    square = [2, 1, 6, 1, 6, 5, 2, 5]
    segmentations: list[Any] = [
        [square],
        [square, [8, 1, 11, 1, 11, 4]],
        {"size": [8, 12], "counts": [10, 3, 83]},
        {"size": [8, 12], "counts": ":3c2"},
        [],
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 12, "height": 8, "license": 1}
            for i in range(3)
        ],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": i % 3,
                "category_id": 1 + i % 2,
                "bbox": [2.0, 1.0, 4.0, 4.0],
                "iscrowd": 0,
                "segmentation": segmentation,
            }
            for i, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def test_a_mutated_coco_file_is_read_or_refused_in_words(tmp_path: Path) -> None:
    draw = random.Random(0)
    for i in range(3):
        (tmp_path / f"{i}.jpg").touch()
    path = tmp_path / "instances.json"
    read = 0
    for _ in range(ROUNDS):
        content = instances()
        for _ in range(draw.randrange(1, 4)):
            content = mutated(content, draw)
        path.write_text(json.dumps(content))
        read += count_read(
            lambda notes: read_examples("coco", tmp_path, annotations=path, notes=notes)
        )
    assert 0.3 < read / ROUNDS < 0.95


XML = """<?xml version="1.0"?><annotation><filename>a.jpg</filename>
<size><width>12</width><height>8</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>7</xmax><ymax>6</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<polygon><pt><x>1</x><y>1</y></pt><pt><x>6</x><y>1</y></pt><pt><x>6</x><y>5</y></pt></polygon>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>5</ymax></bndbox></object></annotation>"""
TEXTS = ("", "nan", "inf", "-5", "1e8", "1e999", "dog", "&", "<x>", "</object>", "<object>", "\x01")


def mutated_text(text: str, draw: random.Random) -> str:
    """The text with a piece of it deleted, repeated or replaced, mostly between two tags."""
    start = draw.choice([i for i, letter in enumerate(text) if letter in "<>"]) + draw.randrange(2)
    end = start + draw.choice((0, 1, 1, 2, 5, 40))
    return text[:start] + draw.choice((*TEXTS, text[start:end] * 2)) + text[end:]


@pytest.mark.parametrize("with_masks", [False, True])
def test_a_mutated_voc_file_is_read_or_refused_in_words(tmp_path: Path, with_masks: bool) -> None:
    draw = random.Random(1)
    year = tmp_path / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / folder).mkdir(parents=True)
    for name in ("a", "b"):
        (year / f"JPEGImages/{name}.jpg").touch()
        (year / f"Annotations/{name}.xml").write_text(XML)
    if with_masks:
        (year / "SegmentationObject").mkdir()
        masks = Image.new("L", (12, 8), 1)
        masks.paste(2, (6, 0, 12, 8))
        masks.save(year / "SegmentationObject/a.png")
    (year / "ImageSets/Main/test.txt").write_text("a\nb\n")
    read = 0
    for _ in range(ROUNDS):
        text = XML
        for _ in range(draw.randrange(1, 4)):
            text = mutated_text(text, draw)
        (year / "Annotations/a.xml").write_text(text)
        read += count_read(lambda notes: read_examples("voc", tmp_path, notes=notes))
    assert read / ROUNDS > 0.5
