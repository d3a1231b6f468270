"""Boxes reach the metrics, and the pairs of a flag file have statistics of their own."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_network import draw_photo, run_config

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.example import Region
from pipeline.generate import generate
from pipeline.regions import class_boxes
from pipeline.report.statistics_tables import statistics_tables
from pipeline.scores.difficult import read_difficult
from pipeline.store import MapDataset

pytestmark = pytest.mark.usefixtures("without_beam")

FLAGS = """image_id,class_name,difficult,note
0,0,0,easy
0,1,1,small
1,1,true,dark
2,2,0,
"""


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three photos: classes 0 and 1 in photo 0, 1 in photo 1, 2 and a difficult 0 in 2."""
    root = tmp_path_factory.mktemp("boxed")
    for i in range(3):
        draw_photo(root / f"{i}.png", seed=i)
    boxes = {
        0: [("0", [2, 2, 30, 30], False), ("1", [30, 20, 48, 40], False)],
        1: [("1", [0, 0, 48, 40], False)],
        2: [("2", [10, 10, 20, 20], False), ("0", [0, 0, 5, 5], True)],
    }
    lines = [
        {
            "path": f"{i}.png",
            "labels": [label for label, _, _ in of_photo],
            "boxes": [{"label": n, "box": box, "difficult": d} for n, box, d in of_photo],
        }
        for i, of_photo in boxes.items()
    ]
    (root / "boxes.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    config = run_config(
        root,
        source="table",
        annotations="boxes.jsonl",
        methods=["gradient", "grad_cam"],
        layers=["middle"],
        preprocess="stretch",
    )
    generate(config, str(root / "out"))
    return root / "out"


@pytest.fixture
def out(boxed: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(boxed, tmp_path / "out"))


def flags(folder: Path, text: str) -> Path:
    path = folder / "flags.csv"
    path.write_text(text)
    return path


def test_the_difficult_pairs_have_statistics_of_their_own(out: str, tmp_path: Path) -> None:
    path = flags(tmp_path, FLAGS)
    metrics = ["pointing_game", "energy", "max_box_acc_v2", "class_sensitivity"]
    result = evaluate(out, metrics=metrics, difficult=str(path), replicates=10)
    counts = {
        (row.metric, row.key.role, row.subset): row.n + row.undefined
        for row in result.statistics
        if row.key.method == "gradient" and not row.key.class_name and row.statistic == "mean"
    }
    # Classes to localise: 0 and 1, 1, 2; a photo's least class is looked for in each.
    localised = {
        (metric, role, subset): number
        for metric in metrics[:3]
        for role in ("label", "least")
        for subset, number in (("all", 4), ("difficult", 2))
    }
    assert {key: counts.get(key) for key in localised} == localised
    assert {key for key in counts if key[0] == "class_sensitivity"} == {
        ("class_sensitivity", "top-least", "all")
    }

    scores = MapDataset(out).scores(metric="energy", method="gradient", role="label").to_pylist()
    hard = [
        row["value"]
        for row in scores
        if (row["image_id"], row["class_name"]) in {("0", "1"), ("1", "1")}
    ]
    (mean,) = (
        row.value
        for row in result.statistics
        if (row.metric, row.key.method, row.key.role) == ("energy", "gradient", "label")
        and row.subset == "difficult"
    )
    assert mean == pytest.approx(sum(hard) / len(hard))
    assert len(hard) == 2

    titles = [str(table.title) for table in statistics_tables(result.statistics)]
    assert sum("difficult subset" in title for title in titles) == 6
    assert len(titles) == 13


def test_scores_stay_when_a_flag_file_is_given_later(out: str, tmp_path: Path) -> None:
    evaluate(out, metrics=["energy"], replicates=10)
    written = {p: p.stat().st_mtime_ns for p in Path(out, "scores").iterdir()}
    result = evaluate(out, metrics=["energy"], difficult=str(flags(tmp_path, FLAGS)), replicates=10)
    assert {p: p.stat().st_mtime_ns for p in Path(out, "scores").iterdir()} == written
    assert {row.subset for row in result.statistics} == {"all", "difficult"}


def test_dear_metrics_run_when_they_are_named_and_keep_their_curves(out: str) -> None:
    evaluate(out, replicates=10)
    assert "max_box_acc" not in set(MapDataset(out).scores()["metric"].to_pylist())
    evaluate(out, metrics=["max_box_acc", "energy"], replicates=10)
    rows = MapDataset(out).scores(metric=["max_box_acc", "energy"]).to_pylist()
    assert {row["metric"]: row["curve"] is None for row in rows} == {
        "max_box_acc": False,
        "energy": True,
    }
    # The box of class 1 in photo 1 is the whole photo, which is what the threshold 0 gives.
    whole = [r for r in rows if r["curve"] and (r["image_id"], r["class_name"]) == ("1", "1")]
    assert whole
    assert all(row["curve"][0] == 100 for row in whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FLAGS.replace("0,1,1,small\n", ""), r"no flag for 1 .*: 0, 1\. Add a row"),
        ("image_id,class_name,difficult\n", r"no flag for 4 .*: 0, 0; 0, 1; 1, 1 \.\.\."),
        (FLAGS.replace("true", "maybe"), r"line 4: difficult is 'maybe'; valid: 0, 1, false, true"),
        (FLAGS + "0,1,0,\n", r"line 6: 0, 1 has two different flags"),
        ("image_id,class_name\n0,0\n", r"no column difficult; it needs image_id, class_name"),
        ("", r"no column image_id"),
    ],
)
def test_a_flag_file_that_does_not_fit_is_refused_before_any_work(
    out: str, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate(out, difficult=str(flags(tmp_path, text)), replicates=10)
    assert not Path(out, "scores").exists()


def test_a_missing_flag_file_is_refused(out: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the flags"):
        read_difficult(str(tmp_path / "none.csv"), MapDataset(out))


def test_boxes_are_of_objects_with_area_in_classes_that_are_not_all_difficult() -> None:
    def region(name: str, side: float, difficult: bool = False, crowd: bool = False) -> Region:
        return Region(name, (1.0, 2.0, 1.0 + side, 9.0), None, difficult, crowd)

    boxes = class_boxes(
        [
            region("dog", 5.0),
            region("dog", 6.0, difficult=True),
            region("dog", 7.0, crowd=True),
            region("dog", 0.0),
            region("cat", 5.0, difficult=True),
            region("bird", 5.0, crowd=True),
        ],
        20,
        20,
    )
    assert boxes == {"dog": [(1.0, 2.0, 6.0, 9.0), (1.0, 2.0, 7.0, 9.0)]}
