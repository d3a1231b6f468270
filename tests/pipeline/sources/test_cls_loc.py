from pathlib import Path

import pytest
from PIL import Image
from tiny_network import run_config

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.example import Example, Region
from pipeline.generate import generate
from pipeline.model.classes import class_names, resolve_labels
from pipeline.notes import Notes
from pipeline.sources import read_examples
from pipeline.store import MapDataset

TENCH, COCK = "n01440764", "n01514668"
XML = """<annotation><folder>val</folder><filename>{name}</filename>
<size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>{synset}</name><difficult>0</difficult>
<bndbox><xmin>0</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""

pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photos of `val`, and two of `train`, of which the second has no boxes."""
    photos = {"val/ILSVRC2012_val_1": COCK, "val/ILSVRC2012_val_2": TENCH}
    photos |= {f"train/{TENCH}/{TENCH}_7": TENCH, f"train/{COCK}/{COCK}_8": ""}
    for i, (name, synset) in enumerate(photos.items()):
        photo = tmp_path / f"ILSVRC/Data/CLS-LOC/{name}.JPEG"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (60 * i, 90, 200)).save(photo, format="JPEG")
        xml = tmp_path / f"ILSVRC/Annotations/CLS-LOC/{name}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        if synset:
            xml.write_text(XML.format(name=photo.stem, synset=synset))
    lists = {
        "val": "ILSVRC2012_val_1 1\nILSVRC2012_val_2 2\n",
        "train_cls": f"{TENCH}/{TENCH}_7 1\n{COCK}/{COCK}_8 2\n",
        "train_loc": f"{TENCH}/{TENCH}_7 1\n",
    }
    for split, text in lists.items():
        path = tmp_path / f"ILSVRC/ImageSets/CLS-LOC/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


BOX = (0, 4, 30, 40)


@pytest.mark.parametrize("inside", ["", "ILSVRC"])
def test_the_labels_are_synsets_and_the_pixels_of_boxes_count_from_0(
    root: Path, inside: str
) -> None:
    folder = "" if inside else "ILSVRC/"
    assert read_examples("cls_loc", root / inside)[0] == Example(
        image_id="ILSVRC2012_val_1",
        path=f"{folder}Data/CLS-LOC/val/ILSVRC2012_val_1.JPEG",
        labels=(COCK,),
        regions=(Region(COCK, BOX),),
        size=(40, 50),
    )


def test_a_list_may_have_commas_and_a_photo_another_suffix(root: Path) -> None:
    val = root / "ILSVRC/Data/CLS-LOC/val"
    (val / "ILSVRC2012_val_1.JPEG").rename(val / "ILSVRC2012_val_1.jpeg")
    (val / "ILSVRC2012_val_2.JPEG").rename(val / "ILSVRC2012_val_2.png")
    listed = root / "ILSVRC/ImageSets/CLS-LOC/val.txt"
    listed.write_text("ILSVRC2012_val_1,1\nILSVRC2012_val_2 ; 2\n")
    notes = Notes()
    examples = read_examples("cls_loc", root / "ILSVRC", notes=notes)
    assert [(Path(example.path).name, len(example.regions)) for example in examples] == [
        ("ILSVRC2012_val_1.jpeg", 1),
        ("ILSVRC2012_val_2.png", 1),
    ]
    (note,) = notes.all()
    assert (note.count, note.what) == (2, "taken for that of a file spelt alike")


