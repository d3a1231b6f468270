"""A tap keeps what its layer gave, whatever the model writes in place afterwards."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from networks import SIZES, Small, images, network, out_of_place, small
from torch import Tensor, nn

from transforms.taps import LayerError, Taps, check_layers


def _tapped(
    model: nn.Module, layers: Sequence[str], batch: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, tapped activations, and the gradients there of the logits' weighted sum."""
    with Taps(model, layers) as taps:
        logits = model(taps.start(batch))
        activations = taps.activations()
        g = torch.autograd.grad(logits, activations, _weights(logits))
    return logits.detach(), [x.detach() for x in activations], list(g)


def _reference(
    model: nn.Module, layers: Sequence[str], batch: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same of a model without in-place operations, with nothing but hooks that look."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: seen.update({layer: output})
        )
        for layer in layers
    ]
    logits = model(batch.requires_grad_())
    for handle in handles:
        handle.remove()
    activations = [seen[layer] for layer in layers]
    g = torch.autograd.grad(logits, activations, _weights(logits))
    batch.requires_grad_(False)
    return logits.detach(), [x.detach() for x in activations], list(g)


def _weights(logits: Tensor) -> Tensor:
    return torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)


def _assert_same(model: nn.Module, copy: nn.Module, layers: Sequence[str], batch: Tensor) -> None:
    model.requires_grad_(False)
    before = batch.clone()
    logits, activations, gradients = _tapped(model, layers, batch)
    expected_logits, expected_activations, expected_gradients = _reference(copy, layers, before)
    exact = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(logits, expected_logits, **exact)
    for layer, x, g, expected_x, expected_g in zip(
        layers, activations, gradients, expected_activations, expected_gradients, strict=True
    ):
        torch.testing.assert_close(x, expected_x, **exact, msg=lambda m, at=layer: f"{at}: {m}")
        largest = expected_g.abs().max().item()
        assert largest > 0
        assert (g - expected_g).abs().max() <= 1e-12 * largest, layer
    assert torch.equal(batch, before)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        # bn1: relu_ follows; bn3: `out += identity`, then relu_; relu of the downsampled branch
        ("resnet50", ["bn1", "layer1.0.bn3", "layer2.1.bn3", "layer3.0.downsample.1", "layer4"]),
        ("vgg16", ["features.0", "features.14"]),
        ("mobilenet_v2", ["features.0.1", "features.3.conv.0.1", "features.18.1"]),
        ("squeezenet1_1", ["features.0", "features.3.squeeze", "features.12.expand3x3"]),
        ("densenet121", ["features.norm0", "features.denseblock2.denselayer3.norm2"]),
        ("densenet121", ["features.norm5"]),  # F.relu(features, inplace=True) follows
    ],
)
def test_in_place_operations_after_a_tap_change_neither_it_nor_its_gradient(
    name: str, layers: list[str]
) -> None:
    model, batch = network(name, torch.float64), images(2, SIZES[name])
    required = [parameter.requires_grad for parameter in model.parameters()]
    try:
        _assert_same(model, out_of_place(model, batch), layers, batch)
    finally:
        for parameter, was_required in zip(model.parameters(), required, strict=True):
            parameter.requires_grad_(was_required)


class _OnViews(nn.Module):
    """Taps on views, and in-place writes to the views and to what they view."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv = nn.Conv2d(3, 8, 3)
        self.identity, self.left, self.right = nn.Identity(), nn.Identity(), nn.Identity()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.flatten, self.unflatten = nn.Flatten(2), nn.Unflatten(2, (14, 14))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.identity(self.conv(x)), inplace=self.inplace)
        left, right = self.left(x[:, :4]), self.right(x[:, 4:])
        if self.inplace:
            left += 1
            right.mul_(2)
        else:
            left, right = left + 1, right * 2
        first, second = torch.cat([left, right], 1).chunk(2, dim=1)
        x = torch.cat([self.first(first).sin(), self.second(second).cos()], 1)
        x = F.hardswish(self.unflatten(self.flatten(x)), inplace=self.inplace)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "layers",
    [
        ["identity"],
        ["left"],
        ["right", "first"],
        ["second"],
        ["unflatten"],
        ["identity", "unflatten"],
    ],
    ids="+".join,
)
def test_taps_on_views_survive_in_place_writes(layers: list[str]) -> None:
    torch.manual_seed(0)
    model = _OnViews(inplace=True).double().eval()
    copy = _OnViews(inplace=False).double().eval()
    copy.load_state_dict(model.state_dict())
    _assert_same(model, copy, layers, images(2))


class _WritingBehindTheTap(nn.Module):
    """Writes to the very tensor that the tapped layer gave, through a name of its own."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv, self.identity, self.head = nn.Conv2d(3, 8, 3), nn.Identity(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.inplace:
            doubled = self.identity(x) * 2
            x += 1
        else:
            doubled = self.identity(x.clone()) * 2
            x = x + 1
        return self.head((doubled + x.sin()).mean((2, 3)))


