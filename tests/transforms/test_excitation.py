"""Excitation backprop equals a propagation by hand, module by module, that knows no autograd."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import SIZES, images, network
from torch import Tensor, nn
from torchvision import models
from torchvision.models.densenet import _DenseBlock, _DenseLayer, _Transition
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.ops import FrozenBatchNorm2d

from transforms.engine import Explainer
from transforms.excitation import UnsupportedOperationError
from transforms.map_key import NO_TARGET

EXCITATION = "excitation_backprop"
CONTRASTIVE = "contrastive_excitation_backprop"

LAYERS = {
    "vgg16": ["input", "features.4", "features.14", "features.29", "avgpool"],
    "resnet18": ["input", "maxpool", "layer1", "layer2.0.conv1", "layer3.0.bn2", "layer4"],
    "resnet50": ["input", "bn1", "layer1", "layer2.0.downsample", "layer3.1.conv2", "layer4"],
    "squeezenet1_1": ["input", "features.1", "features.3.expand3x3", "features.7", "features.12"],
    "densenet121": [
        *("input", "features.pool0", "features.denseblock1.denselayer3.conv1"),
        *("features.transition1", "features.denseblock3", "features.norm5"),
    ],
}
CONTRAST_LAYERS = {
    "vgg16": "classifier.4",
    "resnet18": "avgpool",
    "resnet50": "avgpool",
    "squeezenet1_1": "classifier.0",
    "densenet121": "pooled",
}
"""Where the two passes are subtracted, as in TorchRay; elsewhere at the classifier's input."""

Down = Callable[[Tensor], Tensor]
"""The signal at a module's output to the signal at its input."""


