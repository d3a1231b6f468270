"""Twins give the original's logits, at every location of larger photos; seeds weigh locations."""

import pytest
import torch
from networks import Small, images, randomise, small
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

from transforms.engine import Explainer
from transforms.fully_convolutional import NoTwinError, fully_convolutional
from transforms.output_gradient import OUTPUT_GRADIENTS
from transforms.variant_maps import explain_variants
from transforms.variants import Meta

NAMES = ("vgg", "resnet")
LAYERS = ["relu", "layer3", "layer4"]
METHODS = ["normgrad", "grad_cam", "contrastive_excitation_backprop"]


def original(name: str) -> nn.Module:
    """Torchvision's class with few channels and blocks, seeded, 10 classes, in float64."""
    torch.manual_seed(0)
    if name == "vgg":
        channels = [4, "M", 4, "M", 8, "M", 8, "M", 8, 8, "M"]
        with torch.device("meta"):
            model = models.VGG(nn.Identity())
        model.features = make_layers(channels, batch_norm=True)
        model.classifier = nn.Sequential(
            *(nn.Linear(8 * 7 * 7, 32), nn.ReLU(True), nn.Dropout()),
            *(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10)),
        )
    else:
        model = models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    randomise(model, torch.rand(4, 3, 64, 64))
    return model.double()


def head(model: nn.Module, window: Tensor) -> Tensor:
    """What the original makes of 7 × 7 cells `[B, C, 7, 7]`."""
    classifier = model.classifier if isinstance(model, models.VGG) else model.fc
    return classifier(model.avgpool(window).flatten(1))


def features(model: nn.Module, x: Tensor) -> Tensor:
    if isinstance(model, models.VGG):
        return model.features(x)
    for name, module in model.named_children():
        if name == "avgpool":
            break
        x = module(x)
    return x


@pytest.mark.parametrize("name", NAMES)
def test_at_224_pixels_the_twin_gives_the_originals_logits(name):
    model, x = original(name), images(1, 224)
    with torch.no_grad():
        expected, found = model(x), fully_convolutional(model)(x)
    assert found.shape == (1, 10, 1, 1)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_on_larger_photos_the_twin_is_the_original_slid_over_the_features(name):
    model = original(name)
    x = torch.cat([images(1, 256), images(1, 256).flip(2)], dim=3)[..., :320]
    with torch.no_grad():
        cells = features(model, x)
        found = fully_convolutional(model)(x)
        assert cells.shape[2:] == (8, 10)
        assert found.shape == (1, 10, 2, 4)
        for i in range(2):
            for j in range(4):
                expected = head(model, cells[:, :, i : i + 7, j : j + 7])
                torch.testing.assert_close(found[:, :, i, j], expected, rtol=1e-10, atol=1e-10)
    assert found[0, :, 0, 0].sub(found[0, :, 1, 3]).abs().max() > 1e-3


