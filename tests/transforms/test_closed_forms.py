"""Each extract × aggregate equals the same aggregate of the contribution built in full."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transforms.aggregate import AGGREGATES
from transforms.extract import EXTRACTS, Activation, Tapped

VIRTUAL = [name for name, extract in EXTRACTS.items() if not extract.needs_convolution]
"""The extracts that take the activation alone: the real layer's are in test_real.py."""

SHAPES = [(2, 4, 5, 7), (2, 1, 5, 3), (1, 3, 1, 1), (1, 1, 1, 1), (2, 3, 1, 6), (1, 2, 2, 2)]


def _full(extract: str, x: Tensor, g: Tensor) -> Tensor:
    """The contribution's entries `[B, E, h, w]`, every one of them in memory."""
    batch, channels, height, width = x.shape
    patches = F.unfold(x, 3, padding=1).view(batch, channels, 9, height, width)
    entries = {
        "bias": lambda: g,
        "scaling": lambda: x * g,
        "conv1x1": lambda: torch.einsum("bohw,bihw->boihw", g, x),
        "conv3x3": lambda: torch.einsum("bohw,bithw->boithw", g, patches),
        "depthwise3x3": lambda: torch.einsum("bchw,bcthw->bcthw", g, patches),
    }[extract]()
    return entries.reshape(batch, -1, height, width)


def _aggregated(aggregate: str, entries: Tensor) -> Tensor:
    return {
        "sum": lambda: entries.sum(1),
        "norm": lambda: (entries * entries).sum(1).sqrt(),
        "filter_norm": lambda: (entries * entries * (entries > 0)).sum(1).sqrt(),
        "max": lambda: entries.max(1).values,
        "max_abs": lambda: entries.abs().max(1).values,
    }[aggregate]()


SIGNS = {
    "mixed": lambda t: t,
    "positive": torch.abs,
    "negative": lambda t: -t.abs(),
    "rectified": lambda t: t.clamp_min(0),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("extract", VIRTUAL)
def test_closed_form_equals_the_contribution_built_in_full(extract: str, aggregate: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, x_sign, g_sign in itertools.product(SHAPES, SIGNS, SIGNS):
        x = SIGNS[x_sign](torch.randn(shape, generator=generator, dtype=torch.float64))
        g = SIGNS[g_sign](torch.randn(shape, generator=generator, dtype=torch.float64))

        closed = AGGREGATES[aggregate].function(Tapped(Activation(x), g).contribution(extract))

        entries = _full(extract, x, g)
        torch.testing.assert_close(
            closed,
            _aggregated(aggregate, entries),
            rtol=1e-10,
            atol=1e-10 * entries.abs().max().item(),
            msg=lambda text, case=(shape, x_sign, g_sign): f"{case}: {text}",
        )


def test_the_tables_are_those_of_the_paper() -> None:
    assert set(EXTRACTS) >= {"bias", "scaling", "conv1x1", "conv3x3", "depthwise3x3"}
    assert set(AGGREGATES) == {"sum", "norm", "filter_norm", "max", "max_abs"}


def test_a_contribution_is_never_built_in_full() -> None:
    channels = 4096  # conv3x3 in full: 9 × 4096² × 8 bytes = 1.2 GB a location
    x = torch.ones(1, channels, 2, 2, dtype=torch.float64)
    tap = Tapped(Activation(x), -x)
    with _Largest() as largest:
        for extract in VIRTUAL:
            for aggregate in AGGREGATES.values():
                aggregate.function(tap.contribution(extract))
    assert largest.elements <= 4 * x.numel()  # a map of 2 × 2, padded to 4 × 4


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of the largest tensor made while it is active."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output