class ByHand:
    """Runs torchvision's modules one by one, each of which gives its output and its way down.

    `signals` are those that have passed the output of each module, by name.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.classifier = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        self.is_negated = False
        self.replaced: dict[str, Tensor] = {}
        self.signals: dict[str, Tensor] = {}
        with torch.no_grad():
            self.logits, self._down = self.run(model, images)

    def excitation(self, targets: Tensor) -> dict[str, Tensor]:
        """The signals of one class an image, `targets` `[B]`."""
        self.signals = {}
        self.signals["input"] = self._down(F.one_hot(targets, self.logits.shape[1]).double())
        return self.signals

    def contrastive(self, targets: Tensor, at: str) -> dict[str, Tensor]:
        """Two passes down to layer `at`, and their difference from there on."""
        positive = self.excitation(targets)[at]
        self.is_negated = True
        negative = self.excitation(targets)[at]
        self.is_negated, self.replaced = False, {at: positive - negative}
        return self.excitation(targets)

    def passed(self, name: str, down: Down) -> Down:
        def passing(p: Tensor) -> Tensor:
            self.signals[name] = p = self.replaced.get(name, p)
            return down(p)

        return passing

    def run(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Down]:
        y, down = KINDS[type(module)](self, module, x)
        return y, self.passed(self.names[module], down)

    def chain(self, modules: list[nn.Module], x: Tensor) -> tuple[Tensor, Down]:
        downs = []
        for module in modules:
            x, down = self.run(module, x)
            downs.append(down)

        def chained(p: Tensor) -> Tensor:
            for down in reversed(downs):
                p = down(p)
            return p

        return x, chained

    def positive(self, module: nn.Module) -> Tensor:
        weight = module.weight.detach()
        return (-weight if module is self.classifier and self.is_negated else weight).clip(min=0)

    def convolution(self, conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Down]:
        window = {"padding": conv.padding, "stride": conv.stride, "dilation": conv.dilation}

        def down(p: Tensor) -> Tensor:
            weight = self.positive(conv).flatten(1)
            total = weight @ F.unfold(x.clip(min=0), conv.kernel_size, **window)
            patches = weight.T @ _shared(p.flatten(2), total)
            return x.clip(min=0) * F.fold(patches, x.shape[2:], conv.kernel_size, **window)

        return conv(x), down

    def linear(self, module: nn.Linear, x: Tensor) -> tuple[Tensor, Down]:
        def down(p: Tensor) -> Tensor:
            weight = self.positive(module)
            return x.clip(min=0) * (_shared(p, x.clip(min=0) @ weight.T) @ weight)

        return module(x), down

    def unchanged(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Down]:
        return module(x.clone()), lambda p: p

    def largest(self, pool: nn.MaxPool2d, x: Tensor) -> tuple[Tensor, Down]:
        y, index = F.max_pool2d(
            *(x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode),
            return_indices=True,
        )

        def down(p: Tensor) -> Tensor:
            flat = torch.zeros_like(x).flatten(2)
            return flat.scatter_add_(2, index.flatten(2), p.flatten(2)).view_as(x)

        return y, down

    def average(self, x: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Down]:
        """Adaptive average pooling, cell by cell."""

        def bins(size: int, cells: int) -> list[slice]:
            return [slice(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]

        cells = [*itertools.product(*map(bins, x.shape[2:], sides))]
        y = torch.stack([x[:, :, r, c].mean((2, 3)) for r, c in cells], 2)

        def down(p: Tensor) -> Tensor:
            shared, excited = torch.zeros_like(x), x.clip(min=0)
            for i, (r, c) in enumerate(cells):
                inside = excited[:, :, r, c]
                total = inside.sum((2, 3), keepdim=True)
                shared[:, :, r, c] += inside * _shared(p.flatten(2)[:, :, i, None, None], total)
            return shared

        return y.unflatten(2, sides), down

    def adaptive(self, pool: nn.AdaptiveAvgPool2d, x: Tensor) -> tuple[Tensor, Down]:
        size = pool.output_size
        return self.average(x, size if isinstance(size, tuple) else (size, size))

    def halving(self, pool: nn.AvgPool2d, x: Tensor) -> tuple[Tensor, Down]:
        assert (pool.kernel_size, pool.stride, x.shape[2] % 2) == (2, 2, 0)
        return self.average(x, (x.shape[2] // 2, x.shape[3] // 2))

    def flattened(
        self, modules: list[nn.Module], head: nn.Module, x: Tensor
    ) -> tuple[Tensor, Down]:
        x, below = self.chain(modules, x)
        y, above = self.run(head, x.flatten(1))
        return y, lambda p: below(above(p).view_as(x))

    def vgg(self, model: models.VGG, x: Tensor) -> tuple[Tensor, Down]:
        return self.flattened([model.features, model.avgpool], model.classifier, x)

    def resnet(self, model: models.ResNet, x: Tensor) -> tuple[Tensor, Down]:
        stem = [model.conv1, model.bn1, model.relu, model.maxpool]
        stages = [model.layer1, model.layer2, model.layer3, model.layer4]
        return self.flattened([*stem, *stages, model.avgpool], model.fc, x)

    def squeezenet(self, model: models.SqueezeNet, x: Tensor) -> tuple[Tensor, Down]:
        y, down = self.chain([model.features, model.classifier], x)
        return y.flatten(1), lambda p: down(p[:, :, None, None])

    def densenet(self, model: models.DenseNet, x: Tensor) -> tuple[Tensor, Down]:
        x, below = self.run(model.features, x)
        pooled, middle = self.average(x.relu(), (1, 1))
        middle = self.passed("pooled", middle)
        y, above = self.run(model.classifier, pooled.flatten(1))
        return y, lambda p: below(middle(above(p)[:, :, None, None]))

    def residual(self, block: BasicBlock | Bottleneck, x: Tensor) -> tuple[Tensor, Down]:
        branch = [block.conv1, block.bn1, block.relu, block.conv2, block.bn2]
        if isinstance(block, Bottleneck):
            branch += [block.relu, block.conv3, block.bn3]
        a, down_a = self.chain(branch, x)
        b, down_b = (x, lambda p: p) if block.downsample is None else self.run(block.downsample, x)

        def down(p: Tensor) -> Tensor:
            share = _shared(p, a.clip(min=0) + b.clip(min=0))
            return down_a(share * a.clip(min=0)) + down_b(share * b.clip(min=0))

        return (a + b).relu(), down

    def fire(self, module: Fire, x: Tensor) -> tuple[Tensor, Down]:
        x, below = self.chain([module.squeeze, module.squeeze_activation], x)
        a, down_a = self.chain([module.expand1x1, module.expand1x1_activation], x)
        b, down_b = self.chain([module.expand3x3, module.expand3x3_activation], x)

        def down(p: Tensor) -> Tensor:
            p_a, p_b = p.split([a.shape[1], b.shape[1]], 1)
            return below(down_a(p_a) + down_b(p_b))

        return torch.cat([a, b], 1), down

    def dense_block(self, block: _DenseBlock, x: Tensor) -> tuple[Tensor, Down]:
        features, downs = [x], []
        for layer in block.values():
            y, down = self.run(layer, torch.cat(features, 1))
            features.append(y)
            downs.append(down)

        def down_all(p: Tensor) -> Tensor:
            for down, y in zip(reversed(downs), reversed(features), strict=False):
                read = p.shape[1] - y.shape[1]
                p = p[:, :read] + down(p[:, read:])
            return p

        return torch.cat(features, 1), down_all

    def dense_layer(self, layer: _DenseLayer, x: Tensor) -> tuple[Tensor, Down]:
        first = [layer.norm1, layer.relu1, layer.conv1]
        return self.chain([*first, layer.norm2, layer.relu2, layer.conv2], x)

    def sequential(self, module: nn.Sequential, x: Tensor) -> tuple[Tensor, Down]:
        return self.chain(list(module), x)


def _shared(p: Tensor, total: Tensor) -> Tensor:
    """`p / total`, and nothing of a unit that no input excites."""
    return torch.where(total > 0, p / torch.where(total > 0, total, 1), 0)


KINDS = {
    nn.Conv2d: ByHand.convolution,
    nn.Linear: ByHand.linear,
    nn.ReLU: ByHand.unchanged,
    nn.BatchNorm2d: ByHand.unchanged,
    nn.Dropout: ByHand.unchanged,
    nn.MaxPool2d: ByHand.largest,
    nn.AvgPool2d: ByHand.halving,
    nn.AdaptiveAvgPool2d: ByHand.adaptive,
    nn.Sequential: ByHand.sequential,
    models.VGG: ByHand.vgg,
    models.ResNet: ByHand.resnet,
    models.SqueezeNet: ByHand.squeezenet,
    models.DenseNet: ByHand.densenet,
    BasicBlock: ByHand.residual,
    Bottleneck: ByHand.residual,
    Fire: ByHand.fire,
    _DenseBlock: ByHand.dense_block,
    _DenseLayer: ByHand.dense_layer,
    _Transition: ByHand.sequential,
}


def _network(name: str) -> nn.Module:
    model = copy.deepcopy(network(name, torch.float64))  # its own, to change as a test needs
    if name == "vgg16":  # three layers in the classifier, as torchvision's, of fewer units
        torch.manual_seed(0)
        first, *_, last = model.classifier
        model.classifier = nn.Sequential(
            *(first, nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()),
            last,
        ).to(torch.float64)
    return model.eval()


def _assert_equal(found: Tensor, p: Tensor, whole: Tensor, aggregate: str, case: object) -> None:
    """`found` is the sum or norm over the channels of `p`, to 1e-9 of the signal.

    A contrast is what is left of two signals like `whole`, and keeps their rounding.
    """
    expected = p.sum(1) if aggregate == "sum" else p.square().sum(1).sqrt()
    magnitudes = zip(p.abs().sum(1), whole.abs().sum(1), strict=True)
    for one, other, (magnitude, of_both) in zip(found, expected, magnitudes, strict=True):
        assert magnitude.max() > 0, case
        rounding = 1e-9 * magnitude.max() + 1e-15 * of_both.max()
        assert (one - other).abs().max() <= rounding, case


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_both_rules_equal_the_propagation_by_hand(name: str) -> None:
    model, batch = _network(name), images(2, SIZES.get(name, 64))
    targets = torch.tensor([3, 7])
    if name == "squeezenet1_1":  # ends in a ReLU: a class whose logit is 0 has no signal
        targets = model(batch).argmax(1)
    pairs = [*itertools.product(("excitation", "contrastive"), ("sum", "norm"))]
    methods = [f"{rule}:bias:{aggregate}" for rule, aggregate in pairs]
    maps = Explainer(model, LAYERS[name], methods)(batch, targets[:, None])

    by_hand = ByHand(model, batch)
    torch.testing.assert_close(maps.logits, by_hand.logits, rtol=1e-9, atol=1e-9)
    signals = {
        "excitation": by_hand.excitation(targets),
        "contrastive": by_hand.contrastive(targets, CONTRAST_LAYERS[name]),
    }
    for (rule, aggregate), layer in itertools.product(pairs, LAYERS[name]):
        found = maps[f"{rule}:bias:{aggregate}", layer][:, 0]
        p, whole = signals[rule][layer], signals["excitation"][layer]
        _assert_equal(found, p, whole, aggregate, (rule, aggregate, layer))


# Conservation

CONSERVING = {
    "vgg16": ["input", "features.2", "features.9", "features.16", "features.29", "avgpool"],
    "resnet50": ["input", "conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"],
    "squeezenet1_1": ["input", "features.1", "features.5", "features.8", "features.12"],
}
LEAKING = {
    # What a dense layer gives goes through a batch norm, whose bias alone can make it positive, and
    # an average over the negative outputs of a convolution excites nothing.
    "densenet121": ["features.norm5", "features.transition2", "features.transition1", "input"],
    # A linear bottleneck gives signed features, and where all that a unit reads is negative, only
    # its bias excites it.
    "mobilenet_v2": ["features.17", "features.10", "features.4", "features.1", "input"],
}


def _sums(name: str, layers: list[str], method: str) -> list[Tensor]:
    """The signal's sum for each image at each layer, for the likeliest class."""
    model = _network(name)
    batch = images(2, SIZES.get(name, 64)).abs()  # a negative input excites nothing
    targets = model(batch).argmax(1, keepdim=True)
    maps = Explainer(model, layers, [method])(batch, targets)
    return [maps[method, layer].sum((1, 2, 3)) for layer in layers]


