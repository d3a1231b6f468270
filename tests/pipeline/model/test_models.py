"""Models by name, their weights, and the layers that the presets stand for."""

import pytest
import torch
from tiny_network import tiny
from torchvision import models as torchvision_models

from pipeline.model.layers import FAMILIES, layer_shapes, resolve_layers
from pipeline.model.models import ModelSpec
from transforms.engine import Explainer

SMALLEST = {"vgg11": 64, "vgg16_bn": 64}


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "vgg11", "vgg16_bn", "mobilenet_v2"),
        *("squeezenet1_0", "squeezenet1_1", "densenet121"),
    ],
)
def test_the_stages_of_each_family_can_be_explained(name):
    model = ModelSpec(name, "random:0", num_classes=3).load()
    stages = resolve_layers(model, name, ["stages"])
    assert len(stages) == 5
    assert resolve_layers(model, name, ["last"]) == stages[-1:]
    maps = Explainer(model, stages, ["normgrad"])(
        torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)), torch.tensor([[1]])
    )
    heights = [maps["normgrad", stage].shape[2] for stage in stages]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] >= 4 * heights[-1] >= 4
    assert all(maps["normgrad", stage].isfinite().all() for stage in stages)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("wide_resnet50_2", r"(wide_)?resnet\d+.*|resnext\d+.*"),
        ("resnext50_32x4d", r"(wide_)?resnet\d+.*|resnext\d+.*"),
        ("vgg19", r"vgg\d+(_bn)?"),
        ("densenet161", r"densenet\d+"),
    ],
)
def test_the_presets_hold_for_the_family(name, pattern):
    with torch.device("meta"):
        model = torchvision_models.get_model(name, weights=None)
    assert resolve_layers(model, name, ["stages"]) == tuple(FAMILIES[pattern](model))


def test_a_models_own_stages_and_named_layers():
    model = tiny()
    assert resolve_layers(model, "my:net", ["stages"]) == ("early", "middle", "late")
    assert resolve_layers(model, "my:net", ["last"]) == ("late",)
    assert resolve_layers(model, "my:net", ["input", "early.0", "last"]) == (
        *("input", "early.0", "late"),
    )


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (
        ModelSpec("tiny_network:tiny", f"random:{seed}").load().state_dict() for seed in (3, 3, 4)
    )
    assert torch.get_rng_state().equal(before)
    assert all(one[key].equal(same[key]) for key in one)
    assert not one["head.weight"].equal(other["head.weight"])


def test_a_loaded_model_is_in_eval_mode_with_the_weights_of_the_file(tmp_path):
    torch.manual_seed(1)
    state = tiny(4).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    model = ModelSpec("tiny_network:tiny", str(tmp_path / "weights.pth"), num_classes=4).load()
    assert not any(module.training for module in model.modules())
    assert all(model.state_dict()[key].equal(state[key]) for key in state)


def test_the_digest_is_of_the_content_of_the_weights_not_of_their_place(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    torch.manual_seed(5)
    torch.save(tiny().state_dict(), tmp_path / "c.pth")
    a, b, c = (ModelSpec("tiny_network:tiny", str(tmp_path / f"{n}.pth")).digest() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2", "DEFAULT"])
def test_the_names_of_torchvisions_weights_are_known_without_a_download(weights, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    spec = ModelSpec("resnet50", weights)
    assert spec.located() == spec
    assert len(spec.digest()) == 16
    assert spec.digest() != ModelSpec("resnet50", "random:0").digest()


def test_real_weights_load(shared_data):
    path = shared_data / "weights" / "squeezenet1_1-imagenet.pth"
    model = ModelSpec("squeezenet1_1", str(path)).load()
    state = torch.load(path, weights_only=True)
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())


def test_layer_shapes_are_those_of_the_feature_maps():
    shapes = layer_shapes(ModelSpec("tiny_network:tiny").load(), 32)
    assert shapes["early"] == ("Sequential", (6, 16, 16))
    assert shapes["late.0"] == ("Conv2d", (8, 8, 8))
    assert "head" not in shapes
