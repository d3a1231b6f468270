"""A real network with real batch norm: EfficientNet-Lite0 with its ImageNet weights, in float64.

Every method is compared with plain autograd on a forward pass that is written out here, and
excitation backprop with a propagation by hand that knows no autograd.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0 import STAGES, network
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from transforms.engine import Explainer
from transforms.maps import Maps
from transforms.methods import METHODS
from transforms.receptive_field import trace_geometry
from transforms.taps import LayerError

LAYERS = ("input", *STAGES)
CONVOLUTIONS = ("_blocks.3._expand_conv", "_blocks.15._project_conv")
SIZE = (96, 128)
TOP, OTHER = 0, 1
EXACT = {"rtol": 1e-10, "atol": 0.0}
Relu = Callable[[Tensor], Tensor]


@cache
def net() -> EfficientNet:
    return network().double()


@cache
def image() -> Tensor:
    """A smooth picture of the range that the network was trained on."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(5)).double()
    return F.interpolate(coarse, SIZE, mode="bicubic").clamp(0, 1) * 2 - 1


@cache
def targets() -> list[int]:
    """The most likely class, and one that is not."""
    with torch.no_grad():
        return [int(net()(image()).argmax()), 207]


@cache
def found() -> Maps:
    methods = [name for name, method in METHODS.items() if not method.needs_convolution]
    return Explainer(net(), LAYERS, methods)(image(), torch.tensor([targets()]))


# By plain autograd


def written_out(x: Tensor, relu: Relu) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the activations by name: the network's own modules, its own code not."""
    model = net()
    taps = {"input": x}
    x = relu(model._bn0(model._conv_stem(x)))
    for i, block in enumerate(model._blocks):
        before = x
        if block._block_args.expand_ratio != 1:
            x = relu(block._bn0(block._expand_conv(x)))
        x = relu(block._bn1(block._depthwise_conv(x)))
        x = block._bn2(block._project_conv(x))
        if x.shape == before.shape and block._block_args.stride == 1:
            x = x + before
        taps[f"_blocks.{i}"] = x
    x = relu(model._bn1(model._conv_head(x)))
    return model._fc(x.mean((2, 3))), taps


class Guided(torch.autograd.Function):
    """ReLU6 whose backward lets positive signals through where it is open."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < 6))
        return x.clamp(0, 6)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (is_open,) = ctx.saved_tensors
        return g * is_open * (g > 0)


class Deconvnet(torch.autograd.Function):
    """ReLU6 whose backward lets positive signals through everywhere."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        return g * (g > 0)


RELUS: dict[str, Relu] = {"plain": F.relu6, "guided": Guided.apply, "deconvnet": Deconvnet.apply}