@pytest.mark.parametrize("name", CONSERVING)
def test_the_signal_sums_to_one_at_every_layer(name: str) -> None:
    for total in _sums(name, CONSERVING[name], EXCITATION):
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", CONSERVING)
def test_the_contrastive_signal_sums_to_zero_at_every_layer(name: str) -> None:
    for total in _sums(name, CONSERVING[name], CONTRASTIVE):
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LEAKING)
def test_units_that_no_input_excites_lose_their_share_and_none_is_made(name: str) -> None:
    above = torch.ones(2, dtype=torch.float64) + 1e-9
    for total in _sums(name, LEAKING[name], EXCITATION):
        assert (total <= above + 1e-9).all()
        assert (total > 0.05).all()
        above = total
    assert (above < 1 - 1e-6).all()


def test_at_the_input_of_a_1x1_classifier_the_contrastive_map_is_zero_but_its_signal_is_not() -> (
    None
):
    """Both passes hand the same sum to each location, so the map begins below that layer."""
    model, batch = _network("squeezenet1_1"), images(2, 64)
    targets = model(batch).argmax(1, keepdim=True)
    methods = [CONTRASTIVE, "contrastive:bias:norm"]
    maps = Explainer(model, ["features.11", "features.12"], methods)(batch, targets)
    assert maps[methods[0], "features.12"].abs().max() < 1e-12
    assert maps[methods[1], "features.12"].max() > 1e-3
    assert maps[methods[0], "features.11"].abs().max() > 1e-3