@pytest.mark.parametrize("layers", [["identity"], ["conv", "identity"]], ids="+".join)
def test_a_tap_survives_writes_behind_it(layers: list[str]) -> None:
    torch.manual_seed(0)
    model = _WritingBehindTheTap(inplace=True).double()
    copy = _WritingBehindTheTap(inplace=False).double()
    copy.load_state_dict(model.state_dict())
    _assert_same(model, copy, layers, images(2))


def test_the_input_survives_a_model_that_normalises_it_in_place() -> None:
    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            x /= 0.25
            return self.body(x)

    model, batch = Normalising().eval(), images(2)
    before = batch.clone()
    for layers in (["input"], ["body.conv3"]):
        with Taps(model, layers) as taps, torch.no_grad():
            logits = model(taps.start(batch))
        assert torch.equal(batch, before), layers
        torch.testing.assert_close(logits, model.body((before - 0.5) / 0.25))


def test_layers_before_the_lowest_tap_are_not_in_the_graph() -> None:
    model = small().requires_grad_(False)
    in_graph: dict[str, bool] = {}
    for name in ("stem", "bn1", "conv2", "bn2", "pool", "conv3", "head"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: in_graph.update({name: output.requires_grad})
        )
    with Taps(model, ["conv3", "pool"]) as taps:
        logits = model(taps.start(images(2)))
        below = [taps.activations()[1].grad_fn]
    assert below == [None]
    assert logits.requires_grad
    assert [name for name, graph in in_graph.items() if graph] == ["conv3", "head"]


def test_activations_come_in_the_order_asked_for() -> None:
    model = small().requires_grad_(False)
    with Taps(model, ["conv3", "input", "stem"]) as taps:
        model(taps.start(images(2)))
        assert [x.shape[1] for x in taps.activations()] == [8, 3, 6]


def test_nothing_is_left_on_the_model_after_the_context() -> None:
    model = small()
    with Taps(model, ["conv3", "pool"]) as taps:
        model(taps.start(images(2)))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(LayerError, match="never called 'conv3', 'pool'"):
        taps.activations()


def test_an_unknown_layer_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(LayerError) as error:
        check_layers(small(), ["conv3", "conv9"])
    message = str(error.value)
    assert "'conv9'" in message
    assert "'conv3'" not in message
    assert "did you mean conv" in message
    assert "valid: input, stem, bn1, relu1, conv2, bn2, pool, conv3, relu3, drop, head" in message


def test_another_name_of_a_layer_is_answered_with_the_first_one() -> None:
    model = small()
    model.features = nn.Sequential(model.stem, model.bn1)
    with pytest.raises(LayerError, match=r"^layer 'features.1' is 'bn1' by another name; give"):
        check_layers(model, ["features.1"])


def test_of_many_layers_only_the_nearest_are_listed() -> None:
    with pytest.raises(LayerError) as error:
        check_layers(network("resnet50", torch.float32), ["layer5", "fc"])
    message = str(error.value)
    assert "unknown layer of ResNet 'layer5'; did you mean layer" in message
    assert "in all)" in message
    assert len(message) < 200


class _Twice(Small):
    def forward(self, images: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.stem(images)))
        x = self.relu1(self.bn2(self.conv2(x)))
        return self.head(self.conv3(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("relu1", "'relu1' is called more than once"),
        ("pool", "never called 'pool'"),
        ("head", r"'head' gives \[2, 5\], not a feature map \[B, C, h, w\]"),
    ],
)
def test_a_layer_that_is_no_single_feature_map_is_an_error(layer: str, message: str) -> None:
    model = _Twice().double()
    with pytest.raises(LayerError, match=message):
        _tapped(model, [layer], images(2))
    assert not any(module._forward_hooks for module in model.modules())
