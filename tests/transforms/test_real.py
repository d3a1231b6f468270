"""Without virtual identity: what each location adds to the gradient of a convolution's weights."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from networks import images, network, small
from torch import Tensor, nn

from transforms.aggregate import AGGREGATES
from transforms.engine import Explainer
from transforms.taps import LayerError

CONVOLUTIONS = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3},
    "3x3, padding 1": {"kernel_size": 3, "padding": 1},
    "7x7, stride 2": {"kernel_size": 7, "stride": 2, "padding": 3},
    "stride over the edge": {"kernel_size": 2, "stride": 3},
    "oblong": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "oblong dilation": {"kernel_size": (2, 3), "dilation": (3, 1), "stride": (1, 2)},
    "padding same": {"kernel_size": 3, "padding": "same"},
    "padding same, even kernel": {"kernel_size": 4, "padding": "same"},
    "padding same, dilation": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "padding valid": {"kernel_size": 3, "padding": "valid"},
    "two groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "stride": 2},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 5, "padding": 2, "padding_mode": "circular", "stride": 2},
    "replicate": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"},
    "reflect, same, even kernel": {
        **{"kernel_size": 4, "padding": "same", "padding_mode": "reflect"}
    },
}
METHODS = [f"plain:real:{aggregate}" for aggregate in AGGREGATES]


class _Around(nn.Module):
    """A convolution between two others, whose input is signed and written over afterwards."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 8, **settings)
        self.after = nn.Conv2d(8, 5, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = self.conv(x)
        x.zero_()
        return self.after(torch.tanh(y)).mean((2, 3))


def _weight_gradient(model: _Around, image: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the convolution has: its input, the gradient at its output, and that of its weights."""
    x = model.before(image).detach()
    y = model.conv(x)
    logit = model.after(torch.tanh(y)).mean((2, 3))[0, target]
    g, weight = torch.autograd.grad(logit, [y, model.conv.weight])
    return x, g, weight


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if conv.padding == "valid":
        return x
    if conv.padding == "same":
        # PyTorch's: the odd row or column of an even kernel goes to the bottom and the right.
        total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        around = [(t // 2, t - t // 2) for t in total]
    else:
        around = [(p, p) for p in conv.padding]
    mode = conv.padding_mode.replace("zeros", "constant")
    return F.pad(x, [*around[1], *around[0]], mode=mode)


def _entries(conv: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """The contribution in full `[O, C / groups, kh, kw, h, w]`, of one image."""
    groups, (kh, kw) = conv.groups, conv.kernel_size
    patches = F.unfold(_padded(conv, x), (kh, kw), conv.dilation, 0, conv.stride)
    patches = patches.view(groups, x.shape[1] // groups, kh, kw, *g.shape[2:])
    by_group = g.view(groups, -1, *g.shape[2:])
    return torch.einsum("gohw,gcijhw->gocijhw", by_group, patches).flatten(0, 1)


def _aggregated(aggregate: str, entries: Tensor) -> Tensor:
    flat = entries.flatten(0, 3)
    return {
        "sum": lambda: flat.sum(0),
        "norm": lambda: flat.square().sum(0).sqrt(),
        "filter_norm": lambda: flat.clip(min=0).square().sum(0).sqrt(),
        "max": lambda: flat.max(0).values,
        "max_abs": lambda: flat.abs().max(0).values,
    }[aggregate]()


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_real_equals_the_contribution_built_in_full(settings: str) -> None:
    model, batch, targets = _Around(CONVOLUTIONS[settings]), images(2, 11), [3, 0]
    with Explainer(model, ["conv"], METHODS) as explainer:
        maps = explainer(batch, torch.tensor(targets)[:, None])
    for row, target in enumerate(targets):
        x, g, weight = _weight_gradient(model, batch[row : row + 1], target)
        entries = _entries(model.conv, x, g)
        # What the whole is about: over all locations the entries are the weights' gradient.
        torch.testing.assert_close(entries.sum((-2, -1)), weight, rtol=1e-10, atol=1e-14)
        for aggregate in AGGREGATES:
            found = maps[f"plain:real:{aggregate}", "conv"][row, 0]
            expected = _aggregated(aggregate, entries)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() <= 1e-10 * entries.abs().max(), aggregate
        over_space = maps["plain:real:sum", "conv"][row, 0].sum()
        torch.testing.assert_close(over_space, weight.sum(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_over_all_locations_it_is_the_gradient_that_a_backward_leaves(name: str) -> None:
    """In torchvision's networks, by `conv.weight.grad`: padded, strided, 1×1 and depthwise."""
    model, batch = copy.deepcopy(network(name, torch.float64)), images(1, 64)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)][::5]
    maps = Explainer(model, layers, ["plain:real:sum", "normgrad_real"])(batch, torch.tensor([[3]]))
    model.requires_grad_().zero_grad()
    model(batch)[0, 3].backward()
    for layer in layers:
        gradient = model.get_submodule(layer).weight.grad
        found = maps["plain:real:sum", layer].sum()
        scale = maps["normgrad_real", layer].sum()
        assert (found - gradient.sum()).abs() <= 1e-9 * scale, layer
        assert scale > 0


def test_each_rule_has_its_own_contribution() -> None:
    model, batch, targets = small(), images(), torch.tensor([[1], [3]])
    rules = ["plain", "guided", "deconvnet"]
    methods = [f"{rule}:{extract}:sum" for rule in rules for extract in ("real", "bias")]
    maps = Explainer(model, ["conv3"], methods)(batch, targets)
    for rule in rules[1:]:
        assert not torch.equal(maps[f"{rule}:real:sum", "conv3"], maps["plain:real:sum", "conv3"])


def test_a_1x1_convolution_is_the_virtual_one_on_its_input_and_its_outputs_gradient() -> None:
    model = network("resnet18", torch.float64)
    batch, targets = images(2, 64), torch.tensor([[1], [3]])
    layer, below = "layer2.0.downsample.0", "layer1"  # stride 2: it reads every other cell
    maps = Explainer(model, [layer], ["normgrad_real", "plain:bias:norm"])(batch, targets)
    x = Explainer(model, [below], ["plain:scaling:norm"])
    with x:
        x.taps.start(batch)
        model(batch)
        read = x.taps.activations()[0].detach()[:, :, ::2, ::2]
    expected = read.square().sum(1).sqrt()[:, None] * maps["plain:bias:norm", layer]
    torch.testing.assert_close(maps["normgrad_real", layer], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("layer", ["input", "pool", "bn1", "relu3"])
@pytest.mark.parametrize("method", ["normgrad_real", "guided:real:max"])
def test_a_layer_that_is_no_convolution_is_answered_with_those_that_are(
    layer: str, method: str
) -> None:
    message = f"{method} needs convolution layers, which {layer} is not; valid: stem, conv2, conv3"
    with pytest.raises(LayerError, match=re.escape(message) + "$"):
        Explainer(small(), ["conv3", layer], ["gradient", method])


def test_several_wrong_layers_are_all_named() -> None:
    with pytest.raises(LayerError, match="which pool, relu3 are not; valid: stem, conv2, conv3"):
        Explainer(small(), ["pool", "conv3", "relu3"], ["normgrad_real"])