def test_a_class_that_nothing_excites_has_a_zero_map() -> None:
    model, batch = _network("squeezenet1_1"), images(2, 64)
    with torch.no_grad():
        model.classifier[1].bias[4] = -1e3  # below the last ReLU everywhere: the logit is 0
    maps = Explainer(model, ["input", "features.12"], [EXCITATION, CONTRASTIVE])(
        batch, torch.tensor([[4], [4]])
    )
    assert (maps.logits[:, 4] == 0).all()
    assert all((values == 0).all() for values in maps.values())

    model, batch = _network("resnet18"), images(2, 64)
    with torch.no_grad():
        model.fc.weight[4] = -model.fc.weight[4].abs()
    targets = torch.tensor([[4, 5], [4, 5]])
    values = Explainer(model, ["layer3"], [EXCITATION])(batch, targets)[EXCITATION, "layer3"]
    assert (values[:, 0] == 0).all()
    assert (values[:, 1] > 0).any()


# Beside the other rules


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_the_other_rules_maps_keep_their_bits_beside_excitation(name: str) -> None:
    model, batch = network(name, torch.float32), images(2, 64, torch.float32)
    layers, targets = LAYERS[name][:4], torch.tensor([[3, 0], [7, 5]])
    others = ["gradient_sum", "normgrad", "grad_cam", "guided_backprop_sum", "deconvnet_sum"]
    alone = Explainer(model, layers, others)(batch, targets)
    beside = Explainer(model, layers, [EXCITATION, *others, CONTRASTIVE])(batch, targets)
    assert torch.equal(alone.logits, beside.logits)
    for key in alone:
        assert torch.equal(alone[key], beside[key]), key


# Ways to write a network


