"""The plan's estimate beside a real run, and its FLOPs beside a count by hand."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import click
import pytest
from test_cli import call, flags
from tiny_network import draw_photo, draw_set, run_config
from torch import Tensor, nn

from pipeline.cli import backlight
from pipeline.errors import BacklightError, SettingsError
from pipeline.estimate import estimation
from pipeline.estimate.costs import GPU_SHARE, HOURS, SAMPLE
from pipeline.estimate.estimation import estimate
from pipeline.estimate.flops import Flops, count_flops
from pipeline.estimate.gpus import GPUS, parse_prices
from pipeline.estimate.later_scoring import later_scoring
from pipeline.estimate.measurement import MeasuredBatches, Spent, measure
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.planning import make_plan
from pipeline.report.amounts import in_bytes, in_time
from pipeline.workers.execution import Execution
from transforms.engine import Explainer
from transforms.layout import ChannelsFirst
from transforms.variants import parse_variants

pytestmark = pytest.mark.usefixtures("without_beam")

BOTH = ["parquet", "webdataset"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several shapes, 3 to 5 in a folder, and fewer in the last shard."""
    return draw_set(tmp_path_factory.mktemp("costs") / "set", 23)


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def written(out: Path) -> dict[str, int]:
    """Bytes by folder."""
    return {
        folder.name: folder_size(folder)
        for folder in out.iterdir()
        if folder.name in ("maps", "tars", "images", "errors")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "changes"),
    [
        (8, {"format": BOTH}),
        (8, {"map_dtype": "float32", "preprocess": "shortest_side", "format": ["webdataset"]}),
        (16, {"variants": ["base", "meta"], "roles": ["top", "least"], "shard_size": 5}),
    ],
)
def test_maps_and_bytes_are_those_of_the_run(root, tmp_path, sample, changes):
    config, out = run_config(root, input_size=64, **changes), tmp_path / "out"
    costs = estimate(config, str(out), sample=sample)
    assert not out.exists()
    summary = generate(config, str(out))
    assert (costs.maps, costs.images) == (summary.maps, summary.images)
    assert (costs.run_id, costs.shards) == (summary.plan.run_id, summary.plan.shards)
    found = written(out)
    maps = f"parquet {config.map_dtype}"
    named = {"maps": maps, "tars": "webdataset", "images": "images", "errors": "errors"}
    assert set(costs.written) == {named[folder] for folder in found}
    for folder, size in found.items():
        assert costs.bytes[named[folder]] == pytest.approx(size, rel=0.05), folder
    assert costs.bytes["parquet float32"] > costs.bytes["parquet float16"]


@pytest.mark.parametrize("keep", ["none", "sample:9"])
def test_of_a_run_that_scores_its_maps_only_what_it_keeps_counts(root, tmp_path, keep):
    metrics = ["class_sensitivity", "constant_map"]
    config = run_config(root, input_size=64, evaluate=metrics, keep=keep, shard_size=12)
    costs, out = estimate(config, str(tmp_path / "out"), sample=12), tmp_path / "out"
    summary = generate(config, str(out))
    assert (costs.maps, costs.kept_maps) == (summary.maps, summary.kept_maps)
    found = {**written(out), "scores": folder_size(out / "scores")}
    named = {"maps": "parquet float16"}
    assert set(costs.written) == {named.get(folder, folder) for folder in found}
    for folder, size in found.items():
        assert costs.bytes[named.get(folder, folder)] == pytest.approx(size, rel=0.05), folder


