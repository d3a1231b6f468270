"""Each backward rule equals a chain written out by hand, however the model writes its ReLUs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import images, small
from torch import Tensor, nn

from transforms.engine import Explainer
from transforms.taps import LayerError


class _Chain(nn.Module):
    """Three convolutions with two rectifiers between them, and a mean over space."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 5, 1)
        self.rectify = rectify
        with torch.no_grad():  # activations on both sides of 0 and of 6
            self.conv1.weight.mul_(8)
            self.conv2.weight.mul_(3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self.conv1(x))
        x = self.rectify(self.conv2(x))
        return self.conv3(x).mean((2, 3))


def _discarding(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def rectify(x: Tensor) -> Tensor:
        module(x)
        return x

    return rectify


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU()": nn.ReLU(),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "nn.ReLU(inplace=True), result discarded": _discarding(nn.ReLU(inplace=True)),
    "F.relu": F.relu,
    "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu(input=x)": lambda x: torch.relu(input=x),
    "torch.relu_": torch.relu_,
    "nn.Threshold(0, 0)": nn.Threshold(0, 0),
    "nn.Threshold(0, 0, inplace=True)": nn.Threshold(0, 0, inplace=True),
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp(0)": lambda x: x.clamp(0),
    "x.clamp_(min=0.0)": lambda x: x.clamp_(min=0.0),
    "x.clamp_min(0)": lambda x: x.clamp_min(0),
    "x.clamp_min_(0)": lambda x: x.clamp_min_(0),
    "torch.clamp(x, min=0)": lambda x: torch.clamp(x, min=0),
    "torch.clamp_(x, min=0)": lambda x: torch.clamp_(x, min=0),
    "torch.clamp_min(x, 0)": lambda x: torch.clamp_min(x, 0),
    "torch.clamp_min_(x, 0)": lambda x: torch.clamp_min_(x, 0),
    "x.clip(0)": lambda x: x.clip(0),
    "x.clip_(0)": lambda x: x.clip_(0),
    "torch.clip(x, 0)": lambda x: torch.clip(x, 0),
}
CAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU6()": nn.ReLU6(),
    "nn.ReLU6(inplace=True)": nn.ReLU6(inplace=True),
    "nn.ReLU6(inplace=True), result discarded": _discarding(nn.ReLU6(inplace=True)),
    "nn.Hardtanh(0, 6)": nn.Hardtanh(0, 6),
    "F.relu6": F.relu6,
    "F.relu6(inplace=True)": lambda x: F.relu6(x, inplace=True),
    "F.hardtanh(x, 0, 6)": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh_(x, 0, 6)": lambda x: F.hardtanh_(x, 0, 6),
    "x.clamp(0, 6)": lambda x: x.clamp(0, 6),
    "x.clamp_(0, 6)": lambda x: x.clamp_(0, 6),
    "torch.clamp(x, min=0, max=6)": lambda x: torch.clamp(x, min=0, max=6),
}

GATES = ("plain", "guided", "deconvnet")
"""The rules that differ in what a ReLU does to the signal, and in nothing else."""


