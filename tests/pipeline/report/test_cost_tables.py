"""The tables of a plan: what they say of scoring and of GPUs that wait, and their width."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.estimate.costs import Costs, Measurement
from pipeline.estimate.gpu_costs import gpu_costs
from pipeline.estimate.gpus import GPUS
from pipeline.report.cost_tables import cost_tables

IMAGES = 1_281_167


def costs(cores: float = 12, **changes: object) -> Costs:
    """ImageNet by the paper's grid: 527 GFLOP and 3 core seconds per photo."""
    flops, rest, scoring = 527e9 * IMAGES, 0.5 * IMAGES, 2.5 * IMAGES
    made = Costs(
        run_id="0123456789abcdef",
        images=IMAGES,
        maps=405 * IMAGES,
        shards=10_010,
        images_left=IMAGES,
        maps_left=405 * IMAGES,
        shards_left=10_010,
        kept_maps=405 * IMAGES,
        bytes={"images": 400, "errors": 3, "scores": 11_000, "parquet float16": 3_040_000},
        written=["images", "errors", "scores", "parquet float16"],
        flops=flops,
        seconds=15.0 * IMAGES,
        cpu_seconds=15.0 * IMAGES,
        engine_seconds=12.0 * IMAGES,
        rest_seconds=rest,
        score_seconds=scoring,
        scores_in_run=True,
        metrics=["class_sensitivity", "pointing_game", "energy", "mass_accuracy", "max_box_acc_v2"],
        scoring_refused="",
        start_seconds=2.0,
        workers=2,
        elapsed_seconds=7.5 * IMAGES,
        shard_seconds=15.0 * 128,
        longest_shard_seconds=16.0 * 128,
        measured=Measurement(8, 1, 120.0, 119.0, "cpu", on_gpu=False),
        gpu_share=0.25,
        cores_per_gpu=cores,
        core_images_per_second=cores / 3,
        hours=24.0,
        gpus=[
            gpu_costs(
                name,
                images=IMAGES,
                flops=flops,
                cpu_seconds=rest + scoring,
                share=0.25,
                cores=cores,
                hours=24.0,
                price=1234.56,
            )
            for name in GPUS
        ],
    )
    return replace(made, **changes)


def printed(shown: Costs, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in cost_tables(shown):
        console.print(table)
    return console.file.getvalue()


def words(shown: Costs) -> str:
    """What is printed with the lines run together."""
    return " ".join(printed(shown).split())


def test_too_few_cores_are_said_with_how_many_gpus_wait_and_the_cores_that_would_do():
    text = words(costs())
    assert "Too few cores: 12 cores decode, encode, write and score 4 photos per second, so" in text
    assert "GPUs wait for them" in text
    (row,) = [line for line in printed(costs()).splitlines() if line.startswith(" H100-SXM")][:1]
    assert row.split()[1:5] == ["31.8", "96", "87", "%"]


def test_where_the_cores_keep_up_nothing_warns():
    text = words(costs(cores=96))
    assert "Too few cores" not in text


def test_the_gpus_that_wait_are_counted():
    shown = costs(cores=60)
    waiting = sum(row.waits > 0 for row in shown.gpus)
    assert 0 < waiting < len(GPUS)  # a T4 takes 3.84 photos per second; 60 cores serve 20
    assert f"so {waiting} of these GPUs wait for them" in words(shown)


def test_a_share_of_an_hour_that_is_too_small_for_a_plan_is_below_a_hundredth():
    small = [replace(row, hours=0.0008, by_turns_hours=0.02, price=0.0006) for row in costs().gpus]
    (line, *_) = [line for line in printed(costs(gpus=small)).splitlines() if "H200" in line]
    assert line.count("< 0.01") == 2
    assert "0.02" in line


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({}, ["scoring, in CPU time 890 h", "that is not measured here"], ["afterwards"]),
        (
            {"measured": Measurement(8, 0, 9.0, 9.0, "cuda:0, NVIDIA L4", on_gpu=True)},
            ["Scoring ran on the GPU here"],
            ["not measured here"],
        ),
        (
            {"scores_in_run": False},
            [
                "scoring afterwards, by backlight evaluate, in CPU time 890 h",
                "not in the time of the run: by class_sensitivity, pointing_game",
                "Scoring is not included",
            ],
            ["write and score 4", "scoring, in CPU time"],
        ),
        (
            {"scores_in_run": False, "metrics": (), "scoring_refused": "no weights.json"},
            ["backlight evaluate would refuse these settings: no weights.json"],
            ["scoring afterwards, by"],
        ),
    ],
)
def test_scoring_is_a_line_of_its_own_and_what_is_assumed_is_said(changes, expected, absent):
    text = words(costs(**changes))
    assert [part for part in expected if part not in text] == []
    assert [part for part in absent if part in text] == []


@pytest.mark.parametrize("width", [100, 160])
@pytest.mark.parametrize("cores", [0.5, 12])
@pytest.mark.parametrize("scores_in_run", [True, False])
def test_no_table_is_wider_than_a_hundred_columns(width, cores, scores_in_run):
    text = printed(costs(cores, scores_in_run=scores_in_run), width)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_the_figures_of_a_tiny_network_fit_too():
    shown = costs()
    tiny = gpu_costs(
        "H100-SXM", images=10**9, flops=1e9, cpu_seconds=1e9, share=1.0, cores=1, hours=1e-3
    )
    text = printed(replace(shown, gpus=[tiny], core_images_per_second=1e8), 160)
    assert max(map(len, text.splitlines())) <= 100