class TwoConvolutions(nn.Module):
    """For a count by hand: every layer has a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 6, 5, padding=2)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).relu().mean((2, 3)))


FIRST = 2 * (16 * 24) * 4 * (3 * 3 * 3)  # input 32 × 48, output 16 × 24
SECOND = 2 * (16 * 24) * 6 * (4 * 5 * 5)
HEAD = 2 * 6 * 10
FORWARD = FIRST + SECOND + HEAD


@pytest.mark.parametrize(
    ("layers", "methods", "once", "each"),
    [
        # Back to the layer's output, and no further; nothing for the frozen weights.
        (["second"], ["gradient"], FORWARD, HEAD),
        (["first"], ["gradient", "normgrad", "grad_cam"], FORWARD, HEAD + SECOND),
        (["input", "second"], ["gradient"], FORWARD, HEAD + SECOND + FIRST),
        (["first"], ["gradient", "guided_backprop"], FORWARD, 2 * (HEAD + SECOND)),
    ],
)
def test_flops_are_those_counted_by_hand(layers, methods, once, each):
    layouts = dict.fromkeys(layers, ChannelsFirst())
    explainer = Explainer(TwoConvolutions(), layers, methods, layouts=layouts)
    assert count_flops(explainer, parse_variants(["base"]), (32, 48)) == Flops((32, 48), once, each)


def test_flops_of_a_meta_step_are_a_pass_for_the_weights_and_one_for_each_rate():
    layouts = {"first": ChannelsFirst()}
    explainer = Explainer(TwoConvolutions(), ["first"], ["gradient"], layouts=layouts)
    found = count_flops(explainer, parse_variants(["base", "meta"]), (32, 48))
    backward = HEAD + SECOND
    # To the weights: of every layer's, and to the inputs of all but the first.
    step = (HEAD + SECOND + FIRST) + (HEAD + SECOND)
    assert found == Flops((32, 48), FORWARD + FORWARD, backward + step + 2 * (FORWARD + backward))


def test_flops_of_a_run_are_those_of_its_photos(root, tmp_path):
    """One class per photo, one shape: 23 times what is counted for one."""
    config = run_config(root, roles=["top"], layers=["late"], methods=["gradient"])
    costs = estimate(config, str(tmp_path / "out"), sample=2)
    head, late = 2 * 8 * 5, 2 * 8 * 8 * (8 * 8 * 9)
    middle, early = 2 * 8 * 8 * (8 * 6 * 9), 2 * 16 * 16 * (6 * 3 * 9)
    assert costs.flops == pytest.approx(23 * (2 * head + late + middle + early))


def test_a_run_that_is_partly_done_costs_what_is_left(photos, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    config = run_config(photos, format=BOTH)
    whole = estimate(config, str(tmp_path / "new"), sample=2)
    (out / "_meta" / "shards" / "00003.json").unlink()
    (out / "_SUCCESS").unlink()
    left = estimate(config, str(out), sample=2)
    assert (left.shards, left.shards_left) == (4, 1)
    assert (left.images, left.images_left, left.maps_left) == (7, 1, 27)
    assert left.flops == pytest.approx(whole.flops / 7)
    assert left.bytes.keys() == whole.bytes.keys()
    nothing = estimate(config, str(finished), sample=1)
    assert (nothing.shards_left, nothing.seconds, nothing.flops) == (0, 0, 0)
    assert [row.machines for row in nothing.gpus] == [0] * len(GPUS)


def test_nothing_is_written_to_out(photos, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "out", copy_function=shutil.copy2))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    estimate(run_config(photos, format=BOTH), str(out), sample=1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is measured takes made-up times, whatever the number of photos."""

    def measured(*arguments: object) -> MeasuredBatches:
        return replace(
            measure(*arguments),
            explaining=Spent(seconds=12.0, cpu_seconds=13.0, own_cpu_seconds=10.8),
            engine_seconds=10.0,
            scoring=Spent(seconds=7.0, cpu_seconds=14.0, own_cpu_seconds=14.0),
            writing=Spent(seconds=1.0, cpu_seconds=2.0, own_cpu_seconds=2.0),
        )

    monkeypatch.setattr(estimation, "measure", measured)


SCORED = {"evaluate": ["class_sensitivity", "energy"]}


