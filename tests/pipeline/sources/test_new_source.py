"""A source is one entry in the table: a toy one, made here, goes all the way of a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_network import draw_photo, run_config

from pipeline.evaluate import evaluate
from pipeline.example import Example, Region
from pipeline.generate import generate
from pipeline.notes import Note, Notes
from pipeline.plan import read_plan
from pipeline.sources import SOURCES, Source
from pipeline.store import MapDataset

pytestmark = pytest.mark.usefixtures("without_beam")


def read_names(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Photos named `CLASS-NUMBER.png`, each with one object in its left half."""
    for path in sorted(Path(root).glob("*.txt")):
        notes.add("file", "left out: it is no photo", path.name)
    for path in sorted(Path(root).glob("*.png")):
        label = path.name.partition("-")[0]
        box = Region(label, (0.0, 0.0, 24.0, 40.0))
        yield Example(path.stem, path.name, (label,), (box,), (40, 48))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(3):
        draw_photo(tmp_path / "set" / f"{i}-{i}.png", seed=i, size=(48, 40))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("whole", "preprocess", "shape"),
    [(True, "shortest_side", (32, 38)), (False, "center_crop", (32, 32))],
)
def test_a_run_on_a_new_source(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
    preprocess: str,
    shape: tuple[int, int],
) -> None:
    toy = Source(read_names, "photos named CLASS-NUMBER.png", whole_photos=whole)
    monkeypatch.setitem(SOURCES, "toy", toy)
    (root / "names.txt").touch()
    out = str(root.parent / "out")
    summary = generate(run_config(root, source="toy"), out)
    assert summary.errors == 0
    left_out = Note("file", "left out: it is no photo", 1, ("names.txt",))
    assert read_plan(out).notes == summary.plan.notes == (left_out,)
    assert str(left_out) in Path(out, "README.md").read_text()
    assert read_plan(out).settings["preprocess"] == preprocess
    evaluate(out, metrics=["pointing_game"], replicates=10)
    dataset = MapDataset(out)
    assert dataset.scores(role="label")["class_name"].unique().to_pylist() == ["0", "1", "2"]
    image = dataset.image("1-1")
    assert image is not None
    assert (image.input_height, image.input_width) == shape
    assert image.regions == (Region("1", (0.0, 0.0, 24.0, 40.0)),)


def test_the_class_map_of_a_source_is_that_of_its_entry(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels are VOC's, so that each stands for several of ImageNet's classes."""

    def read_dogs(
        root: str, split: str | None, annotations: str | None, notes: Notes
    ) -> Iterator[Example]:
        yield Example("dog", "0-0.png", ("dog",))

    monkeypatch.setitem(SOURCES, "toy", Source(read_dogs, "a dog", class_map="voc"))
    out = str(root.parent / "out")
    config = run_config(root, source="toy", num_classes=1000, roles=["label"], layers=["late"])
    generate(config, out)
    image = MapDataset(out).image("dog")
    assert image is not None
    assert image.labels[0].model_classes == tuple(range(151, 269))
