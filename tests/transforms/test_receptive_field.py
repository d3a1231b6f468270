"""Geometry of receptive fields, by hand and by where the gradient of a cell reaches."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pipeline.model.layers import resolve_layers
from transforms.geometry import Axis, Geometry, GeometryError, NoGeometry
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS
from transforms.receptive_field import layer_geometry, trace_geometry
from transforms.taps import LayerError


class Call(nn.Module):
    """A function of the image, as the module `of_image`."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.of_image = _Function(function)

    def forward(self, images: Tensor) -> object:
        return self.of_image(images)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(images)


def traced(function: Callable[[Tensor], object], size: int = 32) -> Geometry | NoGeometry:
    return trace_geometry(Call(function), ["of_image"], (size, size))["of_image"]


def rows_of(function: Callable[[Tensor], object], size: int = 32) -> tuple[float, float, float]:
    """Stride, offset and size along the rows; both axes are alike."""
    geometry = traced(function, size)
    assert isinstance(geometry, Geometry), geometry
    assert geometry.rows == geometry.columns
    return geometry.rows.stride, geometry.rows.offset, geometry.rows.size


def weights(kernel: int, channels: int = 3) -> Tensor:
    return torch.ones(channels, channels, kernel, kernel)


def chain(kernel: int, stride: int, padding: int, length: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 3, kernel, stride=stride, padding=padding) for _ in range(length))
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "length", "expected"),
    [
        (3, 2, 1, 5, (32, 0, 63)),  # the chain of DESIGN: cell i at pixel 32 i
        (2, 2, 0, 5, (32, 15.5, 32)),  # patches: where align_corners=False puts cells
        (3, 2, 0, 2, (4, 3, 7)),  # 1 + 2 * 1
        (3, 1, 1, 4, (1, 0, 9)),
        (7, 2, 3, 1, (2, 0, 7)),
        (4, 2, 1, 2, (4, 1.5, 10)),  # 0.5 + 2 * 0.5
    ],
)
def test_a_chain_of_convolutions_is_as_computed_by_hand(
    kernel: int, stride: int, padding: int, length: int, expected: tuple[float, ...]
) -> None:
    model = nn.Sequential(chain(kernel, stride, padding, length))
    axis = Axis(*map(float, expected))
    assert layer_geometry(model, ["0"], (64, 64)) == {"0": Geometry(axis, axis)}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.conv2d(x, weights(3), dilation=2), (1, 2, 5)),
        (lambda x: F.conv2d(x, weights(3), padding="same"), (1, 0, 3)),
        pytest.param(
            lambda x: F.conv2d(x, weights(4), padding="same"),
            (1, 0.5, 4),  # 1 before, 2 after
            marks=pytest.mark.filterwarnings("ignore:Using padding='same'"),
        ),
        (lambda x: F.conv2d(x, weights(3), stride=2, padding="valid"), (2, 1, 3)),
        (lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), weights(3), stride=2), (2, 1, 3)),
        (lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0)), weights(3), stride=2), (2, 0, 3)),
        (lambda x: F.pad(x, (-2, 0, -2, 0)), (1, 2, 1)),
        (lambda x: F.pad(x, (3, 3, 3, 3), mode="reflect"), (1, -3, 1)),
        (lambda x: F.max_pool2d(x, 3, 2), (2, 1, 3)),
        (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), (2, 1, 3)),
        (lambda x: F.max_pool2d(x, 3, 2, padding=1, dilation=2), (2, 1, 5)),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 0.5, 2)),
        (lambda x: F.avg_pool2d(x, 2), (2, 0.5, 2)),
        (lambda x: F.pixel_unshuffle(x, 4), (4, 1.5, 4)),
        (lambda x: F.lp_pool2d(x, 2, 4), (4, 1.5, 4)),
        (lambda x: F.adaptive_avg_pool2d(x, 8), (4, 1.5, 4)),
        (lambda x: F.adaptive_max_pool2d(x, 32), (1, 0, 1)),
        (lambda x: F.interpolate(x, scale_factor=2), (0.5, -0.25, 1)),
        (lambda x: F.interpolate(x, size=16), (2, 0, 1)),  # nearest takes every other cell
        (lambda x: F.interpolate(x, size=64, mode="bilinear"), (0.5, -0.25, 2)),
        (
            lambda x: F.interpolate(x, size=63, mode="bilinear", align_corners=True),
            (0.5, 0, 2),
        ),
        (lambda x: F.conv_transpose2d(x, weights(4), stride=2, padding=1), (0.5, -0.25, 2)),
        (
            lambda x: F.conv_transpose2d(F.avg_pool2d(x, 2), weights(2), stride=2),
            (1, 0, 2),
        ),
        (lambda x: x[:, :, 1:-1, 1:-1], (1, 1, 1)),
        (lambda x: x[..., 3::2, -29::2], (2, 3, 1)),
        (lambda x: x.narrow(2, 2, 8).narrow(-1, 2, 8), (1, 2, 1)),
        (lambda x: x.narrow(2, -8, 8).narrow(3, -8, 8), (1, 24, 1)),
    ],
)
def test_an_operation_moves_cells_by_its_formula(
    function: Callable[[Tensor], Tensor], expected: tuple[float, float, float]
) -> None:
    assert rows_of(function) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 1 - 2 * x.relu_().sigmoid() / 3,
        lambda x: F.hardswish(F.relu6(F.silu(x, inplace=True))),
        lambda x: F.dropout(F.batch_norm(x, torch.zeros(3), torch.ones(3)), training=True),
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2),
        lambda x: F.linear(x.movedim(1, -1), torch.ones(5, 3)).movedim(-1, 1),
        lambda x: torch.cat([x, x.to(torch.float64).float(), x.clone().detach().data], dim=1),
        lambda x: x * F.conv2d(x.mean((2, 3), keepdim=True), weights(1)).sigmoid(),
        lambda x: (
            x * F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), torch.ones(3, 3))[..., None, None]
        ),
        lambda x: x * x.std((2, 3), keepdim=True),  # an unknown function, of one cell
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)).mT.mT,
        lambda x: torch.stack([x, 2 * x], 1).sum(1),
        lambda x: x * x.mean(1, keepdim=True) + x.amax(dim=1, keepdim=True),
        lambda x: x + torch.ones(32, 32),
        lambda x: torch.cat(x.chunk(3, dim=1)[::-1], axis=1),
        # Channels shuffled in groups.
        lambda x: torch.cat([x, x], 1).view(1, 2, 3, 32, 32).transpose(1, 2).reshape(1, 6, 32, 32),
        lambda x: x.flatten(0, 1).unflatten(0, (1, 3)).squeeze(0).unsqueeze(0),
        lambda x: F.pad(x, (2, 2, 2, 2))[:, :, 2:-2, 2:-2],
    ],
)
def test_what_keeps_cells_in_place_keeps_their_geometry(
    function: Callable[[Tensor], Tensor],
) -> None:
    assert rows_of(function) == (1, 0, 1)