@pytest.mark.parametrize(
    ("changes", "seconds", "cpu_seconds", "core_seconds"),
    [
        # CPU time: 9 of the engine, 13 - 9 of decoding, 2 of writing, and 14 of scoring.
        ({}, 13.0, 15.0, 6.0),
        (SCORED, 20.0, 29.0, 20.0),
    ],
)
def test_scoring_is_a_part_of_the_run_only_where_the_run_scores(
    made_up, photos, tmp_path, changes, seconds, cpu_seconds, core_seconds
):
    """All seven photos have one shape and are measured, so nothing is scaled."""
    config = run_config(photos, **changes)
    costs = estimate(config, str(tmp_path / "out"), sample=7, cores_per_gpu=3, gpu_share=1e-9)
    assert costs.measured.images == 7
    assert costs.scores_in_run is bool(changes)
    assert costs.score_seconds == pytest.approx(14.0)
    assert costs.rest_seconds == pytest.approx(6.0)
    assert costs.engine_seconds == pytest.approx(10.0)
    assert (costs.seconds, costs.cpu_seconds) == pytest.approx((seconds, cpu_seconds))
    assert (costs.measured.seconds, costs.measured.cpu_seconds) == pytest.approx(
        (seconds, 15.0 if not changes else 29.0)
    )
    assert costs.core_images_per_second == pytest.approx(7 * 3 / core_seconds)
    (t4,) = (row for row in costs.gpus if row.gpu == "T4")
    passes = costs.flops / (8.1e12 * 1e-9)
    assert t4.hours == pytest.approx(max(passes, core_seconds / 3) / 3600)
    assert t4.by_turns_hours == pytest.approx((passes + core_seconds) / 3600)


def test_the_metrics_of_scoring_are_those_of_evaluate(finished, photos, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    config = run_config(photos, format=BOTH)
    costs = estimate(config, str(out), sample=7)
    evaluate(str(out), replicates=2)
    written = json.loads((out / "_meta" / "evaluation.json").read_text())
    assert list(costs.metrics) == written["metrics"]
    assert (costs.scores_in_run, costs.scoring_refused) == (False, "")
    size = folder_size(out / "scores")
    assert costs.bytes["scores"] == pytest.approx(size, rel=0.05)
    assert "scores" not in costs.written


def test_what_is_left_to_score_is_what_has_no_scores(made_up, finished, photos, tmp_path):
    """Four shards, of 2, 2, 2 and 1 photos."""
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    later, in_run = run_config(photos, format=BOTH), run_config(photos, format=BOTH, **SCORED)
    costs = estimate(later, str(out), sample=7)
    assert (costs.images_left, costs.seconds, costs.cpu_seconds) == (0, 0, 0)
    assert costs.score_seconds == pytest.approx(14.0)
    costs = estimate(in_run, str(out), sample=7)
    assert (costs.images_left, costs.shards_left) == (0, 0)
    assert (costs.seconds, costs.cpu_seconds) == pytest.approx((7.0, 14.0))
    assert costs.longest_shard_seconds == pytest.approx(2.0)
    assert {(row.cores, row.waits) for row in costs.gpus} == {(0, 0.0)}
    evaluate(str(out), replicates=2)
    assert estimate(later, str(out), sample=7).score_seconds == 0
    next((out / "scores").glob("*-00003-*")).unlink()
    costs = estimate(later, str(out), sample=7)
    assert costs.score_seconds == pytest.approx(2.0)


def test_maps_that_were_not_kept_are_made_again_where_their_scores_are_gone(
    made_up, photos, tmp_path
):
    config, out = run_config(photos, keep="none", **SCORED), tmp_path / "out"
    generate(config, str(out))
    assert estimate(config, str(out), sample=7).seconds == 0
    next((out / "scores").glob("*-00003-*")).unlink()
    costs = estimate(config, str(out), sample=7)
    assert (costs.images_left, costs.shards_left) == (1, 1)
    assert costs.score_seconds == pytest.approx(2.0)
    assert costs.seconds == pytest.approx((12 + 7) / 7)  # nothing is kept, so nothing is written


def test_weights_that_come_from_the_scored_set_cost_what_others_do(photos, tmp_path):
    plan, _ = make_plan(run_config(photos, combine=["sum:spread", "sum:uniform"]))
    scoring = later_scoring(plan, str(tmp_path))
    assert [c.name for c in scoring.combinations] == ["sum(uniform)", "sum(spread)"]
    assert scoring.combinations[0].weights == scoring.combinations[1].weights


def test_settings_that_evaluate_would_refuse_do_not_stop_the_plan(photos, tmp_path):
    costs = estimate(
        run_config(photos, combine=["sum:no_such.json"]), str(tmp_path / "out"), sample=1
    )
    assert "unknown weights 'no_such.json'" in costs.scoring_refused
    assert (costs.metrics, costs.score_seconds) == ((), 0)
    assert costs.seconds > 0


def test_the_cores_per_gpu_are_by_default_those_of_a_worker(monkeypatch, photos, tmp_path):
    monkeypatch.setattr(estimation, "_cores", lambda: 6)
    config, out = run_config(photos), str(tmp_path / "out")
    assert estimate(config, out, sample=1).cores_per_gpu == 6
    assert estimate(config, out, Execution(workers=4), sample=1).cores_per_gpu == 1.5
    assert estimate(config, out, sample=1, cores_per_gpu=12).cores_per_gpu == 12


def test_time_is_counted_in_all_threads_and_in_this_one():
    spent = Spent()
    with spent.adding(), ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: sum(i * i for i in range(2_000_000))).result()
    once = replace(spent)
    assert spent.own_cpu_seconds < spent.cpu_seconds / 2
    with spent.adding():
        sum(i * i for i in range(100_000))
    assert spent.seconds > once.seconds
    assert spent.own_cpu_seconds > once.own_cpu_seconds