class _Residual(nn.Module):
    """One residual block between two convolutions; how it adds and pools is a matter of choice."""

    def __init__(
        self,
        add: Callable[[Tensor, Tensor], Tensor] = torch.add,
        pool: Callable[[Tensor], Tensor] = lambda x: x.mean((2, 3)),
        act: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add, self.pool, self.act = add, pool, act
        self.stem, self.bn = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        y = self.conv2(F.relu(self.conv1(x)))
        return self.head(self.pool(F.relu(self.add(y, x))))


RESIDUAL_LAYERS = ["input", "stem", "conv1", "conv2"]


def _maps(model: nn.Module, layers: list[str] = RESIDUAL_LAYERS) -> dict[tuple[str, str], Tensor]:
    targets = torch.tensor([[0, 3], [1, 1]])
    return dict(Explainer(model, layers, [EXCITATION, CONTRASTIVE])(images(), targets))


def _assert_same_maps(
    found: dict[tuple[str, str], Tensor], expected: dict[tuple[str, str], Tensor]
) -> None:
    for key, values in found.items():
        assert expected[key].abs().max() > 0, key
        torch.testing.assert_close(values, expected[key], rtol=1e-9, atol=1e-15, msg=str(key))


def _residual_by_hand(model: _Residual, layer: str) -> Tensor:
    """The sum over channels at `stem` or `conv2` for class 3 of the first image."""
    x = F.relu(model.bn(model.stem(images()[:1])))
    y = model.conv2(F.relu(model.conv1(x)))
    z = F.relu(x + y)
    total = z.mean((2, 3)) @ model.head.weight[3].clip(min=0)
    pooled = z.mean((2, 3)) * model.head.weight[3].clip(min=0) / total
    p = z / z.sum((2, 3), keepdim=True) * pooled[:, :, None, None]
    total = x.clip(min=0) + y.clip(min=0)
    p_y = torch.where(total > 0, p * y.clip(min=0) / total, 0)
    return p_y.sum(1) if layer == "conv2" else p


def _in_place(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a + b": lambda a, b: a + b,
    "b + a": lambda a, b: b + a,
    "a += b": _in_place,
    "a.add(b)": lambda a, b: a.add(b),
    "a.add_(b)": lambda a, b: a.add_(b),
    "torch.add(a, b)": torch.add,
    "torch.add(input=a, other=b)": lambda a, b: torch.add(input=a, other=b),
    "torch.add(a, b, alpha=1)": lambda a, b: torch.add(a, b, alpha=1),
    "sum([a, b])": lambda a, b: sum([a, b]),
}


@pytest.mark.parametrize("way", SUMS)
def test_a_residual_sum_is_split_however_it_is_written(way: str) -> None:
    model = _Residual(SUMS[way])
    expected = _residual_by_hand(model, "conv2").detach()
    maps = _maps(model)
    torch.testing.assert_close(maps[EXCITATION, "conv2"][:1, 1], expected, rtol=1e-9, atol=1e-15)
    _assert_same_maps(maps, _maps(_Residual()))


@pytest.mark.parametrize("layer", RESIDUAL_LAYERS)
def test_a_layer_inside_a_residual_branch_has_the_map_it_has_beside_others(layer: str) -> None:
    """The other branch is below the lowest tap then, and takes its share all the same."""
    _assert_same_maps(_maps(_Residual(), [layer]), _maps(_Residual()))
    _assert_same_maps(_maps(_Residual(_in_place), [layer]), _maps(_Residual()))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "x.mean([2, 3])": lambda x: x.mean([2, 3]),
    "x.mean(dim=(2, 3))": lambda x: x.mean(dim=(2, 3)),
    "x.mean((2, 3), keepdim=True)": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "torch.mean": lambda x: torch.mean(x, (2, 3)),
    "x.mean(3).mean(2)": lambda x: x.mean(3).mean(2),
    "F.avg_pool2d": lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1),
    "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "nn.AdaptiveAvgPool2d": lambda x: nn.AdaptiveAvgPool2d(1)(x)[:, :, 0, 0],
    "x.sum((2, 3))": lambda x: x.sum((2, 3)),
    "torch.sum": lambda x: torch.sum(x, dim=(2, 3), keepdim=True).flatten(1),
    "x.flatten(2).sum(-1) / 64": lambda x: x.flatten(2).sum(-1) / 64,
    "a sum of a stack": lambda x: torch.stack([x.mean((2, 3)), 2 * x.mean((2, 3))]).sum(0),
    "two pools": lambda x: F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1),
}


