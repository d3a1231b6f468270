"""The engine on a GPU; skipped, with the reason, where there is none."""

import pytest
import torch
from networks import ANYWHERE
from torchvision.models import resnet18

from transforms.engine import Explainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

LAYERS = ("input", "layer1", "layer4")


def explained(device: str, dtype: torch.dtype) -> Explainer:
    torch.manual_seed(0)
    return Explainer(resnet18().to(device, dtype), LAYERS, ANYWHERE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_maps_on_the_gpu_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1), dtype=dtype)
    targets = torch.tensor([[1, 2], [3, 4]])
    on_cpu = explained("cpu", dtype)(images, targets)
    on_gpu = explained("cuda", dtype)(images.cuda(), targets)
    for key, expected in on_cpu.items():
        # A difference of two nearly equal signals, which float32 rounds away on random weights.
        if dtype == torch.float32 and key[0] == "contrastive_excitation_backprop":
            continue
        error = (on_gpu[key].cpu() - expected).abs().max() / expected.abs().max()
        assert error <= tolerance, key


def test_a_batch_too_large_for_the_gpu_is_halved_until_it_fits() -> None:
    images = torch.randn(64, 3, 224, 224, device="cuda")
    targets = torch.zeros(64, 1, dtype=torch.int64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total))
    try:
        explainer = explained("cuda", torch.float32)
        maps = explainer(images, targets)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert explainer.micro_batch is not None
    assert maps["normgrad", "layer4"].shape == (64, 1, 7, 7)


def test_memory_is_flat_over_batches_on_the_gpu() -> None:
    images, targets = torch.randn(4, 3, 96, 96, device="cuda"), torch.zeros(4, 1, dtype=torch.int64)
    with explained("cuda", torch.float32) as explainer:
        explainer(images, targets)
        before = torch.cuda.memory_allocated()
        for _ in range(50):
            explainer(images, targets)
        assert torch.cuda.memory_allocated() == before