def _by_hand(
    model: _Chain, x: Tensor, target: int, rule: str, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the signal at each layer, from convolutions and transposed convolutions."""

    def gated(g: Tensor, before: Tensor) -> Tensor:
        opened = ((before > 0) & (before < cap)).to(g.dtype)
        positive = g * (g > 0)
        return {"plain": g * opened, "guided": positive * opened, "deconvnet": positive}[rule]

    with torch.no_grad():
        before1 = F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1)
        after1 = before1.clip(0, cap)
        before2 = F.conv2d(after1, model.conv2.weight, model.conv2.bias, padding=1)
        logits = F.conv2d(before2.clip(0, cap), model.conv3.weight, model.conv3.bias).mean((2, 3))
        # The score is a mean over space, so each location has the same share of it.
        share = model.conv3.weight[target] / (x.shape[2] * x.shape[3])
        at_conv2 = gated(share.expand_as(before2.mT.mT), before2)
        at_conv1 = gated(F.conv_transpose2d(at_conv2, model.conv2.weight, padding=1), before1)
        at_input = F.conv_transpose2d(at_conv1, model.conv1.weight, padding=1)
        assert (before2 < 0).any()
        assert cap == float("inf") or (before2 > cap).any()
    return logits, {"input": at_input, "conv1": at_conv1, "conv2": at_conv2}


@pytest.mark.parametrize("way", [*RELUS, *CAPPED])
def test_each_rule_equals_the_chain_by_hand(way: str) -> None:
    cap = 6.0 if way in CAPPED else float("inf")
    model, batch = _Chain({**RELUS, **CAPPED}[way]), images(2, 8)
    layers = ["input", "conv1", "conv2"]
    methods = [f"{rule}:bias:{aggregate}" for rule in GATES for aggregate in ("sum", "max_abs")]

    maps = Explainer(model, layers, methods)(batch, torch.tensor([[3], [3]]))

    for rule in GATES:
        logits, signals = _by_hand(model, batch, 3, rule, cap)
        torch.testing.assert_close(maps.logits, logits, rtol=1e-12, atol=1e-12)
        for layer, g in signals.items():
            for aggregate, expected in (("sum", g.sum(1)), ("max_abs", g.abs().amax(1))):
                found = maps[f"{rule}:bias:{aggregate}", layer][:, 0]
                difference = (found - expected).abs().max()
                assert difference <= 1e-10 * expected.abs().max(), (rule, layer, aggregate)


def test_the_gradient_is_the_same_with_and_without_other_rules() -> None:
    model, batch, targets = small(), images(), torch.tensor([[0, 3], [1, 1]])
    layers, rules = ["input", "bn1", "conv3"], ["guided_backprop", "deconvnet"]
    alone = Explainer(model, layers, ["gradient_sum"])(batch, targets)
    beside = Explainer(model, layers, ["gradient_sum", *rules])(batch, targets)
    assert torch.equal(alone.logits, beside.logits)
    for layer in layers:
        assert torch.equal(alone["gradient_sum", layer], beside["gradient_sum", layer])


class _AtTheEdge(nn.Module):
    """A clamp whose input is exactly 0 at many places, where PyTorch's clamp lets g through."""

    def __init__(self, clamp: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.relu, self.clamp = nn.Conv2d(3, 5, 1), nn.ReLU(), clamp

    def forward(self, x: Tensor) -> Tensor:
        return self.clamp(self.relu(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("way", [*RELUS, *CAPPED])
def test_the_gradient_at_the_edge_of_a_clamp_is_pytorchs(way: str) -> None:
    torch.manual_seed(0)
    model = _AtTheEdge({**RELUS, **CAPPED}[way]).double()
    batch, targets = images(2, 8), torch.tensor([[0], [1]])
    maps = Explainer(model, ["relu"], ["gradient_sum", "guided_backprop"])(batch, targets)
    x = F.relu(model.conv(batch)).detach().requires_grad_()
    score = model.clamp(x * 1).mean((2, 3)).gather(1, targets).sum()
    (g,) = torch.autograd.grad(score, x)
    torch.testing.assert_close(maps["gradient_sum", "relu"][:, 0], g.sum(1))


class _Indexing(nn.Module):
    """Clamps integers to index with, as models that look up a position do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.table = nn.Embedding(4, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        index = (x.mean((1, 2, 3)) * 100).long().clamp(0, 3)
        return self.body(x) + self.table(index)


def test_a_clamp_of_integers_is_left_alone() -> None:
    model, batch = _Indexing().eval(), images()
    maps = Explainer(model, ["body.conv3"], ["guided_backprop"])(batch, torch.tensor([[0], [1]]))
    with torch.no_grad():
        assert torch.equal(maps.logits, model(batch))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.clamp(max=1),
        lambda x: x.clamp(-1, 1),
        lambda x: F.hardtanh(x),
        lambda x: F.threshold(x, 0.1, 0),
        lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda x: x.clamp(min=torch.zeros(())),
        lambda x: F.leaky_relu(x),
        lambda x: F.gelu(x),
    ],
)
def test_a_network_without_relus_has_no_guided_map(other: Callable[[Tensor], Tensor]) -> None:
    for rule in ("guided_backprop", "deconvnet"):
        with pytest.raises(LayerError, match=f"{rule.removesuffix('_backprop')}.*no ReLU"):
            Explainer(_Chain(other), ["conv1"], [rule])(images(2, 8), torch.tensor([[0], [1]]))
    plain = Explainer(_Chain(other), ["conv1"], ["gradient"])
    assert plain(images(2, 8), torch.tensor([[0], [1]]))["gradient", "conv1"].abs().sum() > 0
