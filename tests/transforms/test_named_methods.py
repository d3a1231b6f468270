"""Named methods equal Captum's and pytorch-grad-cam's, where these define the same map.

Both libraries explain a copy of the network that writes nothing in place and has one ReLU module a
call (`networks.out_of_place`); the engine explains torchvision's network as it is.
"""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from captum import attr
from networks import ANYWHERE, LAYERS, SIZES, images, network, out_of_place
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from torch import Tensor, nn

from transforms.engine import Explainer
from transforms.extract import Activation, Tapped
from transforms.maps import Maps
from transforms.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference, relative to the largest magnitude in a map."""


@dataclass(frozen=True)
class Case:
    """One network, explained by the engine, and its copy, explained by Captum."""

    copy: nn.Module
    layers: dict[str, nn.Module]  # the copy's, without the input
    images: Tensor
    targets: Tensor
    maps: Maps

    def map(self, method: str, layer: str) -> Tensor:
        return self.maps[method, layer][:, 0]

    @cached_property
    def activations(self) -> list[Tensor]:
        return attr.LayerActivation(self.copy, [*self.layers.values()]).attribute(self.images)

    @cached_property
    def gradients(self) -> list[Tensor]:
        local = attr.LayerGradientXActivation(
            self.copy, [*self.layers.values()], multiply_by_inputs=False
        )
        return local.attribute(self.images, self.targets)

    @property
    def tapped(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, activation and gradient of each layer."""
        return zip(self.layers, self.activations, self.gradients, strict=True)


@pytest.fixture(
    scope="module",
    params=itertools.product(LAYERS, TOLERANCE),
    ids=lambda param: f"{param[0]}-{str(param[1])[6:]}",
)
def case(request: pytest.FixtureRequest) -> Case:
    name, dtype = request.param
    model, batch = network(name, dtype), images(2, SIZES[name], dtype)
    # The likeliest class: SqueezeNet ends in a ReLU, whose zeros have no gradient.
    explainer = Explainer(model, LAYERS[name], ANYWHERE)
    maps = explainer(batch, [lambda logits: [int(logits.argmax())]] * 2)
    copy = out_of_place(model, batch)
    with torch.no_grad():
        torch.testing.assert_close(maps.logits, copy(batch))
    layers = {layer: copy.get_submodule(layer) for layer in LAYERS[name] if layer != "input"}
    return Case(copy, layers, batch, maps.targets[:, 0], maps)


def _assert_equal(ours: Tensor, theirs: Tensor | np.ndarray) -> None:
    theirs = torch.as_tensor(theirs).detach()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    for our_map, their_map in zip(ours, theirs, strict=True):
        largest = their_map.abs().max()
        assert largest > 0
        assert (our_map - their_map).abs().max() <= TOLERANCE[ours.dtype] * largest


def test_gradient_at_the_input_is_captums_saliency(case: Case) -> None:
    saliency = attr.Saliency(case.copy).attribute(case.images, case.targets)
    _assert_equal(case.map("gradient", "input"), saliency.amax(1))


def test_linear_approx_at_the_input_is_captums_input_x_gradient(case: Case) -> None:
    product = attr.InputXGradient(case.copy).attribute(case.images, case.targets)
    _assert_equal(case.map("linear_approx", "input"), product.sum(1))


def test_linear_approx_at_a_layer_is_captums_gradient_x_activation(case: Case) -> None:
    for layer, module in case.layers.items():
        product = attr.LayerGradientXActivation(case.copy, module)
        _assert_equal(
            case.map("linear_approx", layer), product.attribute(case.images, case.targets).sum(1)
        )


def test_gradient_at_a_layer_is_captums_local_layer_gradient(case: Case) -> None:
    for layer, _, g in case.tapped:
        _assert_equal(case.map("gradient", layer), g.abs().amax(1))
        _assert_equal(case.map("gradient_sum", layer), g.sum(1))


@pytest.mark.parametrize(
    ("prefix", "rule"),
    [("guided_backprop", attr.GuidedBackprop), ("deconvnet", attr.Deconvolution)],
)
def test_guided_and_deconvnet_at_the_input_are_captums(case: Case, prefix: str, rule: type) -> None:
    with warnings.catch_warnings(action="ignore"):  # "Setting backward hooks on ReLU activations"
        g = rule(case.copy).attribute(case.images, case.targets)
    _assert_equal(case.map(prefix, "input"), g.abs().amax(1))
    _assert_equal(case.map(f"{prefix}_sum", "input"), g.sum(1))