@pytest.mark.parametrize("way", POOLS)
def test_an_average_or_a_sum_is_shared_however_it_is_written(way: str) -> None:
    _assert_same_maps(_maps(_Residual(pool=POOLS[way])), _maps(_Residual()))


UNDEFINED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.SiLU(),
    "silu in place": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "sigmoid": nn.Sigmoid(),
    "x.sigmoid()": lambda x: x.sigmoid(),
    "tanh": nn.Tanh(),
    "hardswish": nn.Hardswish(inplace=True),
    "hardsigmoid": nn.Hardsigmoid(),
    "leaky relu": nn.LeakyReLU(inplace=True),
    "elu": nn.ELU(),
    "softmax": lambda x: x.softmax(1),
    "nn.Softmax2d": nn.Softmax2d(),
    "group norm": nn.GroupNorm(2, 6).double(),
    "prelu": nn.PReLU().double(),
    "softplus": nn.Softplus(),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "local response norm": nn.LocalResponseNorm(3),
    "a power": lambda x: x.relu() ** 2,
    "x.pow(3)": lambda x: x.pow(3),
    "x.exp()": lambda x: x.exp(),
    "F.lp_pool2d": lambda x: F.lp_pool2d(x, 2.0, 1),
    "F.normalize": F.normalize,
}


@pytest.mark.parametrize("way", UNDEFINED)
def test_what_the_rule_is_not_defined_for_is_an_error_before_work(way: str) -> None:
    model = _Residual(act=UNDEFINED[way])
    for method in (EXCITATION, CONTRASTIVE):
        with pytest.raises(
            UnsupportedOperationError, match="defined for ReLU networks, and this one calls"
        ):
            Explainer(model, ["input"], [method])(images(1), torch.tensor([[0]]))
    assert not any(module._forward_hooks for module in model.modules())
    # Only what the signal comes through counts, and other methods are not affected.
    assert _maps(model, ["conv1"])[EXCITATION, "conv1"].sum() > 0
    maps = Explainer(model, ["input"], ["normgrad"])(images(1), torch.tensor([[0]]))
    assert maps["normgrad", "input"].sum() > 0


class _OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        return g


def test_a_function_of_the_models_author_is_an_error_below_it() -> None:
    model = _Residual(act=_OwnRelu.apply)
    with pytest.raises(UnsupportedOperationError, match="this one calls _OwnRelu"):
        _maps(model, ["input"])
    assert _maps(model, ["conv1"])[EXCITATION, "conv1"].sum() > 0


class _Recurrent(nn.Module):
    """The rows of a small feature map, read one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.rows = nn.LSTM(16, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x).relu()
        states, _ = self.rows(features.permute(0, 2, 1, 3).flatten(2))
        logits: Tensor = self.head(states[:, -1])
        return logits


class _Mixed(nn.Module):
    """Channels mixed by a product that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.mixing = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,oc->bo", self.conv(x).relu(), self.mixing)


