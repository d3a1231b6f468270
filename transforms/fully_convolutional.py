"""Fully convolutional twins: classifiers that look at a photo of any shape, location by location.

A twin gives logits `[B, N, h, w]`. At each location they are what the original gives for the 7 × 7
cells of its last feature map around it. For photos of 224 × 224 pixels there is one location, with
the original's logits. Source: the models of TorchRay's pointing game,
`torchray/benchmark/models.py`.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import VGG, ResNet

WINDOW = (7, 7)
"""Cells of the last feature map that the original sees at 224 × 224 pixels."""


class NoTwinError(ValueError):
    """No fully convolutional twin is defined for the model."""


def fully_convolutional(model: nn.Module) -> nn.Module:
    """The twin of torchvision's `VGG` or `ResNet`; the model itself stays as it is.

    The twin shares the model's modules, under the same names, and the storage of its classifier's
    weights. Its parameters have the names of the model's; those of the classifier have another
    shape.

    Raises:
        NoTwinError: another class of model.
    """
    # A subclass may have another forward pass.
    if type(model) not in TWINS:
        raise NoTwinError(
            f"no fully convolutional twin of a {type(model).__name__} is defined; it is for "
            "torchvision's vgg, resnet, resnext and wide_resnet"
        )
    twin = nn.Sequential(TWINS[type(model)](model))
    if hasattr(model, "stages"):
        twin.stages = model.stages
    return twin


def _vgg(model: nn.Module) -> "OrderedDict[str, nn.Module]":
    classifier = OrderedDict(model.get_submodule("classifier").named_children())
    kernel = WINDOW
    for name, module in classifier.items():
        if isinstance(module, nn.Linear):
            classifier[name] = _convolution(module, kernel)
            kernel = (1, 1)
    return OrderedDict(
        features=model.get_submodule("features"), classifier=nn.Sequential(classifier)
    )


def _resnet(model: nn.Module) -> "OrderedDict[str, nn.Module]":
    # A ResNet calls its children in the order of their definition.
    children = OrderedDict(model.named_children())
    children["avgpool"] = nn.AvgPool2d(WINDOW, stride=1)
    head = model.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    children["fc"] = _convolution(head, (1, 1))
    return children


def _convolution(linear: nn.Linear, kernel: tuple[int, int]) -> nn.Conv2d:
    """What `linear` does to a flattened window `[C, *kernel]`, at every location."""
    channels = linear.in_features // (kernel[0] * kernel[1])
    with torch.device("meta"):
        convolution = nn.Conv2d(channels, linear.out_features, kernel)
    weight = linear.weight.detach().view(linear.out_features, channels, *kernel)
    convolution.weight = nn.Parameter(weight, linear.weight.requires_grad)
    convolution.bias = linear.bias
    return convolution


TWINS: dict[type[nn.Module], Callable[[nn.Module], "OrderedDict[str, nn.Module]"]] = {
    VGG: _vgg,
    ResNet: _resnet,
}
"""The classes that have a twin, and the function that makes its parts, in the order of calls."""