@cache
def differentiated(rule: str, target: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Activation and gradient `[C, h, w]` by layer."""
    x = image().clone().requires_grad_()
    logits, taps = written_out(x, RELUS[rule])
    gradients = torch.autograd.grad(logits[0, targets()[target]], [taps[name] for name in LAYERS])
    return {name: (taps[name][0].detach(), g[0]) for name, g in zip(LAYERS, gradients, strict=True)}


def grad_cam_pp(x: Tensor, g: Tensor) -> Tensor:
    """Equations 11 and 19 of Chattopadhay et al., whose powers need no guard in float64."""
    cube = g**3 * x.sum((1, 2), keepdim=True)
    alpha = torch.where(g > 0, g**2 / (2 * g**2 + cube), 0)
    return ((alpha * g).sum((1, 2), keepdim=True) * x).sum(0)


def magnified(x: Tensor, g: Tensor) -> float:
    """How many times larger a rounding gets by a denominator 2 + g Σ x that is close to zero."""
    product = g.clamp_min(0) * x.sum((1, 2), keepdim=True)
    return float((product / (2 + product)).abs().max())


PLAINLY: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "gradient": ("plain", lambda x, g: g.abs().amax(0)),
    "gradient_sum": ("plain", lambda x, g: g.sum(0)),
    "linear_approx": ("plain", lambda x, g: (x * g).sum(0)),
    "normgrad": ("plain", lambda x, g: (x**2).sum(0).sqrt() * (g**2).sum(0).sqrt()),
    "normgrad_selective": ("plain", lambda x, g: ((x * g).clamp_min(0) ** 2).sum(0).sqrt()),
    "guided_backprop": ("guided", lambda x, g: g.abs().amax(0)),
    "guided_backprop_sum": ("guided", lambda x, g: g.sum(0)),
    "deconvnet": ("deconvnet", lambda x, g: g.abs().amax(0)),
    "deconvnet_sum": ("deconvnet", lambda x, g: g.sum(0)),
    "grad_cam": ("plain", lambda x, g: torch.tensordot(g.mean((1, 2)), x, 1)),
    "grad_cam_pp": ("plain", grad_cam_pp),
    "xgrad_cam": (
        "plain",
        lambda x, g: torch.tensordot((x * g).sum((1, 2)) / (x.sum((1, 2)) + 1e-7), x, 1),
    ),
    "hires_cam": ("plain", lambda x, g: (x * g).sum(0)),
    "layer_cam": ("plain", lambda x, g: (x * g.clamp_min(0)).sum(0)),
}


@pytest.mark.parametrize("method", PLAINLY)
def test_every_method_is_plain_autograd(method: str) -> None:
    rule, formula = PLAINLY[method]
    for k in (TOP, OTHER):
        for layer, (x, g) in differentiated(rule, k).items():
            expected = formula(x, g)
            error = (found()[method, layer][0, k] - expected).abs().max()
            tolerance = 1e-10
            if method == "grad_cam_pp":
                tolerance = max(tolerance, 1e-12 * magnified(x, g))
            assert error <= tolerance * expected.abs().max(), (layer, k)


def test_every_named_method_is_compared() -> None:
    by_hand = {"excitation_backprop", "contrastive_excitation_backprop", "normgrad_real"}
    assert {*PLAINLY, *by_hand} == METHODS.keys()
    torch.testing.assert_close(found().logits, written_out(image(), F.relu6)[0].detach(), **EXACT)


def test_normgrad_of_a_real_convolution_is_the_norm_of_its_products() -> None:
    maps = Explainer(net(), CONVOLUTIONS, ["normgrad_real"])(image(), torch.tensor([targets()[:1]]))
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    modules = dict(net().named_modules())
    handles = [
        modules[name].register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, (args[0], output))
        )
        for name in CONVOLUTIONS
    ]
    logits = net()(image().clone().requires_grad_())
    for handle in handles:
        handle.remove()
    outputs = [kept[name][1] for name in CONVOLUTIONS]
    gradients = torch.autograd.grad(logits[0, targets()[TOP]], outputs)
    for name, g in zip(CONVOLUTIONS, gradients, strict=True):
        # A kernel of one pixel reads one location: its products are an outer product.
        x = kept[name][0].detach()
        products = torch.einsum("bchw,bdhw->bcdhw", g, x)
        torch.testing.assert_close(maps["normgrad_real", name][:, 0], products.norm(dim=(1, 2)))


def test_a_convolution_that_pads_by_itself_is_refused_by_name() -> None:
    """What it reads is not what its kernel sees."""
    explainer = Explainer(net(), ["_blocks.1._depthwise_conv"], ["normgrad_real"])
    with pytest.raises(LayerError, match=r"'_blocks.1._depthwise_conv'.*pads"):
        explainer(image(), torch.tensor([[0]]))


# Excitation backprop by hand


@dataclass
class ByHand:
    """The signals of one class by layer, by the equations of the paper."""

    contrasts: bool
    steps: list[tuple[str, Callable[[Tensor], Tensor]]] = field(default_factory=list)

    @torch.no_grad()
    def signals(self, target: int) -> dict[str, Tensor]:
        p = self.head_signal(target)
        return dict(self.walk(p))

    def head_signal(self, target: int) -> Tensor:
        model = net()
        x = self.activations()
        pooled = x.mean((2, 3)).clamp_min(0)[0]
        weight = model._fc.weight[target]
        shares = share(pooled * weight.clamp_min(0))
        if self.contrasts:
            shares = shares - share(pooled * (-weight).clamp_min(0))
        # The average: each location by its share of the channel's positive sum.
        positive = x.clamp_min(0)
        total = positive.sum((2, 3), keepdim=True)
        return torch.where(total > 0, positive / total, 0) * shares[None, :, None, None]

    def activations(self) -> Tensor:
        """The input of the pooling; every block's inputs are kept on the way."""
        model = net()
        self.steps.clear()
        x = image()
        self.steps.append(("input", through(model._conv_stem, x)))
        x = F.relu6(model._bn0(model._conv_stem(x)))
        for i, block in enumerate(model._blocks):
            own = []
            before = x
            if block._block_args.expand_ratio != 1:
                own.append(through(block._expand_conv, x))
                x = F.relu6(block._bn0(block._expand_conv(x)))
            own.append(through(block._depthwise_conv, x))
            x = F.relu6(block._bn1(block._depthwise_conv(x)))
            own.append(through(block._project_conv, x))
            x = block._bn2(block._project_conv(x))
            if block._block_args.stride == 1 and x.shape == before.shape:
                a, b = x.clamp_min(0), before.clamp_min(0)
                self.steps.append((f"_blocks.{i - 1}", residual(a, b, own)))
                x = x + before
            else:
                self.steps.append((f"_blocks.{i - 1}" if i else "stem", chained(own)))
        self.steps.append(("_blocks.15", through(model._conv_head, x)))
        return F.relu6(model._bn1(model._conv_head(x)))

    def walk(self, p: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, down in reversed(self.steps):
            p = down(p)
            yield name, p


def share(excited: Tensor) -> Tensor:
    total = excited.sum()
    return excited / total if total > 0 else torch.zeros_like(excited)


def through(conv: nn.Conv2d, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`x₊ ⊙ Wᵀ₊(p ⊘ W₊ x₊)`, of the padded input; what falls on the padding has no excitation."""
    padded = conv.static_padding(x).clamp_min(0)
    weight = conv.weight.clamp_min(0)
    z = F.conv2d(padded, weight, None, conv.stride, 0, 1, conv.groups)

    def down(p: Tensor) -> Tensor:
        ratio = torch.where(z > 0, p / z, 0)
        missing = [
            padded.shape[2 + d] - ((z.shape[2 + d] - 1) * conv.stride[d] + weight.shape[2 + d])
            for d in (0, 1)
        ]
        back = F.conv_transpose2d(ratio, weight, None, conv.stride, 0, missing, conv.groups)
        return unpadded(conv.static_padding, padded * back)

    return down


def unpadded(padding: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(padding, nn.ZeroPad2d):
        return x
    left, right, top, bottom = padding.padding
    return x[..., top : x.shape[2] - bottom, left : x.shape[3] - right]


def chained(steps: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def down(p: Tensor) -> Tensor:
        for step in reversed(steps):
            p = step(p)
        return p

    return down


def residual(
    a: Tensor, b: Tensor, branch: list[Callable[[Tensor], Tensor]]
) -> Callable[[Tensor], Tensor]:
    """A sum hands each of its terms the share that its positive part has of both."""
    total = a + b

    def down(p: Tensor) -> Tensor:
        of_branch = torch.where(total > 0, a / total, 0)
        of_identity = torch.where(total > 0, b / total, 0)
        return chained(branch)(p * of_branch) + p * of_identity

    return down


@pytest.mark.parametrize("contrasts", [False, True])
def test_excitation_backprop_is_the_propagation_by_hand(contrasts: bool) -> None:
    method = "contrastive_excitation_backprop" if contrasts else "excitation_backprop"
    for k in (TOP, OTHER):
        signals = ByHand(contrasts).signals(targets()[k])
        for layer in LAYERS:
            expected = signals[layer].sum(1)[0]
            error = (found()[method, layer][0, k] - expected).abs().max()
            assert error <= 1e-9 * expected.abs().max(), (layer, k)


def test_its_cells_lie_half_a_stride_off_bilinears_the_other_way_than_mobilenets() -> None:
    """Cell i of the last block sits at pixel 32 i + 31, and bilinear puts it at 32 i + 15.5."""
    for i, layer in enumerate(STAGES):
        stride = 2 ** (i + 1)
        geometry = trace_geometry(net(), [layer], (224, 224))[layer]
        assert (geometry.rows.stride, geometry.rows.offset) == (stride, stride - 1)
        assert geometry.columns == geometry.rows