class _Pooled(_Mixed):
    """A pool that is written as a product."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.einsum("bchw->bc", self.conv(x).relu()), self.mixing)


@pytest.mark.parametrize(
    ("network", "why"),
    [(_Recurrent, r"calls sigmoid within C\+\+"), (_Mixed, "negative at layer 'conv'")],
)
def test_a_signal_that_is_no_probability_is_an_error(network: type[nn.Module], why: str) -> None:
    model = network().double().eval()
    with pytest.raises(UnsupportedOperationError, match=why):
        Explainer(model, ["conv"], [EXCITATION])(images(1), torch.arange(5)[None])
    assert Explainer(model, ["conv"], ["normgrad"])(images(1), torch.arange(5)[None])


def test_a_signal_that_is_more_than_what_entered_is_an_error() -> None:
    model = _Pooled().double().eval()
    batch = images(2)
    cells = model.conv(batch)[0, 0].numel()
    targets = torch.tensor([[NO_TARGET], [3]])
    for method, times in ((EXCITATION, cells), ("contrastive_excitation_backprop", ".*")):
        with pytest.raises(UnsupportedOperationError, match=f"is {times} times what it was at the"):
            Explainer(model, ["conv"], [method])(batch, targets)


def test_a_product_of_two_signals_is_an_error() -> None:
    for act in (lambda x: x * x, lambda x: torch.mul(x, x.relu()), lambda x: x / (x.abs() + 1)):
        with pytest.raises(UnsupportedOperationError, match="products of two signals"):
            _maps(_Residual(act=act), ["input"])


def _in_place_on_halves(a: Tensor, b: Tensor) -> Tensor:
    for half in (slice(0, 3), slice(3, 6)):
        view = a[:, half]
        view += b[:, half]
    return a


def test_a_sum_in_place_on_a_part_is_an_error_and_one_of_parts_is_not() -> None:
    with pytest.raises(UnsupportedOperationError, match="in place to a view"):
        _maps(_Residual(_in_place_on_halves))
    halves = _Residual(
        lambda a, b: torch.cat(
            [one + other for one, other in zip(a.chunk(2, 1), b.chunk(2, 1), strict=True)], 1
        )
    )
    _assert_same_maps(_maps(halves), _maps(_Residual()))


SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "x * 2": lambda x: x * 2,
    "2 * x": lambda x: 2 * x,
    "x / 0.5": lambda x: x / 0.5,
    "x.mul(2)": lambda x: x.mul(2),
    "x.mul_(2)": lambda x: x.mul_(2),
    "torch.mul(2, x)": lambda x: torch.mul(torch.full((), 2, dtype=x.dtype), x),
}


@pytest.mark.parametrize("way", SCALINGS)
def test_a_scaling_passes_the_signal_on(way: str) -> None:
    """Doubled before the stem, or with a stem of doubled weights: the input's share is the same."""
    scaled, doubled = _Residual(), _Residual()
    with torch.no_grad():
        doubled.stem.weight.mul_(2)
    maps = Explainer(nn.Sequential(_Calling(SCALINGS[way]), scaled), ["input"], [EXCITATION])(
        images(), torch.tensor([[3], [1]])
    )
    expected = Explainer(doubled, ["input"], [EXCITATION])(images(), torch.tensor([[3], [1]]))
    _assert_same_maps(dict(maps), dict(expected))


class _Calling(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_frozen_batch_norm_passes_the_signal_on_as_a_batch_norm_does() -> None:
    model, frozen = _Residual(), _Residual()
    torch.manual_seed(1)
    for p in (model.bn.weight, model.bn.bias, model.bn.running_mean):
        nn.init.normal_(p.detach())
    frozen.bn = FrozenBatchNorm2d(6).double()
    state = {k: v for k, v in model.bn.state_dict().items() if k != "num_batches_tracked"}
    frozen.bn.load_state_dict(state)
    _assert_same_maps(_maps(frozen), _maps(model))


class _WithAuxiliaryHead(_Residual):
    """Calls a second head, as segmentation networks do, and throws away what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(6, 5, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        self.auxiliary(self.stem(x))
        return logits


def test_the_contrast_is_at_the_head_whose_logits_are_explained() -> None:
    _assert_same_maps(_maps(_WithAuxiliaryHead(), ["conv1"]), _maps(_Residual(), ["conv1"]))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_shares_the_signal_among_what_it_mixes(mode: str) -> None:
    def pool(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=3, mode=mode).mean((2, 3))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), _Calling(pool), nn.Linear(6, 5)).double()
    batch, targets = images(), torch.tensor([[3], [1]])
    found = Explainer(model, ["1"], ["excitation:bias:max"])(batch, targets)
    # Each cell is mixed in proportion to its value: all the signal stays in its channel, by the
    # part of the channel's sum that upsampling makes of the cell.
    x = model[1](model[0](batch)).detach().requires_grad_()
    (weight,) = torch.autograd.grad(pool(x).sum(), x)
    pooled = pool(x) * model[3].weight[targets[:, 0]].clip(min=0)
    share = x * weight / pool(x)[:, :, None, None]
    p = pooled[:, :, None, None] / pooled.sum(1)[:, None, None, None] * share
    expected = p.amax(1, keepdim=True)
    torch.testing.assert_close(found["excitation:bias:max", "1"], expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small", "convnext_tiny"])
def test_networks_without_relus_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = models.get_model(name, num_classes=10)
    model = model.to_empty(device="cpu")
    explainer = Explainer(model, ["input"], [EXCITATION])
    message = "excitation backprop is defined for ReLU networks"
    with pytest.raises(UnsupportedOperationError, match=message):
        explainer(images(1, 64, torch.float32), torch.tensor([[0]]))
