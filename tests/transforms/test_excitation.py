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

from pipeline.config import SettingsError
from pipeline.plan import count_classes
from transforms.engine import Explainer
from transforms.excitation import UnsupportedOperationError
from transforms.taps import Taps

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

    ``signals`` are those that have passed the output of each module, by name.
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
        """The signals of one class an image, ``targets`` ``[B]``."""
        self.signals = {}
        self.signals["input"] = self._down(F.one_hot(targets, self.logits.shape[1]).double())
        return self.signals

    def contrastive(self, targets: Tensor, at: str) -> dict[str, Tensor]:
        """The two passes above layer ``at``, and their difference from there on."""
        positive = self.excitation(targets)[at]
        self.is_negated = True
        negative = self.excitation(targets)[at]
        self.is_negated = False
        self.replaced = {at: positive - negative}
        signals = self.excitation(targets)
        self.replaced = {}
        return signals

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
    """``p / total``, and nothing of a unit that no input excites."""
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
    model = network(name, torch.float64)
    if name == "vgg16":  # three layers in the classifier, as torchvision's, of fewer units
        torch.manual_seed(0)
        first, *_, last = model.classifier
        model.classifier = nn.Sequential(
            *(first, nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout()),
            last,
        ).to(torch.float64)
    return model.eval()


def _assert_equal(found: Tensor, expected: Tensor, case: object) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0, case
        assert (one - other).abs().max() <= 1e-9 * other.abs().max(), case


@pytest.mark.parametrize("name", LAYERS)
def test_both_rules_equal_the_propagation_by_hand(name: str) -> None:
    model, batch = _network(name), images(2, SIZES.get(name, 64))
    targets = torch.tensor([[3, 0], [7, 5]])
    if name == "squeezenet1_1":  # ends in a ReLU: a class whose logit is 0 has no signal
        targets = model(batch).topk(2).indices
    maps = Explainer(model, LAYERS[name], [EXCITATION, CONTRASTIVE])(batch, targets)

    by_hand = ByHand(model, batch)
    torch.testing.assert_close(maps.logits, by_hand.logits, rtol=1e-9, atol=1e-9)
    for k in range(2):
        for method, signals in (
            (EXCITATION, by_hand.excitation(targets[:, k])),
            (CONTRASTIVE, by_hand.contrastive(targets[:, k], CONTRAST_LAYERS[name])),
        ):
            for layer in LAYERS[name]:
                found, expected = maps[method, layer][:, k], signals[layer].sum(1)
                _assert_equal(found, expected, (method, layer))
