"""A run on a network of tokens: what the plan, the card and the commands say of its layers."""

import json
import re

import pytest
from click.testing import CliRunner
from tiny_network import draw_set, run_config
from torchvision import models

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.planning import make_plan
from pipeline.store import MapDataset
from transforms.layout import ChannelsFirst, Tokens


def vit() -> models.VisionTransformer:
    """A ViT of three blocks; its head begins at zero, as torchvision's does."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2}
    model = models.VisionTransformer(**sizes, hidden_dim=24, mlp_dim=32, num_classes=5)
    model.heads.head.reset_parameters()
    return model


BLOCK = "encoder.layers.encoder_layer_1"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_set(tmp_path_factory.mktemp("photos") / "set", 3)


def config(photos, **changes):
    return run_config(photos, **{"model": "test_layouts_of_a_run:vit", **changes})


def test_a_run_on_a_vit_has_maps_of_its_grid_and_says_what_they_leave_out(photos, tmp_path):
    out = str(tmp_path / "out")
    summary = generate(config(photos, layers=["stages", "conv_proj"]), out)
    assert {row["map"].shape for _, row in MapDataset(out).frame().iterrows()} == {(4, 4)}
    assert summary.plan.layouts == {
        "encoder.layers.encoder_layer_0": Tokens((8, 8), leading=1),
        BLOCK: Tokens((8, 8), leading=1),
        "conv_proj": ChannelsFirst(),
    }
    note = r"2 layers read without the 1 first of its tokens, which are no cells of the grid"
    (said,) = [str(found) for found in summary.plan.notes]
    assert re.match(note, said)
    assert said in (tmp_path / "out" / "README.md").read_text()
    stored = json.loads((tmp_path / "out" / "_meta" / "plan.json").read_text())
    assert f"{BLOCK}=tokens(patch=8,leading=1)" in stored["settings"]["layout"]


def test_a_named_layout_is_part_of_the_run(photos):
    found, _ = make_plan(config(photos, layers=[BLOCK]))
    same, _ = make_plan(
        config(photos, layers=[BLOCK], layout=[f"{BLOCK}=tokens(patch=8,leading=1)"])
    )
    other, _ = make_plan(
        config(photos, layers=[BLOCK], layout=[f"{BLOCK}=tokens(patch=8,trailing=1)"])
    )
    assert found.run_id == same.run_id != other.run_id
    assert other.layouts == {BLOCK: Tokens((8, 8), trailing=1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": ["conv=channels_last"]}, "unknown tapped layer 'conv'.*valid: conv_proj"),
        ({"layout": ["conv_proj=last"]}, "unknown layout 'last'.*channels_last"),
        ({"layout": ["conv_proj"]}, "is not LAYER=LAYOUT"),
        ({"layout": ["conv_proj=tokens(patch=8)"]}, "not a feature map .B, tokens, C."),
        (
            {"layers": ["encoder.layers.encoder_layer_2"]},
            "by its class or register tokens alone",
        ),
        ({"methods": ["excitation_backprop"]}, "defined for ReLU networks"),
        ({"methods": ["guided_backprop"]}, "called no ReLU"),
        ({"methods": ["normgrad_real"], "layers": [BLOCK]}, "needs convolution layers"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_any_work(photos, changes, message):
    with pytest.raises(SettingsError, match=message):
        make_plan(config(photos, **{"layers": ["conv_proj"], **changes}))


def test_the_card_of_mixed_nonlinearities_says_which_were_treated(photos, tmp_path):
    out = tmp_path / "out"
    wanted = {
        "model": "mobilenet_v3_small",
        "weights": "random:0",
        "num_classes": 5,
        "input_size": 64,
    }
    layers = ["features.1"]
    generate(config(photos, **wanted, layers=layers, methods=["guided_backprop"]), str(out))
    card = (out / "README.md").read_text()
    assert re.search(r"\d+ calls of (hard\w+, hard\w+) passed by the gradient", card)
    assert "guided treat ReLUs alone" in card
    with pytest.raises(SettingsError, match=r"guided: no ReLU lies between 'features.9'"):
        make_plan(config(photos, **wanted, layers=["features.9"], methods=["guided_backprop"]))


def test_layers_shows_layouts_strides_and_what_is_no_map(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["layers", "test_layouts_of_a_run:vit", "--input-size", "32"]
    result = CliRunner().invoke(backlight, arguments)
    assert result.exit_code == 0
    marked = re.findall(r"(\S+) \*.*", result.stdout)
    assert marked == [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    (row,) = [line for line in result.stdout.splitlines() if f"{BLOCK} *" in line]
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells == ["EncoderBlock", "24 × 4 × 4", "tokens(patch=8,leading=1)", "8", "32"]
