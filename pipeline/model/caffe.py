"""The pointing game's models as Caffe has them: `--model pipeline.model.caffe:vgg16`.

The paper's models were fine-tuned in Caffe (Zhang et al., ECCV 2016). They differ from those of
torchvision in details that move their maps: pooling rounds sizes up, and ResNet-50 has its strides
in other convolutions. These models take TorchRay's files of weights as they are
(`vgg16_voc-*.pth.tar`, `resnet50_coco-*.pth.tar`, …). Their input is BGR, from 0 to 255. Source of
the facts: TorchRay, `torchray/benchmark/models.py`.
"""

import re
from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import VGG, ResNet

State = Mapping[str, Tensor]


def vgg16(num_classes: int = 20) -> VGG:
    """VGG-16 whose max pooling rounds sizes up. Its stages are the ReLUs before the poolings."""
    model = torchvision.models.vgg16(num_classes=num_classes)
    _round_up(model)
    model.stages = [f"features.{i}" for i in (3, 8, 15, 22, 29)]
    model.translate_state = _translation(model, _vgg16_name)
    return model


def resnet50(num_classes: int = 20) -> ResNet:
    """ResNet-50 with the strides in the first convolution of a block.

    Its max pooling has no padding and rounds sizes up.
    """
    model = torchvision.models.resnet50(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=True)
    model.maxpool.padding = 0
    _round_up(model)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model.stages = ["relu", "layer1", "layer2", "layer3", "layer4"]
    model.translate_state = _translation(model, _resnet50_name)
    return model


def _round_up(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True


def _vgg16_name(name: str) -> str:
    # In TorchRay's files the classifier has no modules for dropout, so its numbers are others.
    numbers = {"classifier.2": "classifier.3", "classifier.4": "classifier.6"}
    module, _, parameter = name.rpartition(".")
    return f"{numbers.get(module, module)}.{parameter}"


def _resnet50_name(name: str) -> str:
    # In TorchRay's files a batch norm is two modules: 0 has the statistics, 1 has the scale.
    return re.sub(r"(bn\d|downsample\.1)\.[01]\.", r"\1.", name)


def _translation(
    model: nn.Module, own_name: Callable[[str], str]
) -> Callable[[State], dict[str, Tensor]]:
    """A function from the state of TorchRay's files, by name and shape, to the model's own.

    A state that has the model's own names is returned as it is.
    """
    own = {name: values.shape for name, values in model.state_dict().items()}

    def translate(state: State) -> dict[str, Tensor]:
        if state.keys() == own.keys():
            return dict(state)
        translated = {}
        for theirs, values in state.items():
            name = own_name(theirs)
            # The weights of the classifier may be stored in the shape of convolutions.
            fits = name in own and values.numel() == own[name].numel()
            translated[name] = values.reshape(own[name]) if fits else values
        counters = [name for name in own if name.endswith("num_batches_tracked")]
        return {**{name: torch.tensor(0) for name in counters}, **translated}

    return translate
