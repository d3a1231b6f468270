"""Guided backprop and deconvnet are refused at a layer where they would be the plain gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import images, small
from torch import Tensor, nn

from transforms.backward import RuleSwitch
from transforms.engine import Explainer
from transforms.rules import RULES
from transforms.signal_paths import relus_above, ways_to_logits
from transforms.taps import LayerError, Taps

RULE_METHODS = ["guided:bias:sum", "deconvnet:bias:sum"]


class _Mixed(nn.Module):
    """A ReLU, then hardswish, with a ReLU in a gate at the end, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.second, self.hardswish = nn.Conv2d(6, 6, 3), nn.Hardswish()
        self.third = nn.Conv2d(6, 6, 3)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.relu(self.first(x)))
        x = self.third(self.hardswish(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = x * gate
        return self.head(x.mean((2, 3)))


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return _Mixed().double().eval()


TARGETS = torch.tensor([[1], [3]])


@pytest.mark.parametrize("layer", ["input", "first"])
def test_below_a_relu_they_differ_from_the_gradient(layer: str) -> None:
    maps = Explainer(mixed(), [layer], [*RULE_METHODS, "gradient_sum"])(images(), TARGETS)
    plain = maps["gradient_sum", layer]
    for method in RULE_METHODS:
        assert (maps[method, layer] - plain).abs().max() > 1e-3 * plain.abs().max()


class _OneCell(_Mixed):
    """The same with a gate on a map of one cell, which has as many values as the map."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.relu(self.first(x)))
        x = self.third(self.hardswish(x)).mean((2, 3), keepdim=True)
        gate = self.excite(torch.relu(self.squeeze(x))).sigmoid()
        return self.head((gate.expand_as(x) * x).flatten(1))


class _Divided(_Mixed):
    """The same, divided by the gate."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.relu(self.first(x)))
        x = self.third(self.hardswish(x))
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).exp()
        return self.head((x / gate).mean((2, 3)))


@pytest.mark.parametrize("kind", [_OneCell, _Divided])
def test_a_gate_is_no_way_whatever_its_size(kind: type[_Mixed]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    with pytest.raises(LayerError, match=r"no ReLU lies between 'third'.*at: input, first"):
        Explainer(model, ["third"], RULE_METHODS)(images(), TARGETS)


@pytest.mark.parametrize("layer", ["relu", "second", "hardswish", "third"])
@pytest.mark.parametrize("method", RULE_METHODS)
def test_above_the_last_relu_they_are_refused_and_the_layers_where_they_differ_are_named(
    layer: str, method: str
) -> None:
    rule = method.partition(":")[0]
    with pytest.raises(LayerError, match=f"^{rule}: no ReLU lies between '{layer}'.*input, first"):
        Explainer(mixed(), ["first", layer], ["gradient", method])(images(), TARGETS)
    assert Explainer(mixed(), [layer], ["gradient"])(images(), TARGETS)


def test_a_relu_lies_on_the_way_exactly_where_a_rule_changes_the_signal() -> None:
    """A rule that stops every signal at a ReLU: without a ReLU on the way the signal is whole."""
    model, layers = small(), ["input", "stem", "bn1", "relu1", "conv2", "bn2", "pool", "conv3"]
    layers.append("relu3")
    switch = RuleSwitch([RULES["guided"]])
    with Taps(model, layers) as taps:
        with switch:
            logits = model(taps.start(images()))
        tapped = taps.activations()
        above = relus_above(logits, tapped)
        signal = torch.rand_like(logits)
        plain = torch.autograd.grad(logits, tapped, signal, retain_graph=True)
        switch.rule = RULES["deconvnet"]
        other = torch.autograd.grad(logits, tapped, signal)
    changed = [not torch.equal(a, b) for a, b in zip(plain, other, strict=True)]
    assert above == changed == [True] * 8 + [False]


def test_ways_to_the_logits_leave_out_what_is_no_part_of_them() -> None:
    found = {way.layer: way.below_relu for way in ways_to_logits(mixed(), images(1))}
    # What is inside the gate does not lie on the way.
    assert found == {
        **dict.fromkeys(["input", "first"], True),
        **dict.fromkeys(["relu", "second", "hardswish", "third"], False),
    }


def test_ways_to_the_logits_begin_where_the_network_cuts_itself_off_from_the_image() -> None:
    model = mixed().requires_grad_(False)
    model.relu.register_forward_hook(lambda module, args, output: output.detach())
    ways = ways_to_logits(model, images(1))
    assert [way.layer for way in ways] == ["second", "hardswish", "third"]
    assert not any(p.requires_grad for p in model.parameters())
    model.head.register_forward_hook(lambda module, args, output: output.detach())
    assert ways_to_logits(model, images(1)) == []


def test_the_nonlinearities_that_no_rule_treats_are_counted() -> None:
    explainer = Explainer(mixed(), ["first"], ["guided_backprop"])
    explainer(images(), TARGETS)
    assert dict(explainer.nonlinearities) == {"relu": 2, "hardswish": 1, "sigmoid": 1}


class Swish(torch.autograd.Function):
    """As EfficientNets write it to save memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s + x * s * (1 - s))


def test_a_function_of_the_models_author_is_counted() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = Swish.apply(self.second(self.first(x).relu()))  # type: ignore[no-untyped-call]
            return x.mean((2, 3))

    explainer = Explainer(Own().double().eval(), ["first"], ["guided_backprop"])
    explainer(images(), TARGETS)
    assert (explainer.nonlinearities["relu"], explainer.nonlinearities["Swish"]) == (1, 1)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x * 2 + 1) * torch.sigmoid(x)


def test_a_nonlinearity_within_cpp_is_counted_and_refused_by_excitation() -> None:
    class Fused(nn.Module):
        def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.second(self.first(x).relu())).mean((2, 3))

    relu, sigmoid = {"relu within C++": 1}, {"sigmoid within C++": 1}
    for act, expected in (
        (torch.ops.aten.relu, [relu]),
        # Sooner or later TorchScript makes one node of a function.
        (scripted, [relu | sigmoid, {"TorchScript": 1}]),
    ):
        model = Fused(act).double().eval()
        explainer = Explainer(model, ["first"], ["guided_backprop"])
        for _ in range(3):
            explainer(images(), TARGETS)
            assert dict(explainer.nonlinearities) in [{"relu": 1, **found} for found in expected]
        with pytest.raises(ValueError, match=r"calls (.* within C\+\+|TorchScript)$"):
            Explainer(model, ["first"], ["excitation_backprop"])(images(), TARGETS)
