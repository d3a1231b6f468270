"""The way back through convolutions: PyTorch's own, for every geometry, layout and data type."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from transforms.backward import RuleSwitch
from transforms.convolution import WeightCache
from transforms.engine import Explainer
from transforms.rules import GRADIENT

GEOMETRIES = {
    "stride 1": {"kernel_size": 3, "padding": 1},
    "no padding": {"kernel_size": (3, 2)},
    "padding beyond the kernel": {"kernel_size": 1, "padding": 2},
    "1 x 1": {"kernel_size": 1},
    "1 x 1, stride 2": {"kernel_size": 1, "stride": 2},
    "1 x 1, strides 3 and 1": {"kernel_size": 1, "stride": (3, 1)},
    "stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride 2, many channels": {"kernel_size": 3, "stride": 2, "padding": 1, "channels": 20},
    "stride 2, no padding": {"kernel_size": 3, "stride": 2, "channels": 20},
    "stride 2, padding beyond the kernel": {"kernel_size": 3, "stride": 2, "padding": 4},
    "strides 2 and 1": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
    "stride 3": {"kernel_size": 5, "stride": 3, "padding": 2, "channels": 33},
    "strides beyond the kernel": {"kernel_size": (2, 3), "stride": (3, 2), "padding": 1},
    "patches": {"kernel_size": 4, "stride": 4, "channels": 3},
    "the stem of a ResNet": {"kernel_size": 7, "stride": 2, "padding": 3, "channels": 3},
    "the stem of a SqueezeNet": {"kernel_size": 3, "stride": 2, "channels": 3},
    "a stem of grey images": {"kernel_size": (4, 3), "stride": 3, "padding": (0, 1), "channels": 1},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "same": {"kernel_size": 4, "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}
METHODS = ["gradient", "normgrad", "grad_cam_pp", "guided_backprop"]
EXCITATION = ["excitation_backprop", "contrastive_excitation_backprop"]
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def block(channels: int = 4, **geometry: object) -> nn.Module:
    """A convolution and a batch norm with seeded weights and statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 6, **geometry), nn.BatchNorm2d(6))  # type: ignore[arg-type]
    for t in (model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias):
        nn.init.uniform_(t, 0.5, 2)
    return model.double().eval().requires_grad_(False)


def way_back(model: Callable[[Tensor], Tensor], x: Tensor, cache: WeightCache) -> Tensor:
    """What comes back to `x` of a seeded signal, through a graph made with `cache`."""
    x = x.detach().requires_grad_()
    with RuleSwitch([GRADIENT], cache):
        output = model(x)
    signal = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    (g,) = torch.autograd.grad(output, x, signal)
    return g


def expected_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    output = model(x)
    signal = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    (g,) = torch.autograd.grad(output, x, signal)
    return g


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_way_back_is_pytorchs(
    name: str, dtype: torch.dtype, tolerance: float, layout: torch.memory_format
) -> None:
    geometry = GEOMETRIES[name]
    model = block(**geometry).to(dtype=dtype, memory_format=layout)
    cache = WeightCache()
    for height, width in ((13, 10), (12, 15)):  # the second size with the cache of the first
        x = torch.randn(2, model[0].in_channels, height, width, dtype=dtype)
        x = x.contiguous(memory_format=layout)
        for part in (model[0], model):
            found, expected = way_back(part, x, cache), expected_of(part, x)
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_weight_that_is_written_to_is_read_again() -> None:
    model, cache = block(kernel_size=3), WeightCache()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    before = way_back(model, x, cache)
    for parameter in (model[0].weight, model[1].weight, model[1].running_var):
        parameter.mul_(2)
        found = way_back(model, x, cache)
        assert not torch.allclose(found, before)
        torch.testing.assert_close(found, expected_of(model, x))
        before = found


@pytest.mark.parametrize("between", ["read twice", "written to", "half of it"])
def test_what_lies_between_a_convolution_and_its_norm_counts(between: str) -> None:
    model = block(kernel_size=3)

    def run(x: Tensor) -> Tensor:
        y = model[0](x)
        if between == "written to":
            y *= 3
        z = model[1](y[:, :6] * 2 if between == "half of it" else y)
        return z + y if between == "read twice" else z

    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(way_back(run, x, WeightCache()), expected_of(run, x))


def test_a_tap_between_a_convolution_and_its_norm_has_the_gradient_there() -> None:
    model = nn.Sequential(block(3, kernel_size=3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    maps = Explainer(model, ["input", "0.0"], ["gradient_sum"])(x, torch.tensor([[1], [4]]))
    y = model[0][0](x).requires_grad_()
    scores = model[2](model[1](model[0][1](y)))
    (g,) = torch.autograd.grad(scores[0, 1] + scores[1, 4], y)
    torch.testing.assert_close(maps["gradient_sum", "0.0"][:, 0], g.sum(1))


class _Autocast(nn.Module):
    """A network that casts itself, with layers of every kind that has another way back."""

    def __init__(self, *, casts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        last = (nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 5))
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *last)
        self.casts = casts

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.casts):
            logits: Tensor = self.layers(x)
        return logits.float()


