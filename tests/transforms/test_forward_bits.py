"""On real photos the engine decides every ReLU as the network alone does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import io, models, transforms

from transforms.engine import Explainer

METHODS = ["gradient", "guided_backprop", "excitation_backprop"]
VIEW = transforms.Compose([
    transforms.Resize(224, antialias=True),
    transforms.CenterCrop(224),
    transforms.ConvertImageDtype(torch.float32),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_no_relu_is_decided_otherwise_than_by_the_network_alone(
    shared_data: Path, layout: torch.memory_format
) -> None:
    model = models.squeezenet1_1()
    weights = shared_data / "weights" / "squeezenet1_1-imagenet.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model.eval().to(memory_format=layout)
    paths = sorted((shared_data / "coco" / "train2017").glob("*.jpg"))[:2]
    photos = [VIEW(io.read_image(str(path), io.ImageReadMode.RGB)) for path in paths]
    images = torch.stack(photos).contiguous(memory_format=layout)
    positive: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, args, output: positive.append(output > 0))

    with torch.no_grad():
        logits = model(images)
    alone = list(positive)
    positive.clear()
    with Explainer(model, ["input", "features.4"], METHODS) as explainer:
        explainer(images[:1], logits[:1].argmax(1, keepdim=True))  # finds the layouts
        positive.clear()
        maps = explainer(images, logits.argmax(1, keepdim=True))

    assert torch.equal(maps.logits, logits)
    assert len(alone) == len(positive) == 26
    assert all(torch.equal(a, b) for a, b in zip(alone, positive, strict=True))