def test_rows_and_columns_are_told_apart() -> None:
    kernel = torch.ones(3, 3, 1, 7)
    rows, columns = Axis(3.0, -2.0, 1.0), Axis(2.0, 0.0, 7.0)
    found = traced(lambda x: F.conv2d(x, kernel, stride=(3, 2), padding=(2, 3)))
    assert found == Geometry(rows, columns)
    turned = traced(lambda x: F.conv2d(x, kernel, stride=(3, 2), padding=(2, 3)).transpose(2, 3))
    assert turned == Geometry(columns, rows)


def test_agreeing_branches_have_the_larger_receptive_field() -> None:
    def block(x: Tensor) -> Tensor:
        return F.conv2d(x, weights(1), stride=2) + F.conv2d(x, weights(3), stride=2, padding=1)

    assert rows_of(block) == (2, 0, 3)


@pytest.mark.parametrize("join", [torch.add, lambda a, b: torch.cat([a, b], 1)])
def test_disagreeing_branches_raise_with_the_layer_and_both_geometries(
    join: Callable[[Tensor, Tensor], Tensor],
) -> None:
    model = Call(lambda x: join(F.avg_pool2d(x, 2), F.conv2d(x, weights(1), stride=2)))
    with pytest.raises(
        GeometryError, match=r"'of_image'.*disagree.*2 i \+0.5 and 2 i \+0 in module 'of_image'"
    ):
        layer_geometry(model, ["of_image"], (32, 32))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.roll(1, 2), "how roll moves cells is not known"),
        (lambda x: x.flip(3), "how flip moves"),
        (lambda x: x @ x, "how matmul moves"),
        (lambda x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2), "how pixel_shuffle moves"),
        (lambda x: F.adaptive_avg_pool2d(x, 7), "of 32 to 7 cells is not regular"),
        (lambda x: F.interpolate(x, size=20), "of 32 to 20 cells is not regular"),
        (lambda x: torch.cat([x, x], 2), "along an axis of the image"),
        (lambda x: x[:, :, [0, 2, 4]], "indexing by a list"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "wraps around"),
        (lambda x: F.linear(x, torch.ones(32, 32)), "linear works along an axis of the image"),
        (lambda x: F.conv2d(x.transpose(1, 2), torch.ones(1, 32, 1, 1)), "not the image's"),
        (lambda x: F.linear(x.flatten(1), torch.ones(4, 3072)).view(1, 1, 2, 2), "not a map"),
        (
            lambda x: x + F.linear(x.flatten(1), torch.ones(1024, 3072)).view(1, 1, 32, 32),
            "something that has no place",
        ),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "not a map"),
        (lambda x: x.mean((2, 3)), "not a map"),
        (lambda x: [x], "as one tensor"),
        (lambda x: torch.ones(1, 3, 32, 32), "as one tensor"),
    ],
)
def test_what_has_no_regular_place_has_a_reason(
    function: Callable[[Tensor], object], reason: str
) -> None:
    found = traced(function)
    assert isinstance(found, NoGeometry)
    assert reason in found.reason


