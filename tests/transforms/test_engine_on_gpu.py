"""The engine on a GPU; skipped, with the reason, where there is none."""

import pytest
import torch
from networks import ANYWHERE
from torchvision.models import resnet18

from transforms.engine import Explainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

LAYERS = ("input", "layer1", "layer4.0")


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


def test_maps_are_those_of_full_float32_whatever_the_program_allows() -> None:
    """TF32 keeps 10 bits of the mantissa: its maps would differ by about 1e-3."""
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)).cuda()
    targets = torch.tensor([[1], [3]])
    expected = explained("cuda", torch.float32)(images, targets)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        allowed = explained("cuda", torch.float32)(images, targets)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")
    for key in (("normgrad", "layer1"), ("grad_cam", "layer4.0")):
        error = (allowed[key] - expected[key]).abs().max() / expected[key].abs().max()
        assert error <= 1e-5, key


def test_a_batch_too_large_for_the_gpu_is_halved_until_it_fits() -> None:
    """All but 1 GiB of the GPU is taken, so that it really runs out of memory."""
    images = torch.randn(64, 3, 224, 224, generator=torch.Generator().manual_seed(2)).cuda()
    targets = torch.zeros(64, 1, dtype=torch.int64)
    alone = explained("cuda", torch.float32)(images[:1], targets[:1])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - 2**30), dtype=torch.uint8, device="cuda")
    try:
        explainer = explained("cuda", torch.float32)
        maps = explainer(images, targets)
    finally:
        del ballast
        torch.cuda.empty_cache()
    assert explainer.micro_batch is not None
    assert maps["normgrad", "layer4.0"].shape == (64, 1, 7, 7)
    first = maps["normgrad", "layer4.0"][0], alone["normgrad", "layer4.0"][0]
    torch.testing.assert_close(*first, rtol=1e-3, atol=1e-3 * float(first[1].max()))


def test_memory_is_flat_over_batches_on_the_gpu() -> None:
    images, targets = torch.randn(4, 3, 96, 96, device="cuda"), torch.zeros(4, 1, dtype=torch.int64)
    with explained("cuda", torch.float32) as explainer:
        explainer(images, targets)
        before = torch.cuda.memory_allocated()
        for _ in range(50):
            explainer(images, targets)
        assert torch.cuda.memory_allocated() == before
