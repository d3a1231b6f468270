"""The tables of statistics: both ends of an interval, few images, order, and width."""

import io
import math

import pytest
from rich.console import Console

from pipeline.report.statistics_tables import statistics_tables
from transforms.map_key import MapKey
from transforms.statistics.statistic import NO_DEPTH, Statistic


def row(
    method: str = "normgrad",
    layer: str = "late",
    depth: int = 0,
    *,
    low: float = 0.36,
    high: float = 0.5,
    images: int = 40,
    variant: str = "base",
    region: str = "",
    value: float = 0.43,
) -> Statistic:
    return Statistic(
        metric="pointing_game",
        key=MapKey(variant, method, layer, "label", -1, ""),
        upsampling="bilinear",
        subset="all",
        statistic="class_mean",
        value=value,
        low=low,
        high=high,
        n=images,
        undefined=0,
        images=images,
        std=0.5,
        tied=0.0,
        region=region,
        depth=depth,
    )


def printed(rows: list[Statistic], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in statistics_tables(rows, width):
        console.print(table)
    return console.file.getvalue()


def test_a_cell_has_both_ends_of_its_interval() -> None:
    text = printed([row(), row("gradient", low=-0.064, high=1.0, value=0.0)])
    assert "0.43 [.36, .50]" in text
    assert "0.00 [-.06, 1.00]" in text
    assert "±" not in text
    assert "too few" not in text


def test_too_few_images_are_marked_and_explained() -> None:
    rows = [row(low=math.nan, high=math.nan, images=3), row("gradient")]
    text = " ".join(printed(rows).split())
    assert "0.43 (n=3)" in text
    assert "[95 % interval]" in text
    assert "too few for an interval" in text


def test_where_all_cells_have_the_same_few_images_this_is_said_once() -> None:
    rows = [row(name, low=math.nan, high=math.nan, images=3) for name in ("a", "b")]
    text = " ".join(printed(rows).split())
    assert "n=3" not in text
    assert "95 % interval" not in text
    assert "Too few images for an interval: 3." in text


def test_layers_are_in_order_of_depth_and_methods_in_the_order_given() -> None:
    rows = [
        row("normgrad", "z", 0),
        row("normgrad", "a", 1),
        row("normgrad", "sum(uniform)", 2),
        row("gradient", "a", 1),
        row("gradient", "z", 0),
        row("center", "", NO_DEPTH),
    ]
    lines = printed(rows).splitlines()
    (heading,) = (line.split() for line in lines if "method" in line)
    assert heading == ["method", "z", "a", "sum(uniform)"]
    first = [line.split()[0] for line in lines if "[.36" in line]
    assert first == ["normgrad", "gradient", "center"]
    (center,) = (line for line in lines if "center" in line)
    assert center.count("[.36, .50]") == 3  # one value for every layer
    (gradient,) = (line for line in lines if "gradient" in line)
    assert gradient.split()[-1] == "–"  # no combined map


@pytest.mark.parametrize(("layers", "is_stacked"), [(4, False), (5, True)])
def test_a_table_that_is_too_wide_has_its_intervals_below(layers: int, is_stacked: bool) -> None:
    rows = [row("normgrad_selective", f"features.{i}", i, low=-0.3) for i in range(layers)]
    text = printed(rows)
    assert ("0.43 [-.30, .50]" not in text) == is_stacked
    assert text.count("0.43") == text.count("[-.30, .50]") == layers
    assert "…" not in text.replace("n=…", "")
    assert max(map(len, text.splitlines())) <= 100


def test_regions_have_tables_of_their_own() -> None:
    text = printed([row(region="boxes"), row(region="masks", value=0.2)])
    assert "by boxes" in " ".join(text.split())
    assert "by masks" in " ".join(text.split())