def test_the_maps_of_the_twin_at_224_pixels_are_the_originals():
    model, x, targets = original("resnet"), images(1, 224), torch.tensor([[3]])
    expected = Explainer(model, LAYERS, METHODS)(x, targets)
    for name in OUTPUT_GRADIENTS:
        found = Explainer(fully_convolutional(model), LAYERS, METHODS, name)(x, targets)
        for key, values in expected.items():
            assert values.abs().max() > 0
            torch.testing.assert_close(found[key], values, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_shares_names_and_storage_and_leaves_the_model_as_it_is(name):
    model = original(name)
    modules = dict(model.named_modules())
    before = {key: (value.data_ptr(), value.shape) for key, value in model.state_dict().items()}
    twin = fully_convolutional(model)
    assert dict(model.named_modules()) == modules
    assert {k: (v.data_ptr(), v.shape) for k, v in model.state_dict().items()} == before
    twins = twin.state_dict()
    assert list(twins) == list(before)
    assert all(twins[key].data_ptr() == pointer for key, (pointer, _) in before.items())
    for key in (k for k in modules if k.startswith(("features", "layer"))):
        assert twin.get_submodule(key) is modules[key]
    dropouts = [m for m in twin.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == sum(isinstance(m, nn.Dropout) for m in modules.values())


def test_frozen_weights_and_the_names_of_stages_come_along():
    model = original("resnet")
    model.fc.weight.requires_grad_(False)
    model.stages = ["layer3", "layer4"]
    twin = fully_convolutional(model)
    assert not twin.fc.weight.requires_grad
    assert twin.fc.bias.requires_grad
    assert twin.stages == ["layer3", "layer4"]


class _Subclass(models.ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


@pytest.mark.parametrize("model", [Small(), _Subclass(BasicBlock, [1, 1, 1, 1])])
def test_another_model_has_no_twin_and_is_told_which_have(model):
    with pytest.raises(NoTwinError, match=f"{type(model).__name__}.*vgg, resnet"):
        fully_convolutional(model)


def test_onehot_sum_is_one_everywhere_and_pointing_a_softmax_over_space():
    scores = 5 * images()[:, 0, :3, :5]
    assert torch.equal(
        OUTPUT_GRADIENTS["onehot_sum"].weigh(scores), torch.ones(2, 3, 5, dtype=torch.float64)
    )
    weights = OUTPUT_GRADIENTS["pointing"].weigh(scores)
    expected = scores.exp() / scores.exp().sum((1, 2), keepdim=True)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)
    # exp(800) is infinite, exp(800 - 800) is not.
    torch.testing.assert_close(
        OUTPUT_GRADIENTS["pointing"].weigh(scores + 800), expected, rtol=1e-10, atol=0
    )
    for entry in OUTPUT_GRADIENTS.values():
        assert torch.equal(entry.weigh(torch.tensor([3.0, -900.0])), torch.ones(2))
        assert entry.weigh(torch.zeros(0, 3, 5)).shape == (0, 3, 5)


class _Located(nn.Module):
    """`Small`, classified at every location of its last feature map."""

    def __init__(self, model: Small) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        x = model.relu3(model.conv3(model.pool(model.relu1(model.bn1(model.stem(x))))))
        return model.head(x.movedim(1, 3)).movedim(3, 1)


@pytest.mark.parametrize("seed", ["onehot_sum", "pointing"])
def test_the_gradient_is_that_of_the_weighted_sum_with_constant_weights(seed):
    model, x = _Located(small()), images(2, 20)
    targets = torch.tensor([[3, 0], [1, -1]])
    maps = Explainer(model, ["input"], ["gradient_sum"], seed)(x, targets)["gradient_sum", "input"]
    for row, column in ((0, 0), (0, 1), (1, 0)):
        leaf = x[row : row + 1].clone().requires_grad_()
        scores = model(leaf)[0, targets[row, column]]
        assert scores.numel() > 1
        weights = torch.ones_like(scores)
        if seed == "pointing":
            weights = scores.detach().exp() / scores.detach().exp().sum()
        (expected,) = torch.autograd.grad((weights * scores).sum(), leaf)
        torch.testing.assert_close(maps[row, column], expected[0].sum(0), rtol=1e-10, atol=1e-14)
    assert not maps[1, 1].any()


def test_a_second_order_step_is_seeded_too():
    """With a rate of zero the step goes nowhere, and its map is the base map."""
    model, x = _Located(small()), images(1, 20)
    targets = torch.tensor([[2]])
    nowhere = Meta(0.0, second_order=True)
    with Explainer(model, ["model.conv3"], ["normgrad"], "pointing") as explainer:
        found = explain_variants(explainer, x, targets, [nowhere])
    base, stepped = (found[name]["normgrad", "model.conv3"] for name in ("base", nowhere.name))
    assert base.abs().max() > 0
    torch.testing.assert_close(stepped, base, rtol=1e-10, atol=1e-14)


def test_an_unknown_output_gradient_is_answered_with_the_nearest():
    message = (
        "unknown output gradient 'sum'; did you mean onehot_sum[?] valid: onehot_sum, pointing"
    )
    with pytest.raises(ValueError, match=message):
        Explainer(small(), ["pool"], ["gradient"], "sum")
