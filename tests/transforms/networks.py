"""Networks to explain: torchvision's with seeded weights, a small one, and copies for Captum."""

import copy
import functools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.vgg import cfgs, make_layers

from transforms.methods import METHODS

LAYERS = {
    "resnet50": ["input", "layer2", "layer4.1"],
    "vgg16": ["input", "features.16", "features.29"],
    "mobilenet_v2": ["input", "features.6", "features.17"],
    "squeezenet1_1": ["input", "features.5", "features.12"],
    "densenet121": ["input", "features.transition1", "features.norm5"],
}
"""Torchvision networks and layers of each: the image, an early and a late feature map."""

SIZES = {**dict.fromkeys(LAYERS, 64), "vgg16": 32}
"""Side of the images for each, pixels: enough for a late feature map of 2 × 2 or more."""

ANYWHERE = tuple(name for name, method in METHODS.items() if not method.needs_convolution)
"""The methods that explain any layer, be it a convolution or not."""


@functools.cache
def network(name: str, dtype: torch.dtype) -> nn.Module:
    """Torchvision's network `name`, 10 classes, seeded, with activations of a plausible size."""
    if dtype == torch.float64:
        return copy.deepcopy(network(name, torch.float32)).double()
    torch.manual_seed(0)
    model = _slim_vgg16() if name == "vgg16" else models.get_model(name, num_classes=10)
    randomise(model, torch.rand(4, 3, 64, 64))
    return model


def randomise(model: nn.Module, images: Tensor) -> None:
    """Random biases and scales, and batch-norm statistics taken from `images`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()


def small_vit(**options: object) -> nn.Module:
    """Torchvision's ViT with three blocks, for 64 × 64 pixels: a class token and 4 × 4 patches."""
    sizes = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 2}
    return _with_a_head(
        models.VisionTransformer(**sizes, hidden_dim=24, mlp_dim=32, num_classes=5, **options)
    )


def small_swin() -> nn.Module:
    """Torchvision's Swin with three stages: windows of 4 × 4, shifted in every second block."""
    return _with_a_head(
        models.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=8,
            depths=[2, 2, 2],
            num_heads=[1, 2, 4],
            window_size=[4, 4],
            num_classes=5,
        )
    )


def small_maxvit() -> nn.Module:
    """Torchvision's MaxViT with two stages, for 64 × 64 pixels."""
    return _with_a_head(
        models.MaxVit(
            input_size=(64, 64),
            stem_channels=8,
            partition_size=4,
            block_channels=[8, 16],
            block_layers=[1, 1],
            head_dim=8,
            stochastic_depth_prob=0.0,
            num_classes=5,
        )
    )


def small_convnext() -> nn.Module:
    """Torchvision's ConvNeXt with two stages of one block."""
    settings = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    return _with_a_head(models.ConvNeXt(settings, num_classes=5))


def _with_a_head(model: nn.Module) -> nn.Module:
    """In float64, with random weights where they begin at zero or nearly."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def _slim_vgg16() -> nn.Module:
    # Torchvision's features; its classifier, 120 million weights, would cost a gigabyte here.
    with torch.device("meta"):
        model = models.vgg16()
    model.features = make_layers(cfgs["D"], batch_norm=False)
    for conv in model.features:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10)
    )
    return model


class Small(nn.Module):
    """A residual network in miniature: batch norm, in-place ReLUs and sums, pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(6, 8, 3, padding=1)
        self.relu3 = nn.ReLU6()
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.stem(images)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.pool(F.relu(y))
        y = self.relu3(self.conv3(y))
        return self.head(self.drop(y.mean((2, 3))))


def small(dtype: torch.dtype = torch.float64, seed: int = 0) -> Small:
    """A seeded `Small`, fresh, in eval mode."""
    torch.manual_seed(seed)
    model = Small()
    randomise(model, torch.rand(8, 3, 16, 16))
    return model.to(dtype)


def images(batch: int = 2, size: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded images `[batch, 3, size, size]`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def out_of_place(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a torchvision network that writes nothing in place, one ReLU module a call.

    Captum needs it (its hooks see `nn.ReLU` modules only, and take a module's last call), and it
    is the reference for what in-place operations must not change.
    """
    model = copy.deepcopy(model)
    if isinstance(model, models.DenseNet):  # calls F.relu(inplace=True) after its features
        model = nn.Sequential(
            OrderedDict(
                features=model.features,
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                classifier=model.classifier,
            )
        ).eval()
    calls: dict[nn.Module, int] = {}
    handles = []
    for module in model.modules():
        if isinstance(module, models.resnet.Bottleneck):
            module.__class__ = _OutOfPlaceBottleneck
        if isinstance(module, nn.ReLU | nn.ReLU6):
            handles.append(
                module.register_forward_hook(
                    lambda module, *_: calls.update({module: calls.get(module, 0) + 1})
                )
            )
    model(example)
    for handle in handles:
        handle.remove()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in calls:
                kind = _CappedReLU if isinstance(child, nn.ReLU6) else nn.ReLU
                one_a_call = [kind() for _ in range(calls[child])]
                setattr(
                    parent, name, one_a_call[0] if len(one_a_call) == 1 else _InTurn(one_a_call)
                )
    return model


class _OutOfPlaceBottleneck(models.resnet.Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class _CappedReLU(nn.ReLU):
    """A ReLU6 that Captum takes for a ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu6(input)


class _InTurn(nn.Module):
    """Calls one module after another, a module a call."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.in_turn = nn.ModuleList(modules)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        module = self.in_turn[self.calls % len(self.in_turn)]
        self.calls += 1
        return module(x)