def test_under_autocast_the_way_back_is_pytorchs() -> None:
    model = _Autocast(casts=True).eval()
    x = torch.rand(2, 3, 16, 16)
    found = way_back(model, x, WeightCache())
    assert torch.equal(found, expected_of(model, x))
    uncast = expected_of(_Autocast(casts=False).eval(), x)
    assert not torch.equal(found, uncast)
    torch.testing.assert_close(found, uncast, rtol=0, atol=0.1 * float(uncast.abs().amax()))


def test_under_autocast_maps_are_those_of_the_weights_but_for_rounding() -> None:
    targets = torch.tensor([[1], [4]])
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for layer, methods in (("layers.3", ["normgrad_real", *EXCITATION]), ("layers.2", METHODS)):
        found, uncast = (
            Explainer(_Autocast(casts=casts), [layer], methods)(x, targets)
            for casts in (True, False)
        )
        for method in methods:
            expected = uncast[method, layer]
            largest = float(expected.abs().amax())
            torch.testing.assert_close(found[method, layer], expected, rtol=0, atol=0.05 * largest)


def test_the_forward_pass_keeps_its_bits() -> None:
    model = block(kernel_size=7, stride=2, padding=3, channels=3).float()
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with RuleSwitch([GRADIENT], WeightCache()):
        found = model(x.clone().requires_grad_())
    assert torch.equal(found, model(x))


def test_weights_in_place_of_the_models_own_are_not_kept() -> None:
    model, cache = block(kernel_size=3), WeightCache()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    other = copy.deepcopy(model)
    other[0].weight.add_(1)
    stepped = {name: p.detach().clone() for name, p in other.named_parameters()}

    def run(x: Tensor) -> Tensor:
        return torch.func.functional_call(model, stepped, (x,))

    way_back(model, x, cache)
    kept = len(cache)
    torch.testing.assert_close(way_back(run, x, cache), expected_of(other, x))
    assert len(cache) == kept
    assert F.conv2d is torch.conv2d  # which the calls of modules and functions both are


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_way_back_by_other_weights_is_pytorchs(
    name: str, dtype: torch.dtype, tolerance: float, layout: torch.memory_format
) -> None:
    model, cache = block(**GEOMETRIES[name]).to(dtype=dtype, memory_format=layout), WeightCache()
    stepped = {key: p.detach() + 1 for key, p in model.named_parameters()}

    def run(x: Tensor) -> Tensor:
        return torch.func.functional_call(model, stepped, (x,))

    x = torch.randn(2, model[0].in_channels, 13, 10, dtype=dtype).contiguous(memory_format=layout)
    found, expected = way_back(run, x, cache), expected_of(run, x)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert not len(cache)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 1), nn.Linear(4, 6)], ids=["1 x 1", "linear"])
def test_other_weights_that_are_written_to_before_the_way_back_are_an_error(
    layer: nn.Module,
) -> None:
    stepped = {key: p.detach().clone() for key, p in layer.named_parameters()}
    x = torch.randn(2, 4, 3, 4, requires_grad=True)
    with RuleSwitch([GRADIENT], WeightCache()):
        output = torch.func.functional_call(layer, stepped, (x,))
    stepped["weight"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output, x, torch.ones_like(output))


class _Namespaces(TorchDispatchMode):
    """Notes whose operations are called: `aten`, `mkldnn`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.namespace)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "by_kernels"), [("cpu", torch.backends.mkldnn.is_available()), ("meta", False)]
)
def test_kernels_of_the_cpu_are_for_the_cpu(device: str, by_kernels: bool) -> None:
    namespaces = {"aten", "mkldnn"} if by_kernels else {"aten"}
    model = nn.Sequential(block(kernel_size=1), block(6, kernel_size=1)[0], nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(6 * 13 * 10, 5)).float().requires_grad_(False)
    model.to(device, memory_format=torch.channels_last)
    x = torch.empty(2, 4, 13, 10, device=device).contiguous(memory_format=torch.channels_last)
    weight = nn.Parameter(torch.empty(6, 4, 1, 1, device=device), requires_grad=False)
    with _Namespaces() as called:
        way_back(model, x, WeightCache())
    assert called.seen == namespaces
    with _Namespaces() as called:
        switch = RuleSwitch([GRADIENT], WeightCache())
        switch.run(torch.conv2d, x.requires_grad_(), weight, exact=False)
    assert called.seen == namespaces


class _Tokens(nn.Module):
    """A batch norm behind a ReLU, read location by location; or the same as a scaling."""

    def __init__(self, *, scales: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 5)
        for t in (self.norm.running_var, self.norm.weight, self.norm.bias):
            nn.init.uniform_(t, 0.5, 2)
        self.scales = scales
        self.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x, norm = self.conv(x).relu(), self.norm
        if self.scales:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            x = x * scale[:, None, None] + shift[:, None, None]
        else:
            x = norm(x)
        logits: Tensor = self.head(x.flatten(2).transpose(1, 2)).square().mean(1)
        return logits


def test_a_signal_in_another_layout_passes_a_batch_norm() -> None:
    images, targets = torch.randn(1, 3, 9, 9, dtype=torch.float64), torch.tensor([[1]])
    found, expected = (
        Explainer(_Tokens(scales=scales), ["conv"], ["gradient"])(images, targets)[
            "gradient", "conv"
        ]
        for scales in (False, True)
    )
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
