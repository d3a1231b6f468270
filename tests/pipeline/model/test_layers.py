"""The layers that the presets stand for, and those that `backlight layers` lists."""

import pytest
import torch
from tiny_network import tiny
from torch import Tensor, nn
from torchvision import models

from pipeline.errors import SettingsError
from pipeline.model.layers import layers_with_map, resolve_layers
from transforms.engine import Explainer


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=3, **options).eval()


STAGES = {
    "resnet18": ["relu", "layer1", "layer2", "layer3", "layer4"],
    "vgg11": [f"features.{i}" for i in (1, 4, 9, 14, 19)],
    "mobilenet_v2": [f"features.{i}" for i in (1, 3, 6, 13, 18)],
    "squeezenet1_0": [f"features.{i}" for i in (1, 3, 5, 10, 12)],
    "squeezenet1_1": [f"features.{i}" for i in (1, 4, 7, 10, 12)],
    "densenet121": [
        "features.relu0",
        *(f"features.denseblock{i}" for i in (1, 2, 3)),
        "features.norm5",
    ],
    "alexnet": [f"features.{i}" for i in (1, 4, 11)],
    "googlenet": ["conv1", "conv3", "inception3b", "inception4e", "inception5b"],
    "efficientnet_b0": [f"features.{i}" for i in (1, 2, 3, 5, 8)],
    "mobilenet_v3_small": [f"features.{i}" for i in (0, 1, 3, 8, 12)],
    "mnasnet0_5": [f"layers.{i}" for i in (7, 8, 9, 11, 16)],
    "shufflenet_v2_x0_5": ["conv1", "stage2", "stage3", "conv5"],
    "regnet_x_400mf": ["stem", *(f"trunk_output.block{i}" for i in (1, 2, 3, 4))],
    "convnext_tiny": [f"features.{i}" for i in (1, 3, 5, 7)],
}
CONVS = {
    "resnet18": ["conv1", *(f"layer{i}.1.conv2" for i in (1, 2, 3, 4))],
    "squeezenet1_1": ["features.0", *(f"features.{i}.expand3x3" for i in (4, 7, 10, 12))],
}
HEAVY = ("convnext_tiny", "vgg11", "densenet121", "efficientnet_b0")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in STAGES]
)
def test_the_stages_are_the_last_layers_of_each_resolution(name: str) -> None:
    model, side = network(name), 96
    assert list(resolve_layers(model, name, ["stages"], side)) == STAGES[name]
    assert list(resolve_layers(model, name, ["last"], side)) == STAGES[name][-1:]
    if name in CONVS:
        assert list(resolve_layers(model, name, ["convs"], side)) == CONVS[name]


def test_the_stages_of_inception_shrink_by_two_though_its_convolutions_have_no_padding() -> None:
    found = resolve_layers(network("inception_v3"), "inception_v3", ["stages"], 299)
    assert found == ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")


def vit() -> nn.Module:
    """A ViT of three blocks; its head begins at zero, as torchvision's does."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 2}
    return models.VisionTransformer(**sizes, hidden_dim=24, mlp_dim=32, num_classes=5).eval()


def test_the_stages_of_one_resolution_are_its_blocks_whose_maps_reach_the_logits() -> None:
    """Of the last block only the class token reaches the head, so its map would be zero."""
    model = vit()
    stages = resolve_layers(model, "vit", ["stages"], 32)
    assert stages == tuple(f"encoder.layers.encoder_layer_{i}" for i in (0, 1))
    assert resolve_layers(model, "vit", ["convs"], 32) == ("conv_proj",)
    nn.init.normal_(model.heads.head.weight)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = Explainer(model, stages, ["normgrad"])(images, torch.tensor([[1]]))
    assert all(values.any() and values.shape[2:] == (4, 4) for values in maps.values())


def test_a_models_own_stages_and_named_layers() -> None:
    model = tiny()
    assert resolve_layers(model, "my:net", ["stages"]) == ("early", "middle", "late")
    assert resolve_layers(model, "my:net", ["last"]) == ("late",)
    assert resolve_layers(model, "my:net", ["input", "early.0", "last"]) == (
        *("input", "early.0", "late"),
    )


class _Branched(nn.Module):
    """A wrapper around stages, with a head beside them that the logits do not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Dropout()),
        )
        self.aux, self.head = nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(images)
        self.aux(x)
        return self.head(x.mean((2, 3)))


def test_stages_lie_on_the_way_to_the_logits() -> None:
    assert resolve_layers(_Branched(), "my:net", ["stages"], 64) == ("body.0", "body.1", "body.2")
    wrapped = nn.Sequential(nn.Identity(), _Branched())
    assert resolve_layers(wrapped, "my:net", ["last"], 64) == ("1.body.2",)


def test_a_wrapped_network_of_one_resolution_has_the_stage_inside() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 3))
    assert resolve_layers(nn.Sequential(inner), "my:net", ["stages"], 64) == ("0.1",)


def test_a_network_without_maps_has_no_stages_and_says_so() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SettingsError, match=r"no layer preset for 'my:net'.*gives a map"):
        resolve_layers(model, "my:net", ["stages"], 8)


def test_a_module_named_input_is_not_taken_for_the_image() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Conv2d(3, 4, 3, 2, 1))
    model.add_module("then", nn.Conv2d(4, 4, 3, 2, 1))
    for layers in (["stages"], ["input"]):
        with pytest.raises(SettingsError, match=r"has a module 'input'.*another name"):
            resolve_layers(model, "my:net", layers, 64)
    assert resolve_layers(model, "my:net", ["then"], 64) == ("then",)


def test_no_names_of_stages_are_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    model.stages = []
    assert resolve_layers(model, "my:net", ["stages"], 64) == ("0",)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(1, 4, 3), r"takes images of 1 channel.*photos have 3; give a model"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), r"takes images of 32 px \(--input-size"),
        (nn.ModuleList(), r"fails on an image.*give a model that takes a batch of images"),
    ],
)
def test_a_model_whose_layers_cannot_be_found_is_refused_with_the_cause(
    model: nn.Module, message: str
) -> None:
    for find in (
        lambda: layers_with_map(model, 64),
        lambda: resolve_layers(model, "n", ["last"], 64),
    ):
        with pytest.raises(SettingsError, match=message):
            find()


def test_a_wrong_layer_is_answered_with_the_nearest() -> None:
    model = network("resnet18")
    with pytest.raises(SettingsError) as error:
        resolve_layers(model, "resnet18", ["layer4.3"])
    assert "did you mean layer4" in str(error.value)
    assert len(str(error.value)) < 200


def test_layers_are_listed_with_their_maps_and_the_others_with_a_reason() -> None:
    found = layers_with_map(vit(), 32)
    block = found.maps["encoder.layers.encoder_layer_1"]
    assert (block.channels, block.size) == (24, (4, 4))
    assert str(block.layout) == "tokens(patch=8,leading=1)"
    small = layers_with_map(tiny(), 32)
    assert (small.maps["early"].channels, small.maps["early"].size) == (6, (16, 16))
    assert "head" not in small.maps
    assert not small.others
