"""A model is a function of the image, or refused with the module where it stops being one."""

import re

import odd_networks
import pytest
import torch
from tiny_network import run_config

from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.model.function_check import check_function, noise
from pipeline.model.models import ModelSpec
from pipeline.notes import Notes
from pipeline.planning import make_plan
from pipeline.store import MapDataset

IMAGES = torch.cat([noise((32, 32), seed) for seed in (0, 1)])


def checked(name: str) -> list[str]:
    notes = Notes()
    model = ModelSpec(f"odd_networks:{name}", input_size=odd_networks.SIZE).load()
    check_function(model, name, IMAGES, "a.png", notes)
    return [str(note) for note in notes.all()]


@pytest.mark.parametrize(
    ("name", "reason", "where"),
    [
        ("dropout", "a second time", "begins before module 'head' (Linear)"),
        ("dropout_module", "a second time", "begins at module 'between' (StillTraining)"),
        ("counting", "a second time", "begins at module 'between' (Counting)"),
        ("flips_at_random", "a second time", "begins before module 'head' (Linear)"),
        ("batch_statistics", "in a batch", "begins at module 'between' (BatchNorm2d)"),
        ("batch_statistics_in_code", "in a batch", "begins before module 'head' (Linear)"),
        ("mean_of_batch", "in a batch", ""),
        ("by_place", "in a batch", ""),
        ("seeded_dropout", "in a batch", ""),
        ("seldom", "a second time", "begins before module 'head' (Linear)"),
    ],
)
def test_a_model_that_is_no_function_of_the_image_is_refused(name, reason, where):
    torch.manual_seed(0)
    with pytest.raises(SettingsError) as refused:
        checked(name)
    assert "no function of the image" in str(refused.value)
    assert reason in str(refused.value)
    assert where in str(refused.value)
    assert ("it begins" in str(refused.value)) == bool(where)


@pytest.mark.parametrize(
    ("name", "where"),
    [("not_a_number", "at module 'between' (Log)"), ("infinite", "before module 'head' (Linear)")],
)
def test_logits_that_are_not_finite_are_refused_with_the_module_where_that_begins(name, where):
    with pytest.raises(
        SettingsError, match=r"the logits of .* are not finite on a\.png"
    ) as refused:
        checked(name)
    assert f"it begins {where}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", []),
        ("probabilities", ["look like probabilities, so the maps explain these"]),
        ("log_probabilities", ["look like log-probabilities"]),
        ("sigmoids", ["are sigmoids, so the maps explain these"]),
        ("one_sigmoid", ["has a single output", "are sigmoids"]),
        ("constant", ["the logits of .* are the same on two photos"]),
        ("little_noise", ["draws random numbers in eval mode; in 24 passes .* at most"]),
        ("drifting", ["1 buffer of .* changes from image to image.*between.seen"]),
        ("one_output", ["has a single output: .*class sensitivity is undefined.*sigmoid"]),
        ("one_squeezed", ["has a single output"]),
    ],
)
def test_what_the_outputs_are_is_said(name, said):
    found = checked(name)
    assert len(found) == len(said)
    assert all(re.search(pattern, note) for pattern, note in zip(said, found, strict=True))


def test_a_model_for_one_image_at_a_time_needs_batches_of_one(photos, tmp_path):
    odd = {"model": "odd_networks:for_one_image", "layers": ["conv"], "roles": ["top"]}
    with pytest.raises(SettingsError, match=r"fails on two at once: one image.*--batch-size 1"):
        make_plan(run_config(photos, limit=2, **odd))
    generate(run_config(photos, limit=2, batch_size=1, **odd), str(tmp_path / "out"))
    assert len(MapDataset(str(tmp_path / "out")).maps()) > 0


def test_a_model_that_checks_the_range_of_its_pixels_is_tried_on_such(photos, tmp_path):
    odd = {"model": "odd_networks:in_range", "layers": ["conv"], "roles": ["top"], "limit": 2}
    with pytest.raises(SettingsError, match=r"pixels must be in \[0, 1\]"):
        make_plan(run_config(photos, **odd))
    plan, _ = make_plan(run_config(photos, mean=(0.0,) * 3, std=(1.0,) * 3, **odd))
    assert len(plan.class_names) == odd_networks.CLASSES


def test_it_is_checked_before_work_on_the_first_photo_that_can_be_read(photos, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"no photo")
    (tmp_path / "set" / "b.png").write_bytes(next(photos.rglob("*.png")).read_bytes())
    odd = {"model": "odd_networks:not_a_number", "layers": ["conv"], "roles": ["top"]}
    with pytest.raises(SettingsError, match=r"not finite on b\.png"):
        make_plan(run_config(tmp_path / "set", **odd))
    (tmp_path / "set" / "b.png").unlink()
    with pytest.raises(SettingsError, match="not finite on an image of noise"):
        make_plan(run_config(tmp_path / "set", **odd))


def test_the_probability_of_a_single_output_is_the_sigmoid_of_its_logit(photos, tmp_path):
    odd = {"model": "odd_networks:one_output", "layers": ["conv"], "roles": ["top", "least"]}
    summary = generate(run_config(photos, limit=2, **odd), str(tmp_path / "out"))
    assert any("single output" in str(note) for note in summary.plan.notes)
    frame = MapDataset(str(tmp_path / "out")).maps().to_pydict()
    logits = torch.tensor(frame["logit"])
    torch.testing.assert_close(torch.tensor(frame["probability"]), logits.sigmoid())
    assert set(frame["target"]) == {0}


def test_a_meta_step_of_a_single_output_is_refused(photos):
    odd = {"model": "odd_networks:one_output", "layers": ["conv"], "roles": ["top"]}
    with pytest.raises(SettingsError, match="a meta variant needs a model of two classes"):
        make_plan(run_config(photos, variants=["meta"], **odd))