def test_assigning_a_shifted_map_to_a_part_of_a_map_loses_its_place() -> None:
    def shifted(x: Tensor) -> Tensor:
        x[:, :, 1:] = x[:, :, :-1].clone()
        return x

    def blacked(x: Tensor) -> Tensor:
        x[:, :, :2] = 0
        return x

    assert isinstance(traced(shifted), NoGeometry)
    assert rows_of(blacked) == (1, 0, 1)


def test_only_layers_behind_an_unknown_operation_have_no_geometry() -> None:
    class Rolling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Conv2d(3, 3, 1, stride=4), nn.Conv2d(3, 3, 1)
            self.unused = nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return self.after(self.before(images).roll(1, 3))

    found = trace_geometry(Rolling(), ["input", "before", "after", "unused"], (32, 32))
    assert found["input"] == Geometry(Axis(1.0, 0.0, 1.0), Axis(1.0, 0.0, 1.0))
    assert found["before"] == Geometry(Axis(4.0, 0.0, 1.0), Axis(4.0, 0.0, 1.0))
    assert [type(found[layer]) for layer in ("after", "unused")] == [NoGeometry] * 2
    with pytest.raises(GeometryError, match="'after': how roll"):
        layer_geometry(Rolling(), ["before", "after"], (32, 32))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayerError, match=r"unknown layer of \w+ 'head'"):
        trace_geometry(Call(F.relu), ["head"], (8, 8))


