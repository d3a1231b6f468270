"""A scoring has parts: what is missing is scored, what is there is kept, the rest is left alone."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked_process import ForkedProcess
from tiny_network import boxed_config, draw_boxed_set

from pipeline.compare import findings
from pipeline.errors import OutTakenError, SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.scores.scoring import Scoring, resolve_scoring
from pipeline.scores.statistics_files import write_statistics
from pipeline.store import MapDataset
from pipeline.store.verify import verify
from transforms.metrics import METRICS, Metric
from transforms.score import Score

pytestmark = pytest.mark.usefixtures("without_beam")

REPLICATES = 10
FIRST = {"metrics": ["energy"]}
MORE = {
    "metrics": ["energy", "class_sensitivity", "mask_iou", "class_sensitivity_native"],
    "upsample": ["bilinear", "receptive-field"],
    "combine": ["sum:uniform", "product:linear"],
    "region": ["boxes", "masks"],
}
STATISTICS = ("statistics.csv", "statistics.json", "statistics/statistics.parquet")

Rows = list[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos with a box each."""
    return draw_boxed_set(tmp_path_factory.mktemp("parts") / "set", 5)


@pytest.fixture(scope="module")
def unscored(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts") / "unscored"
    generate(boxed_config(root), str(out))
    return out


@pytest.fixture(scope="module")
def at_once(unscored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the tests add, evaluated in one go."""
    return evaluated(unscored, tmp_path_factory.mktemp("parts") / "at_once", **MORE)


@pytest.fixture(scope="module")
def first_alone(unscored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(unscored, tmp_path_factory.mktemp("parts") / "first", **FIRST)


def evaluated(run: Path, out: Path, **settings: object) -> Path:
    shutil.copytree(run, out)
    evaluate(str(out), replicates=REPLICATES, **settings)
    return out


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "out", copy_function=shutil.copy2))


def shards(out: Path) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted((out / "scores").iterdir())]


def parts(table: pa.Table) -> set[tuple[str, ...]]:
    """Metric, upsampling, region and combination of the parts that a file says it has."""
    return {tuple(part[:4]) for part in json.loads(table.schema.metadata[b"backlight.parts"])}


def rows(table: pa.Table, **wanted: object) -> Rows:
    """As text, since nan differs from itself; floats are written to the last bit."""
    return [str(row) for row in table.to_pylist() if wanted.items() <= row.items()]


def statistics(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in STATISTICS}


def break_maps(out: Path, shard: int = 1) -> None:
    """Whatever reads the maps of the shard fails from now on."""
    (path,) = (out / "maps").glob(f"*{shard:05d}-of*")
    path.write_bytes(b"broken")


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (
            {"metrics": ["energy", "class_sensitivity"]},
            {("class_sensitivity", "bilinear", "", "")},
        ),
        (
            {**FIRST, "upsample": ["bilinear", "receptive-field"]},
            {("energy", "receptive-field", "boxes", "")},
        ),
        ({**FIRST, "combine": ["sum:uniform"]}, {("energy", "bilinear", "boxes", "sum(uniform)")}),
        ({**FIRST, "region": ["boxes", "masks"]}, {("energy", "bilinear", "masks", "")}),
    ],
    ids=["metric", "upsampling", "combination", "region"],
)
def test_what_is_added_is_scored_and_what_is_there_is_kept_bit_for_bit(
    first_alone: Path,
    unscored: Path,
    tmp_path: Path,
    added: Mapping[str, object],
    expected: set[tuple[str, ...]],
) -> None:
    out = copy_of(first_alone, tmp_path)
    mark_scores(out)
    marked = shards(out)
    evaluate(str(out), replicates=REPLICATES, **added)
    whole = shards(evaluated(unscored, tmp_path / "whole", **added))
    for before, after, new in zip(marked, shards(out), whole, strict=True):
        assert parts(before) == {("energy", "bilinear", "boxes", "")}
        assert parts(after) == parts(before) | expected == parts(new)
        # Only the marked rows are of the first evaluation, and all of them are still there.
        assert rows(after, ties=-7) == rows(before)
        ours = {row for row in rows(after) if "'ties': -7" not in row}
        theirs = set(rows(new))
        assert ours < theirs
        assert len(theirs) == len(ours) + len(rows(before))


def mark_scores(out: Path) -> None:
    """Sets the ties of all scores to -7, which no metric gives."""
    for path in (out / "scores").iterdir():
        table = pq.read_table(path)
        place = table.schema.get_field_index("ties")
        ties = pa.array([-7] * len(table), table.schema.field("ties").type)
        pq.write_table(table.set_column(place, table.schema.field("ties"), ties), path)


def test_statistics_of_one_after_the_other_equal_those_of_all_at_once(
    first_alone: Path, at_once: Path, tmp_path: Path
) -> None:
    out = copy_of(first_alone, tmp_path)
    evaluate(str(out), replicates=REPLICATES, metrics=["energy", "mask_iou"], region=["masks"])
    evaluate(str(out), replicates=REPLICATES, metrics=MORE["metrics"], combine=["product:linear"])
    evaluate(str(out), replicates=REPLICATES, **MORE)
    assert statistics(out) == statistics(at_once)
    for mine, theirs in zip(shards(out), shards(at_once), strict=True):
        assert parts(mine) == parts(theirs)
        assert sorted(rows(mine)) == sorted(rows(theirs))


def test_two_evaluations_with_different_metrics_give_the_statistics_of_each(
    first_alone: Path, unscored: Path, tmp_path: Path
) -> None:
    out = copy_of(first_alone, tmp_path)
    other = {"metrics": ["class_sensitivity"]}
    evaluate(str(out), replicates=REPLICATES, **other)
    assert statistics(out) == statistics(evaluated(unscored, tmp_path / "alone", **other))
    evaluate(str(out), replicates=REPLICATES, **FIRST)
    assert statistics(out) == statistics(first_alone)


def test_of_two_evaluations_that_overlap_the_first_fails_and_no_wrong_statistics_are_read(
    unscored: Path, first_alone: Path, tmp_path: Path
) -> None:
    """One seems dead and loses its lock, another begins and ends, and the first one goes on."""
    out = copy_of(unscored, tmp_path)
    other = {"metrics": ["class_sensitivity"]}

    def meanwhile(images: int, before: int) -> None:
        with pytest.raises(OutTakenError, match="is in use by backlight evaluate"):
            evaluate(str(out), replicates=REPLICATES, **other)
        (out / "_lock").unlink()
        evaluate(str(out), replicates=REPLICATES, **other)

    with pytest.raises(SettingsError, match=r"another command evaluates .* at the same time"):
        evaluate(str(out), replicates=REPLICATES, on_start=meanwhile, **FIRST)
    with pytest.raises(SettingsError, match="run `backlight evaluate"):  # the scores have changed
        MapDataset(str(out)).statistics()
    evaluate(str(out), replicates=REPLICATES, **other)
    assert statistics(out) == statistics(evaluated(unscored, tmp_path / "alone", **other))
    assert verify(str(out)) == []
    evaluate(str(out), replicates=REPLICATES, **FIRST)
    assert statistics(out) == statistics(first_alone)


def test_two_evaluations_at_the_same_time_leave_statistics_of_one_of_them(
    unscored: Path, tmp_path: Path
) -> None:
    out = copy_of(unscored, tmp_path)
    code = "from pipeline.cli import main; main()"
    metrics = ("energy", "class_sensitivity")
    commands = [
        ForkedProcess(
            [
                sys.executable,
                "-c",
                code,
                "evaluate",
                "--metrics",
                name,
                "--replicates",
                "10",
                str(out),
            ]
        )
        for name in metrics
    ]
    printed = [process.communicate(timeout=300) for process in commands]
    codes = [process.wait() for process in commands]
    for name, code_, (stdout, stderr) in zip(metrics, codes, printed, strict=True):
        assert "Traceback" not in stderr
        if code_ == 0:
            tables = stdout.partition("all statistics")[0]
            assert name in tables
            assert all(other not in tables for other in metrics if other != name)
        else:
            assert "evaluate" in stderr
    if problems := verify(str(out)):
        assert {p.kind for p in problems} <= {"statistics", "leftover"}
        with pytest.raises(SettingsError, match="backlight evaluate"):
            MapDataset(str(out)).statistics()
    else:
        record = json.loads((out / "_meta" / "evaluation.json").read_text())
        assert set(MapDataset(str(out)).statistics()["metric"].to_pylist()) == {*record["metrics"]}
        assert codes[metrics.index(record["metrics"][0])] == 0
    evaluate(str(out), replicates=REPLICATES, **FIRST)
    assert verify(str(out)) == []


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_a_run_that_lost_a_file_are_written_anew(
    root: Path, tmp_path: Path, name: str
) -> None:
    """Also those that `generate --evaluate` wrote; broken between two of the files."""
    out = tmp_path / "out"
    config = boxed_config(root, evaluate=["class_sensitivity"], limit=2)
    generate(config, str(out))
    before = statistics(out)
    (out / name).unlink()
    assert not generate(config, str(out)).already_complete
    assert statistics(out) == before
    assert generate(config, str(out)).already_complete


@pytest.mark.parametrize("name", ["metrics", "upsample", "combine", "region"])
def test_what_is_taken_away_leaves_the_statistics_and_stays_in_the_scores(
    at_once: Path, tmp_path: Path, name: str
) -> None:
    out = copy_of(at_once, tmp_path)
    break_maps(out)  # nothing may be scored
    before = {path: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    left = {**MORE, name: MORE[name][:1]}
    evaluate(str(out), replicates=REPLICATES, **left)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    column, kept = {
        "metrics": ("metric", {"energy"}),
        "upsample": ("upsampling", {"bilinear", ""}),
        "combine": ("layer", {"middle", "late", "", "sum(uniform)"}),
        "region": ("region", {"boxes", ""}),
    }[name]
    found = MapDataset(str(out)).statistics()
    assert set(found[column].to_pylist()) <= kept
    for text in ("statistics.csv", "statistics.json"):
        assert ("mask_iou" in (out / text).read_text()) == (name != "metrics")
    of_all = pq.read_table(at_once / "statistics" / "statistics.parquet")
    asked = [row for row in of_all.to_pylist() if row[column] in kept]
    assert [str(row) for row in asked] == rows(found)


def test_what_is_not_asked_for_is_neither_compared_nor_told(at_once: Path, tmp_path: Path) -> None:
    out = copy_of(at_once, tmp_path)
    evaluate(str(out), replicates=REPLICATES, metrics=["energy"], region=["boxes"])
    table = MapDataset(str(out)).compare(replicates=REPLICATES)
    assert set(table["metric"].to_pylist()) == {"energy"}
    assert set(table["region"].to_pylist()) == {"boxes"}
    assert set(table["upsampling"].to_pylist()) == {"bilinear"}
    assert {line.partition(":")[0] for line in findings(str(out))} == {"energy"}


def test_a_combination_whose_weights_changed_is_scored_again(
    unscored: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "own.json"
    asked = {**FIRST, "combine": [f"sum:{weights}"]}
    weights.write_text(json.dumps({"middle": 1, "late": 0}))
    out = evaluated(unscored, tmp_path / "out", **asked)
    old = shards(out)
    weights.write_text(json.dumps({"middle": 1, "late": 3}))
    evaluate(str(out), replicates=REPLICATES, **asked)
    expected = shards(evaluated(unscored, tmp_path / "fresh", **asked))
    assert statistics(out) == statistics(tmp_path / "fresh")
    for before, after, new in zip(old, shards(out), expected, strict=True):
        combined = {"layer": "sum(own)"}
        assert rows(after, **combined) == rows(new, **combined) != rows(before, **combined)
        assert sorted(rows(after)) == sorted(rows(new))


def test_without_maps_another_metric_is_refused_and_one_may_be_dropped(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    config = boxed_config(root, evaluate=["energy", "class_sensitivity"], keep="none")
    generate(config, str(out))
    before = statistics(out)
    for more in (
        {"metrics": ["mass_accuracy"]},
        {"region": ["masks"]},
        {"combine": ["sum:linear"]},
    ):
        with pytest.raises(SettingsError, match="--keep none, so it has only the scores") as raised:
            evaluate(str(out), **more)
        assert raised.value.exit_code == 2
        assert statistics(out) == before
    evaluate(str(out), metrics=["energy"])
    assert set(MapDataset(str(out)).statistics()["metric"].to_pylist()) == {"energy"}
    # A shard whose scores are lost meanwhile is made again, and all is as it was.
    next((out / "scores").glob("*00001-of*")).unlink()
    with pytest.raises(SettingsError, match=r"scores of 1 shards are gone.*generate again"):
        evaluate(str(out), metrics=["energy"])
    generate(config, str(out))
    assert statistics(out) == before


@pytest.mark.parametrize("name", ["backlight.run_id", "backlight.schema_version"])
def test_scores_of_another_run_or_version_are_scored_again(
    first_alone: Path, tmp_path: Path, name: str
) -> None:
    out = copy_of(first_alone, tmp_path)
    mark_scores(out)
    path = next((out / "scores").glob("*00000-of*"))
    table = pq.read_table(path)
    other = {**table.schema.metadata, name.encode(): b"another"}
    pq.write_table(table.replace_schema_metadata(other), path)
    evaluate(str(out), replicates=REPLICATES, **FIRST)
    again, kept = shards(out)
    assert rows(again) == rows(shards(first_alone)[0])
    assert rows(kept, ties=-7) == rows(kept) != []


def test_statistics_of_a_shard_that_lacks_a_part_are_refused(
    first_alone: Path, tmp_path: Path
) -> None:
    """Another command may have changed the scores since."""
    out = str(copy_of(first_alone, tmp_path))
    before = statistics(Path(out))
    more = scoring_of(out, metrics=["energy", "mask_iou"])
    with pytest.raises(SettingsError, match=r"shard 0 of .* lacks scores .*evaluate again"):
        write_statistics(out, [0, 1], more, REPLICATES)
    assert statistics(Path(out)) == before


def scoring_of(out: str, metrics: list[str]) -> Scoring:
    return resolve_scoring(read_plan(out), out, metrics, ["bilinear"], [], ["boxes"])


def test_scores_of_a_metric_that_is_no_longer_known_do_no_harm(
    first_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of the user's own, in another session."""
    out = copy_of(first_alone, tmp_path)

    def own(image):
        return [Score("own", key, image.upsampling, float(m.amax()), curve=[1])
                for key, m in zip(image.keys, image.maps, strict=True)]  # fmt: skip

    with monkeypatch.context() as patch:
        entry = Metric(own, headline="mean", roles=(), description="", source="", upsampled=False)
        patch.setitem(METRICS, "own", entry)
        evaluate(str(out), replicates=REPLICATES, metrics=["energy", "own"])
    evaluate(str(out), replicates=REPLICATES, **FIRST)
    assert statistics(out) == statistics(first_alone)
    assert ("own", "", "", "") in parts(shards(out)[0])