def test_workers_share_the_shards(root, tmp_path):
    """Five shards by two workers: one of them does three."""
    config = run_config(root, shard_size=5)
    costs = estimate(config, str(tmp_path / "out"), Execution(workers=2), sample=2)
    assert (costs.shards, costs.workers) == (5, 2)
    assert costs.elapsed_seconds >= 3 / 5 * costs.seconds * 0.999
    assert costs.shard_seconds == pytest.approx(costs.seconds / 5)
    assert costs.longest_shard_seconds >= costs.shard_seconds


def test_bad_photos_of_the_sample_are_counted_and_all_bad_is_said(tmp_path):
    root = draw_set(tmp_path / "set", 8)
    paths = sorted(root.rglob("*.png"))
    paths[2].write_bytes(b"")
    costs = estimate(run_config(root), str(tmp_path / "out"))
    assert (costs.measured.images, costs.measured.errors) == (7, 1)
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(BacklightError, match=r"none of the 8 photos .* can be read; the first: "):
        estimate(run_config(root), str(tmp_path / "out"))


def test_a_sample_is_spread_over_the_set(tmp_path):
    """Every fifth of 40 photos of one shape is bad: they are the eight that are measured."""
    root = tmp_path / "set"
    for i in range(40):
        draw_photo(root / f"photo{i:02}.png", seed=i, size=(40, 40))
    for i in range(0, 40, 5):
        (root / f"photo{i:02}.png").write_bytes(b"")
    config = run_config(root, roles=["top"], shard_size=40, batch_size=8)
    with pytest.raises(BacklightError, match=r"none of the 8 photos .* can be read"):
        estimate(config, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 0}, "--sample must be at least 1"),
        ({"hours": 0}, "--hours must be positive"),
        ({"gpu_share": 0}, "--gpu-share is a share above 0"),
        ({"gpu_share": 1.5}, "--gpu-share is a share above 0"),
        ({"cores_per_gpu": 0}, "--cores-per-gpu must be positive, not 0"),
        ({"cores_per_gpu": float("inf")}, "--cores-per-gpu must be positive, not inf"),
        ({"prices": {"K80": 1.0}}, "unknown GPU 'K80'; valid: T4, L4"),
        ({"prices": {"T4": -1.0}}, "--price T4=-1: give the price of an hour, at least 0"),
        ({"prices": {"T4": float("nan")}}, "--price T4=nan: give the price of an hour"),
        ({"execution": Execution(gpus="none")}, "--gpus 'none': valid: all"),
    ],
)
def test_wrong_numbers_are_refused(photos, tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        estimate(run_config(photos), str(tmp_path / "out"), **options)


@pytest.mark.parametrize("text", ["T4", "T4=", "T4=cheap"])
def test_a_price_is_a_number(text):
    with pytest.raises(SettingsError, match=r"give the price of an hour, such as T4=1\.20"):
        parse_prices([text])


def test_settings_are_refused_as_by_generate(photos, finished, tmp_path):
    with pytest.raises(SettingsError, match="unknown method 'normgrat'"):
        estimate(run_config(photos, methods=["normgrat"]), str(tmp_path / "out"))
    with pytest.raises(SettingsError, match=r"differs in .*batch_size: 2 there, 3 now"):
        estimate(run_config(photos, format=BOTH, batch_size=3), str(finished))


def test_the_command_prints_tables_or_json(photos, tmp_path):
    result = call("plan", *flags(photos), tmp_path / "out", "--price", "T4=0.50", "--sample", 2)
    assert result.exit_code == 0
    for text in ("189", "parquet float16", "webdataset", "H200", "for 24 h", "datasheet"):
        assert text in result.stdout
    phases = [line for line in result.stderr.splitlines() if line.startswith("plan: ")]
    assert phases[0] == "plan: loading PyTorch and Beam"
    assert phases.index("plan: reading the set") < phases.index("plan: measuring")
    printed = call(
        "plan", *flags(photos), tmp_path / "out", "--json", "--workers", 2, "--sample", 1
    )
    found = json.loads(printed.stdout)
    assert printed.stderr == ""
    assert (found["images"], found["maps"], found["shards"], found["workers"]) == (7, 189, 4, 2)
    assert {row["gpu"] for row in found["gpus"]} == set(GPUS)
    assert found["scores_in_run"] is False
    assert "pointing_game" in found["metrics"]
    assert found["score_seconds"] > 0
    for row in found["gpus"]:
        assert 0 <= row["waits"] < 1
        assert row["images_per_second"] > 0
        assert row["cores"] >= 1
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_scoring_is(photos, tmp_path):
    some = ["--sample", 1, "--cores-per-gpu", 0.25, tmp_path / "out"]
    later = call("plan", *flags(photos), *some).stdout
    assert "scoring afterwards, by backlight evaluate" in later
    assert "Too few cores: 0.25 cores decode, encode and write" in later
    in_run = call("plan", *flags(photos, **SCORED), *some).stdout
    assert "scoring, in CPU time" in in_run
    assert "afterwards" not in in_run
    assert max(map(len, (later + in_run).splitlines())) <= 100


def test_the_defaults_of_the_command_are_those_of_the_estimate():
    """Written there again, so that help does not wait for torch."""
    command = backlight.get_command(click.Context(backlight), "plan")
    default = {option.name: option.default for option in command.params}
    assert [default[name] for name in ("sample", "hours", "gpu_share")] == [
        *(SAMPLE, HOURS, GPU_SHARE)
    ]


def test_amounts_as_a_person_reads_them():
    assert [in_bytes(n) for n in (7, 154e6, 2.5e12)] == ["7 B", "154 MB", "2.5 TB"]
    assert [in_time(s) for s in (0.12, 42, 210, 25560)] == ["0.12 s", "42 s", "3.5 min", "7.1 h"]