def test_the_model_is_as_it_was_afterwards_also_when_it_fails() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    good = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).train()
    good[1].eval()
    bad = nn.Sequential(nn.BatchNorm2d(3), Call(fail)).train()
    trace_geometry(good, ["0"], (8, 8))
    with pytest.raises(RuntimeError, match="broken"):
        trace_geometry(bad, ["0"], (8, 8))
    assert [m.training for m in good.modules()] == [True, True, False]
    assert all(m.training for m in bad.modules())
    assert good[0].num_batches_tracked == 0
    for module in [*good.modules(), *bad.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.overrides._get_current_function_mode() is None


STRIPS = {
    "squeezenet1_1": 512,
    "resnet18": 1024,
    "resnet50": 1024,
    "vgg16": 448,
    "mobilenet_v2": 1024,
    "densenet121": 2304,
}
"""Lengths of images with room for a receptive field of the last stage and for its neighbours."""


def network(name: str) -> nn.Module:
    """The network's architecture, without a head; every weight is positive."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    if hasattr(model, "classifier"):
        model.classifier = nn.Identity()
    model = model.to_empty(device="cpu").double().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def without_gates(model: nn.Module) -> nn.Module:
    """Changed in place so that a cell depends on every pixel that can reach it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                settings = child.kernel_size, child.stride, child.padding, child.ceil_mode
                setattr(module, name, nn.AvgPool2d(*settings))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axis"),
    [*((name, "columns") for name in STRIPS), ("squeezenet1_1", "rows"), ("resnet18", "rows")],
)
def test_a_cell_is_at_the_centre_of_where_its_gradient_reaches(name: str, axis: str) -> None:
    # A strip: what happens along one axis does not depend on the other.
    length = STRIPS[name]
    size = (length, 32) if axis == "rows" else (32, length)
    model = network(name)
    layers = resolve_layers(model, name, ["stages"])
    geometry = layer_geometry(model, layers, size)

    without_gates(model)
    outputs: dict[str, Tensor] = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: outputs.__setitem__(layer, output)
        )
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    model(image)
    for layer in layers:
        cells = outputs[layer][0].sum((0, 2 if axis == "rows" else 1))
        i = len(cells) // 2 - 1
        (g,) = torch.autograd.grad(cells[i], image, retain_graph=True)
        reached = g[0].abs().sum((0, 2 if axis == "rows" else 1)).nonzero().flatten()
        first, last = int(reached[0]), int(reached[-1])
        assert 0 < first <= last < length - 1
        expected = getattr(geometry[layer], axis)
        assert (first + last) / 2 == expected.stride * i + expected.offset, layer
        assert last - first + 1 == expected.size, layer


@pytest.mark.parametrize(("upsampling", "hit"), [("receptive-field", 1.0), ("bilinear", 0.0)])
def test_the_arg_max_is_at_the_object_that_the_cell_is_centred_on(
    upsampling: str, hit: float
) -> None:
    # Cell (3, 2) of a chain of stride 32 is at pixel (96, 64), not at (111.5, 79.5); and the cell
    # of another layer, with a map of the same shape, is at (48, 32).
    model = nn.Sequential(chain(3, 2, 1, 5), chain(3, 1, 0, 1))
    geometry = layer_geometry(model, ["0"], (224, 224)) | {
        "half": Geometry(Axis(16.0, 0.0, 31.0), Axis(16.0, 0.0, 31.0))
    }
    regions = {name: torch.zeros(224, 224, dtype=torch.bool) for name in ("0", "half")}
    regions["0"][96, 64] = regions["half"][48, 32] = True
    peak = torch.zeros(7, 7)
    peak[3, 2] = 1.0
    image = ImageMaps(
        "a",
        *(224, 224, 224, 224),
        (0.0, 0.0, 224.0, 224.0),
        regions,
        [MapKey("base", "normgrad", layer, "label", 0, layer) for layer in regions],
        [peak, peak],
        upsampling=upsampling,
        geometry=geometry,
    )
    scores = [score for score in METRICS["pointing_game"].score(image) if score.key.layer]
    assert [(score.key.class_name, score.value) for score in scores] == [("0", hit), ("half", hit)]
    # Placing is linear, so the share of a peak that lies on its own pixel is the peak's height.
    shares = [score.value for score in METRICS["energy"].score(image)]
    if hit:
        assert shares == pytest.approx([1 / 32**2, 1 / 16**2])
