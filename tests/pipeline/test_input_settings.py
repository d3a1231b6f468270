"""The network's input: what the user sets, else the weights' own; and the models it is made for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_network import run_config

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.input_settings import with_input_settings
from pipeline.model_checks import model_for_photos
from pipeline.notes import Notes
from pipeline.plan import preparation_of, read_plan
from pipeline.planning import make_plan
from pipeline.preprocess import InputRules
from pipeline.store import MapDataset

RULES = InputRules("B7", 600, 640, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def asked(source: str = "imagefolder", model: str = "net:net", **settings: Any) -> RunConfig:
    return RunConfig(source=source, root="photos", model=model, **settings)


def test_what_is_not_set_is_the_weights_own() -> None:
    found = preparation_of(with_input_settings(asked(), RULES))
    assert str(found) == (
        "center_crop to 600 px, shortest side to 640 px before, bicubic, "
        "RGB less 0.1, 0.2, 0.3 by 0.4, 0.5, 0.6"
    )
    whole = with_input_settings(asked("voc"), RULES)
    assert (whole.preprocess, whole.input_size, whole.resize_size) == ("shortest_side", 600, None)
    assert (whole.interpolation, whole.mean, whole.std) == ("bicubic", RULES.mean, RULES.std)


def test_what_is_set_wins_and_the_resize_stays_in_proportion() -> None:
    given = asked(input_size=300, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    found = with_input_settings(given, RULES)
    assert (found.input_size, found.resize_size, found.interpolation) == (300, 320, "bilinear")
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (1, 1, 1))
    assert with_input_settings(asked(resize_size=700), RULES).resize_size == 700


def test_the_mean_and_std_of_the_weights_are_turned_into_the_channel_order() -> None:
    found = with_input_settings(asked(channel_order="bgr", std=(1, 2, 3)), RULES)
    assert (found.mean, found.std) == ((0.3, 0.2, 0.1), (1, 2, 3))


def test_photos_are_stretched_where_the_weights_say_so() -> None:
    rules = replace(RULES, preprocess="stretch")
    assert with_input_settings(asked(), rules).preprocess == "stretch"
    assert with_input_settings(asked(preprocess="center_crop"), rules).preprocess == "center_crop"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"preprocess": "stretch", "resize_size": 700},
            "is for preprocess center_crop, and .*leave",
        ),
        ({"resize_size": 500}, "resize_size 500 must be at least the input_size 600"),
        (
            {"preprocess": "shortest_side_aliased", "interpolation": "bicubic"},
            "shortest_side_aliased has no interpolation bicubic; valid: bilinear",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        with_input_settings(asked(**settings), RULES)


def test_an_input_larger_than_the_resize_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="resize_size 100 must be at least the input_size 200"):
        asked(input_size=200, resize_size=100)


def test_a_model_of_one_size_sees_whole_photos_stretched_and_that_is_said() -> None:
    notes = Notes()
    config = asked("coco", "odd_networks:flattened", input_size=32)
    found, model, _, rules = model_for_photos(config, notes)
    assert (found.preprocess, rules) == ("stretch", "the standard for ImageNet")
    assert "photos are stretched to 32 × 32 px" in str(notes.all()[0])
    assert model.memory_format == torch.channels_last
    plain, *_ = model_for_photos(asked("coco", "odd_networks:plain", input_size=32), Notes())
    assert plain.preprocess == "shortest_side"


def test_a_model_of_one_size_is_refused_where_proportions_were_asked_for() -> None:
    config = asked("coco", "odd_networks:flattened", input_size=32, preprocess="shortest_side")
    with pytest.raises(SettingsError, match="valid: center_crop, stretch"):
        model_for_photos(config, Notes())


def test_a_network_that_views_has_the_maps_of_the_same_that_flattens(
    photos: Path, tmp_path: Path
) -> None:
    rows = {}
    for name in ("viewed", "flattened"):
        config = run_config(
            photos, model=f"odd_networks:{name}", layers=["conv"], roles=["top"], limit=2
        )
        out = str(tmp_path / name)
        generate(config, out)
        rows[name] = MapDataset(out).maps().to_pydict()
        assert read_plan(out).model.memory_format == (
            torch.contiguous_format if name == "viewed" else torch.channels_last
        )
    assert rows["viewed"]["target"] == rows["flattened"]["target"]
    found, expected = (torch.tensor(rows[name]["map_sum"]) for name in ("viewed", "flattened"))
    torch.testing.assert_close(found, expected)


def test_the_plan_says_what_becomes_of_a_photo_and_its_words_are_those_of_the_stored_one(
    photos: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    plan = generate(run_config(photos, limit=1), out).plan
    assert plan.input_in_words == (
        "center_crop to 32 px, shortest side to 37 px before, bilinear, RGB less 0.485, 0.456, "
        "0.406 by 0.229, 0.224, 0.225; where not set, as the standard for ImageNet"
    )
    assert read_plan(out).input_in_words == plan.input_in_words
    assert plan.input_in_words in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "change", [{"interpolation": "bicubic"}, {"resize_size": 40}, {"mean": (0, 0, 0)}]
)
def test_each_setting_of_the_input_decides_the_run(photos: Path, change: dict[str, Any]) -> None:
    config = run_config(photos, limit=1)
    assert make_plan(config)[0].run_id != make_plan(replace(config, **change))[0].run_id
