"""The report of a run: its rows are those of the run, and what is missing or cut is said."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from marked_up_run import config_of, make_run

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.report import page_data as page_data_module
from pipeline.report import reported_run, score_distribution
from pipeline.report.findings import findings_of
from pipeline.report.html_report import report
from pipeline.report.page_data import columns_of, page_data
from pipeline.report.reported_run import comparisons, read_runs
from pipeline.report.score_distribution import FEWEST, WIDTH
from pipeline.store import MapDataset
from pipeline.store.clear import clear
from transforms.metrics import METRICS

TEMPLATES = Path(reported_run.__file__).parent / "templates"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def data(run: Path) -> page_data_module.PageData:
    runs = read_runs([str(run)])
    return page_data(runs, comparisons(runs))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


def test_localisation_is_what_found_objects_to_score(run: Path) -> None:
    (reported,) = read_runs([str(run)])
    assert "energy" in reported.localisation
    rows = reported.statistics.filter(pc.not_equal(reported.statistics["metric"], "energy"))
    assert "energy" in reported.scoring["metrics"]
    assert "energy" not in replace(reported, statistics=rows).localisation


def page_of(out: Path) -> tuple[str, dict[str, Any]]:
    """The text of the page, and what its script takes."""
    text = Path(report(str(out), gallery_bytes=0).path).read_text()
    (content,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', text)
    return text, json.loads(content)


def expanded(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            name: column if isinstance(column, list) else np.array(column["names"])[column["at"]]
            for name, column in columns.items()
        }
    )


def test_the_page_has_every_statistic(copied: Path) -> None:
    _, content = page_of(copied)
    stored = MapDataset(str(copied)).statistics().to_pandas()
    names = ["metric", "role", "variant", "method", "layer", "statistic"]
    for rows, of_class in (("statistics", ""), ("classes", "class")):
        shown = expanded(content["rows"][rows])
        own = stored[(stored["class_name"] != "") == bool(of_class)]
        own = own.rename(columns={"class_name": "class"})
        keys = [*names, "class"] if of_class else names
        both = shown.merge(own, on=keys, suffixes=("", "_stored"), validate="one_to_one")
        assert len(both) == len(shown) == len(own) > 0
        for figure in ("value", "low", "high", "n", "undefined", "images"):
            np.testing.assert_allclose(
                both[figure].astype(float), both[f"{figure}_stored"].astype(float), rtol=5e-4
            )


def test_bins_count_all_scores_of_the_base_model(
    run: Path, data: page_data_module.PageData
) -> None:
    scores = MapDataset(str(run)).scores().to_pandas()
    scores = scores[(scores["variant"] == "base") & (scores["layer"] != "")].dropna(subset="value")
    kind = ["metric", "role", "method", "layer"]
    bins = pd.DataFrame(data.bins)
    assert bins.groupby(kind)["count"].sum().to_dict() == scores.groupby(kind).size().to_dict()
    assert bins.groupby(kind)["share"].sum().tolist() == pytest.approx(
        [1] * len(bins[kind].drop_duplicates())
    )
    one = scores[
        (scores["metric"] == "class_sensitivity")
        & (scores["method"] == "normgrad")
        & (scores["layer"] == "late")
    ]["value"]
    edges = np.round(np.arange(-1, 1 + WIDTH, WIDTH), 9)
    expected = {
        round(start, 2): count
        for start, count in zip(edges, np.histogram(one, edges)[0], strict=False)
        if count
    }
    found = bins[
        (bins["metric"] == "class_sensitivity")
        & (bins["method"] == "normgrad")
        & (bins["layer"] == "late")
    ]
    assert {round(s, 2): c for s, c in zip(found["start"], found["count"], strict=True)} == expected


def test_localisation_by_logit_is_the_mean_of_the_scores_of_each_bin(
    run: Path, data: page_data_module.PageData
) -> None:
    dataset = MapDataset(str(run))
    which = {"variant": "base", "method": "normgrad", "layer": "late", "role": "label"}
    scores = dataset.scores(metric="energy", **which).to_pandas()
    maps = dataset.maps(columns=["image_id", "target", "logit"], **which).to_pandas()
    both = scores.merge(maps, on=["image_id", "target"]).dropna(subset="value")
    found = [
        row
        for row in data.by_logit
        if (row["metric"], row["method"], row["layer"]) == ("energy", "normgrad", "late")
    ]
    assert len(found) == len(maps) // FEWEST > 1
    assert sum(row["n"] for row in found) == len(both)
    for row in found:
        own = both[both["logit"].between(row["from"], row["to"])]
        assert row["n"] == len(own)
        assert row["value"] == pytest.approx(own["value"].mean())
        assert row["logit"] == pytest.approx(own["logit"].mean())
        assert row["low"] < row["value"] < row["high"]


def test_findings_say_every_verdict_of_the_pairs_once(run: Path) -> None:
    runs = read_runs([str(run)])
    (compared,) = [each for each in comparisons(runs) if each.by == "variant"]
    assert compared.found is not None
    rows = [r for r in compared.found.pairs.to_pylist() if METRICS[r["metric"]].better]

    def side(row: dict[str, Any]) -> str:
        if row["n"] == 0:
            return "no defined score in common"
        if not row["p_holm"] < 0.05:
            return "cannot be told apart"
        return "higher" if row["difference"] > 0 else "lower"

    sides = Counter(map(side, rows))
    said: Counter[str] = Counter()
    for finding in findings_of(compared, runs).first:
        for part in finding.parts:
            name, _, places = part.partition(": ")
            for place in places.split(", "):
                said[name] += 2 if "all 2 layers" in place or " and " in place else 1
    assert said == sides
    assert len(sides) > 1


def test_a_run_that_is_not_evaluated_has_a_page_that_says_so(copied: Path) -> None:
    for name in ("scores", "statistics", "statistics.csv", "statistics.json"):
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copied / "_meta" / "evaluation.json").unlink()
    text, content = page_of(copied)
    assert f"run `backlight evaluate {copied}` first" in text.replace("&gt;", ">")
    assert content == {"rows": {}, "plots": [], "tables": []}
    assert "There is nothing to plot" in text


def test_an_evaluation_that_found_nothing_to_score_is_said(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("nothing") / "out"
    settings = {"layers": ["late"], "roles": ["top"], "variants": ["base"], "limit": 2}
    config = config_of(run.parent, **settings, evaluate=None)
    generate(config, str(out))
    evaluate(str(out), metrics=["virtual_identity"])
    text, content = page_of(out)
    assert "Not scored: virtual_identity found no maps to score." in text
    assert content == {"rows": {}, "plots": [], "tables": []}


def test_what_a_run_lacks_is_said_where_its_plot_would_be(
    run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("lacking") / "out"
    config = config_of(
        run.parent,
        methods=["normgrad"],
        layers=["late"],
        roles=["label"],
        variants=["base"],
        evaluate=["pointing_game"],
        keep="none",
        limit=6,
    )
    generate(config, str(out))
    text, content = page_of(out)
    assert {plot["name"] for plot in content["plots"]} == {
        *("localisation-by-depth", "differences", "classes", "distribution")
    }
    assert "0 were kept" in text
    for said in (
        "Class sensitivity was not evaluated",
        "This needs class sensitivity and a metric of localisation",
        "The run has no cascade",
        "and not the maps: they were made with --keep none",
    ):
        assert said in text


def test_what_is_cut_or_sampled_is_said_with_a_count(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_distribution, "MOST_IMAGES", 10)
    monkeypatch.setattr(page_data_module, "MOST_IMAGES", 10)
    monkeypatch.setattr(page_data_module, "MOST_ROWS", 100)
    monkeypatch.setattr(reported_run, "MOST_MAPS", 50)
    runs = read_runs([str(run)])
    compared = comparisons(runs)
    data = page_data(runs, compared)
    assert len(data.classes) <= 100
    assert "statistics of 4 classes; here are the 1 with most scores" in str(
        data.left_out["classes"]
    )
    assert "here are the 100 headlines" in str(data.left_out["statistics"])
    assert "read from 8 of 24 images" in str(data.left_out["bins"])
    assert "read from 8 of 24 images" in str(data.left_out["by_logit"])
    assert sum(row["count"] for row in data.bins if row["metric"] == "class_sensitivity") <= 8 * 6
    maps = f"{runs[0].count('maps'):,} maps are more than a report compares"
    assert all(each.missing.startswith(maps) for each in compared)


def test_several_runs_are_side_by_side_and_compared(copied: Path, run: Path) -> None:
    runs = read_runs([str(run), str(copied)])
    compared = comparisons(runs)
    data = page_data(runs, compared)
    assert {row["run"] for row in data.statistics} == {run.name, "copied"}
    (by_run,) = [each for each in compared if each.by == "run"]
    assert by_run.found is not None
    differences = by_run.found.pairs["difference"].to_numpy()
    assert set(differences[np.isfinite(differences)]) == {0}  # they are the same run
    titles = [findings_of(each, runs).title for each in compared]
    assert len(set(titles)) == len(titles)


@pytest.mark.slow
def test_each_run_has_a_gallery_and_together_they_are_as_small_as_asked(
    run: Path, copied: Path, tmp_path: Path
) -> None:
    limit = 150_000
    path = str(tmp_path / "page.html")
    written = report(str(run), [str(copied)], output=path, gallery_bytes=limit)
    galleries = re.findall(r'<section class="gallery".*?</section>', Path(path).read_text(), re.S)
    assert len(galleries) == 2
    assert limit / 4 < sum(len(each.encode()) for each in galleries) <= limit
    assert sum(note.startswith("gallery: ") for note in written.notes) == 2


def test_columns_keep_every_row() -> None:
    rows = [
        {"name": "b", "value": 0.123456, "n": 123456, "is": True},
        {"name": "a", "value": float("nan"), "n": 0, "is": False},
        {"name": "b", "value": -1.0, "n": 7, "is": True},
    ]
    assert columns_of(rows) == {
        "name": {"names": ["b", "a"], "at": [0, 1, 0]},
        "value": [0.1235, None, -1.0],
        "n": [123456, 0, 7],
        "is": [True, False, True],
    }
    assert columns_of([]) == {}


@pytest.mark.slow
def test_the_command_writes_where_it_is_told(run: Path, copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "page.html"
    done = CliRunner().invoke(
        backlight, ["report", str(run), "--gallery-size", "0", "--output", str(path)]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{path} (")
    assert not (run / "report.html").exists()
    assert 'class="gallery"' not in path.read_text()
    done = CliRunner().invoke(backlight, ["report", str(copied), "--gallery-size", "0", "--json"])
    assert json.loads(done.stdout)["bytes"] == (copied / "report.html").stat().st_size
    assert clear(str(copied))
    assert not (copied / "report.html").exists()


def test_what_is_no_output_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(SettingsError, match="holds no maps"):
        report(str(tmp_path))
    with pytest.raises(SettingsError, match="given twice"):
        report(str(run), [str(run)])


VISION = {
    "all colours": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
"""What people see of linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1."""


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_series_are_told_apart_in_every_colour_vision(theme: str, vision: str) -> None:
    css = (TEMPLATES / "page.css").read_text()
    blocks = re.findall(r"color-scheme: (\w+);(.*?)\}", css, re.DOTALL)
    colours = [re.findall(r"--series-\d: (#\w+)", text) for name, text in blocks if name == theme]
    (paper,) = {re.search(r"--paper: (#\w+)", text)[1] for name, text in blocks if name == theme}
    assert len({tuple(each) for each in colours}) == 1
    seen = [_linear(each) for each in (*colours[0], paper)]
    light = [0.05 + rgb @ [0.2126, 0.7152, 0.0722] for rgb in seen]
    contrasts = [max(one, light[-1]) / min(one, light[-1]) for one in light[:-1]]
    assert min(contrasts) >= 3  # WCAG 2.2, 1.4.11
    lab = [_lab(np.clip(np.array(VISION[vision]) @ rgb, 0, 1)) for rgb in seen[:-1]]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i]]
    assert min(distances) > 20  # a difference of 2.3 can just be seen


def _linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