def test_grad_cam_is_captums_without_its_relu(case: Case) -> None:
    for layer, module in case.layers.items():
        cam = attr.LayerGradCam(case.copy, module).attribute(
            case.images, case.targets, relu_attributions=False
        )
        _assert_equal(case.map("grad_cam", layer), cam[:, 0])


def test_cams_are_pytorch_grad_cams_below_its_relu_and_scaling(case: Case) -> None:
    hooks = ActivationsAndGradients(case.copy, case.layers.values(), reshape_transform=None)
    hooks(case.images).gather(1, case.targets[:, None]).sum().backward()
    for name, x, g in zip(case.layers, hooks.activations, hooks.gradients, strict=True):
        for method, kind in CAMS.items():
            cam = _raw_cam(kind, case.copy, case.layers[name], x, g)
            _assert_equal(case.map(method, name), cam)
    hooks.release()


CAMS = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "xgrad_cam": pytorch_grad_cam.XGradCAM,
    "hires_cam": pytorch_grad_cam.HiResCAM,
    "layer_cam": pytorch_grad_cam.LayerCAM,
}


def _raw_cam(kind: type, model: nn.Module, layer: nn.Module, x: Tensor, g: Tensor) -> np.ndarray:
    cam = kind(model, [layer])
    try:
        return cam.get_cam_image(None, layer, None, x.numpy(), g.numpy(), eigen_smooth=False)
    finally:
        cam.activations_and_grads.release()


def test_grad_cam_pp_is_pytorch_grad_cams_where_its_guard_is_negligible() -> None:
    # Its denominator is 2 g² + g³ Σx + 1e-6, ours has no guard: gradients of 1e3 to 1e4 drown it,
    # and activations of 1e-4 keep both other terms of the same size.
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(2, 7, 5, 3, generator=generator, dtype=torch.float64)
    g = g.sign() * (1e3 + 9e3 * g.abs().clamp_max(1)) * (g.abs() > 0.3)
    x = 1e-4 * torch.rand(g.shape, generator=generator, dtype=torch.float64)
    x = x * (x > 3e-5)

    ours = METHODS["grad_cam_pp"].map(Tapped(Activation(x), g))

    layer = nn.Identity()
    model = nn.Sequential(nn.Conv2d(1, 1, 1), layer)
    theirs = _raw_cam(pytorch_grad_cam.GradCAMPlusPlus, model, layer, x, g)
    _assert_equal(ours, theirs)


def test_grad_cam_pp_gives_no_weight_where_its_denominator_vanishes() -> None:
    x = torch.tensor([[[[-2.0, 0.0]], [[1.0, 3.0]]]])  # sums over space: -2 and 4
    g = torch.tensor([[[[1.0, 0.5]], [[1.0, -1.0]]]])  # 2 + 1 · -2 = 0
    found = METHODS["grad_cam_pp"].map(Tapped(Activation(x), g))
    torch.testing.assert_close(found, 0.5 / (2 - 1) * x[:, 0] + 1 / (2 + 4) * x[:, 1])


def test_grad_cam_pp_of_a_network_is_the_papers_equations(case: Case) -> None:
    for layer, x, g in case.tapped:
        if case.images.dtype == torch.float32 and x.min() < 0:
            continue  # 2 + g Σx may be nearly 0 for signed activations: float64 alone can compare
        x, g = x.double(), g.double()
        denominator = 2 * g**2 + g**3 * x.sum((2, 3), keepdim=True)
        alpha = torch.where(g == 0, 0, g**2 / denominator)
        weights = (alpha * g.clamp_min(0)).sum((2, 3), keepdim=True)
        cam = (weights * x).sum(1)
        _assert_equal(case.map("grad_cam_pp", layer), cam.to(case.images.dtype))


def test_norms_are_the_papers_formulas_on_captums_gradients(case: Case) -> None:
    for layer, x, g in case.tapped:
        product = (x * x).sum(1).sqrt() * (g * g).sum(1).sqrt()
        _assert_equal(case.map("normgrad", layer), product)
        selective = (x * g).clamp_min(0).square().sum(1).sqrt()
        _assert_equal(case.map("normgrad_selective", layer), selective)
