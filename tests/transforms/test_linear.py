"""The way back through linear layers is PyTorch's, also of all signals at once."""

import gc
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from transforms import linear
from transforms.backward import RuleSwitch
from transforms.convolution import WeightCache
from transforms.engine import Explainer
from transforms.layout import ChannelsFirst
from transforms.linear import WideLayer
from transforms.rules import GRADIENT

METHODS = ["gradient", "normgrad", "grad_cam", "guided_backprop", "deconvnet"]
EXCITATION = ["excitation_backprop", "contrastive_excitation_backprop"]


class Net(nn.Module):
    """Convolutions, then two linear layers with a ReLU that writes in place, as in VGG."""

    def __init__(self, change: Callable[["Net", Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(True), nn.Conv2d(6, 6, 3))
        self.wide, self.relu, self.head = nn.Linear(6 * 16, 20), nn.ReLU(True), nn.Linear(20, 7)
        self.other = nn.Linear(6 * 16, 7)
        self.change = change
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x).flatten(1)
        logits: Tensor = self.head(self.relu(self.wide(h)))
        return self.change(self, h, logits) if self.change else logits


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_WIDE", 20 * 7)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each batch, whether its signals went through the wide layer at once."""
    asked: list[bool] = []
    is_on_every_way = WideLayer.is_on_every_way

    def noting(self: WideLayer, *args: object) -> bool:
        asked.append(is_on_every_way(self, *args))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(WideLayer, "is_on_every_way", noting)
    return asked


def explained(model: nn.Module, layers: list[str], methods: list[str], *, singly: bool) -> object:
    images = torch.randn(
        2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    with Explainer(model, layers, methods, layouts={"up": ChannelsFirst()}) as explainer:
        targets = torch.tensor([[1, 2, 5], [0, 6, 3]])
        with explainer.with_pytorchs_backward() if singly else nullcontext():
            return dict(explainer(images, targets).items())


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("transposed", [True, False], ids=["strided", "contiguous"])
def test_the_way_back_is_pytorchs(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, bias: bool, transposed: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 7, bias).to(dtype).requires_grad_(False)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    signal = torch.randn((7, *shape[:-1]), dtype=dtype).movedim(0, -1)
    signal = signal if transposed else signal.contiguous()
    with RuleSwitch([GRADIENT], WeightCache()):
        output = layer(x)
    assert torch.equal(output, layer(x))
    (found,) = torch.autograd.grad(output, x, signal)
    (expected,) = torch.autograd.grad(layer(x), x, signal)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("methods", [METHODS, METHODS + EXCITATION], ids=["3 rules", "5 rules"])
def test_the_maps_are_those_of_single_passes(methods: list[str], products: list[bool]) -> None:
    layers = ["input", "features.0"]
    found = explained(Net(), layers, methods, singly=False)
    assert products == [True]
    expected = explained(Net(), layers, methods, singly=True)
    assert products == [True]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, h, logits: logits + net.other(h),
        lambda net, h, logits: logits + h.mean(1, keepdim=True),
        lambda net, h, logits: net.other(h),
    ],
    ids=["beside it", "past it", "not through it"],
)
def test_signals_that_also_go_another_way_go_one_by_one(
    change: Callable[[Net, Tensor, Tensor], Tensor], products: list[bool]
) -> None:
    found = explained(Net(change), ["features.0"], METHODS[:3], singly=False)
    assert products == [False]
    expected = explained(Net(change), ["features.0"], METHODS[:3], singly=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_layer_above_it_has_its_own_gradient(products: list[bool]) -> None:
    class Decoder(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.wide(self.features(x).flatten(1))).unflatten(1, (5, 2, 2))
            logits: Tensor = self.head(self.up(y).relu().flatten(1))
            return logits

    def decoder() -> nn.Module:
        model = Decoder()
        model.up = nn.Conv2d(5, 5, 1).double().eval()
        return model

    layers = ["features.0", "up"]
    found = explained(decoder(), layers, METHODS, singly=False)
    assert products == [False]
    torch.testing.assert_close(
        found, explained(decoder(), layers, METHODS, singly=True), rtol=1e-12, atol=1e-15
    )


def test_a_layer_whose_weights_have_a_gradient_is_left_to_pytorch() -> None:
    model = Net()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for requires_grad in (True, False):
        switch = RuleSwitch([GRADIENT], WeightCache())
        with switch:
            model.requires_grad_(requires_grad)(x)
        wide, switch.wide_layer = switch.wide_layer, None
        assert (wide is None) == requires_grad


def raising(net: Net, h: Tensor, logits: Tensor) -> Tensor:
    raise ArithmeticError("the model itself")


@pytest.mark.parametrize(
    ("change", "target", "error"),
    [(None, 1, None), (None, 99, ValueError), (raising, 1, ArithmeticError)],
    ids=["explained", "no such class", "raising"],
)
def test_no_batch_leaves_its_graph_behind(
    change: Callable[[Net, Tensor, Tensor], Tensor] | None,
    target: int,
    error: type[Exception] | None,
) -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with Explainer(Net(change), ["input"], METHODS[:3]) as explainer:
        gc.collect()
        gc.disable()
        try:
            before = switches()  # of threads that other tests left hanging
            with pytest.raises(error) if error else nullcontext():
                explainer(x, torch.tensor([[target]]))
            assert len(switches()) == len(before)
        finally:
            gc.enable()


def switches() -> list[RuleSwitch]:
    return [found for found in gc.get_objects() if isinstance(found, RuleSwitch)]