@pytest.mark.parametrize("with_xml", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_photos_of_val_may_be_sorted_into_folders(root: Path, with_xml: bool, listed: bool) -> None:
    lists, expected = root / "ILSVRC/ImageSets/CLS-LOC", read_examples("cls_loc", root)
    for name, synset in (("ILSVRC2012_val_1", COCK), ("ILSVRC2012_val_2", TENCH)):
        for part, suffix in (("Data", ".JPEG"), *([("Annotations", ".xml")] if with_xml else [])):
            file = root / "ILSVRC" / part / "CLS-LOC/val" / f"{name}{suffix}"
            (file.parent / synset).mkdir(exist_ok=True)
            file.rename(file.parent / synset / file.name)
    if not listed:
        for path in lists.iterdir():
            path.unlink()
    notes = Notes()
    examples = read_examples("cls_loc", root, notes=notes)
    found = sorted(
        (Path(example.path).name, example.labels, example.regions) for example in examples
    )
    assert found == sorted((Path(each.path).name, each.labels, each.regions) for each in expected)
    assert [note.what for note in notes.all()] == ["taken from the folder of a class"] * listed


def test_photos_without_boxes_have_the_synset_of_their_folder(root: Path) -> None:
    notes = Notes()
    with_box, without = read_examples("cls_loc", root, split="train_cls", notes=notes)
    assert with_box.image_id == f"{TENCH}__{TENCH}_7"
    assert (with_box.labels, with_box.regions) == ((TENCH,), (Region(TENCH, BOX),))
    assert (without.labels, without.regions, without.size) == ((COCK,), (), None)
    assert [str(note) for note in notes.all()] == [
        f"1 image without an XML file, so without boxes ({COCK}/{COCK}_8.JPEG)"
    ]
    assert len(read_examples("cls_loc", root, split="train_loc")) == 1


def test_folders_without_lists_are_splits(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"no split 'test' .* train_cls, train_loc, val"):
        read_examples("cls_loc", root, split="test")
    for path in (root / "ILSVRC/ImageSets/CLS-LOC").iterdir():
        path.unlink()
    assert len(read_examples("cls_loc", root)) == 2
    assert [e.labels for e in read_examples("cls_loc", root, split="train")] == [(TENCH,), (COCK,)]
    with pytest.raises(SettingsError, match="valid splits: none"):
        read_examples("cls_loc", root, split="test")


def test_another_folder_and_annotations_are_refused(root: Path) -> None:
    with pytest.raises(SettingsError, match="no Data/CLS-LOC in --root"):
        read_examples("cls_loc", root / "ILSVRC/Data")
    with pytest.raises(SettingsError, match="drop --annotations"):
        read_examples(
            "cls_loc", root, annotations="ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_1.xml"
        )


def test_a_broken_xml_file_is_a_problem_of_its_image_alone(root: Path) -> None:
    path = root / "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_2.xml"
    path.write_text("<annotation>")
    good, broken = read_examples("cls_loc", root)
    assert (good.problem, broken.labels) == ("", ())
    assert broken.problem.startswith(f"{path}: it is no XML")


def mapping(path: Path) -> Path:
    """A file as `LOC_synset_mapping.txt`, of the five classes of the tiny network."""
    others = "".join(f"n0000000{i} thing {i}\n" for i in range(3))
    path.write_text(f"{TENCH} tench, Tinca tinca\n{COCK} cock\n{others}")
    return path


def test_a_mapping_of_synsets_names_the_classes(tmp_path: Path) -> None:
    named = class_names(str(mapping(tmp_path / "LOC_synset_mapping.txt")), 5)
    assert named.names[0] == "tench, Tinca tinca"
    assert resolve_labels([COCK, TENCH], named) == {COCK: (1,), TENCH: (0,)}


def test_a_run_explains_the_synsets_and_scores_the_boxes(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    index = str(mapping(tmp_path / "mapping.txt"))
    config = run_config(root, source="cls_loc", class_index=index, roles=["label"], layers=["late"])
    assert generate(config, out).errors == 0
    evaluate(out, metrics=["pointing_game"], replicates=10)
    scores = MapDataset(out).scores(role="label", method="normgrad")
    rows = scores.select(["class_name", "target"]).to_pylist()
    assert [(row["class_name"], row["target"]) for row in rows] == [(COCK, 1), (TENCH, 0)]
