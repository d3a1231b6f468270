"""What the engine promises: exact maps, few passes, flat memory, and a model left as it was."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import psutil
import pytest
import torch
from networks import ANYWHERE, LAYERS, SIZES, Small, images, network, small
from torch import Tensor, nn

from transforms import engine
from transforms.engine import Explainer
from transforms.layout import ChannelsFirst
from transforms.map_key import NO_TARGET
from transforms.maps import Maps
from transforms.methods import METHODS, Method, MethodError, parse_methods
from transforms.taps import LayerError
from transforms.targets import least, top

SMALL_LAYERS = ["input", "bn1", "pool", "conv3"]
PLAIN = [name for name in ANYWHERE if METHODS[name].rule == "plain"]
SMALL_LAYOUTS = {
    layer: ChannelsFirst() for name in SMALL_LAYERS for layer in (name, f"body.{name}")
}  # given where passes are counted, since finding them takes one more
TARGETS = torch.tensor([[0, 3, 4], [2, 1, 0]])


def _assert_maps_equal(found: Maps, expected: Maps, tolerance: float) -> None:
    assert list(found) == list(expected)
    assert torch.equal(found.targets, expected.targets)
    torch.testing.assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.spreads, expected.spreads, rtol=tolerance, atol=tolerance)
    for key in expected:
        largest = expected[key].abs().max().item()
        assert largest > 0, key
        assert (found[key] - expected[key]).abs().max() <= tolerance * largest, key


def test_maps_are_at_the_layers_own_size_one_for_each_target() -> None:
    maps = Explainer(small(), SMALL_LAYERS, ANYWHERE)(images(), TARGETS)
    sizes = {"input": 16, "bn1": 8, "pool": 4, "conv3": 4}
    assert set(maps) == set(itertools.product(ANYWHERE, SMALL_LAYERS))
    for (_, layer), values in maps.items():
        assert values.shape == (2, 3, sizes[layer], sizes[layer])
        assert not values.requires_grad
        assert values.isfinite().all()


# Batches


@pytest.mark.parametrize("name", LAYERS)
def test_a_map_in_a_batch_equals_the_map_alone(name: str) -> None:
    model, batch = network(name, torch.float64), images(3, SIZES[name])
    targets = torch.tensor([[1], [2], [7]])
    with Explainer(model, LAYERS[name][1:], ANYWHERE) as explainer:
        together = explainer(batch, targets)
        alone = explainer(batch[1:2], targets[1:2])
    for method, layer in together:
        difference = (together[method, layer][1] - alone[method, layer][0]).abs().max()
        rounding = 1e-10 * alone[method, layer].abs().max()
        if METHODS[method].rule == "contrastive":  # what is left of two signals like this one
            rounding += 1e-15 * alone["excitation_backprop", layer].abs().max()
        assert difference <= rounding, (method, layer)


def test_a_map_in_a_batch_equals_the_map_alone_in_float32() -> None:
    model, batch = small(torch.float32), images(4, dtype=torch.float32)
    targets = torch.tensor([[1, 0], [2, 3], [4, 4], [0, 1]])
    with Explainer(model, SMALL_LAYERS, ANYWHERE) as explainer:
        together = explainer(batch, targets)
        for i in range(4):
            alone = explainer(batch[i : i + 1], targets[i : i + 1])
            for key in together:
                # Grad-CAM++ divides by 2 + g Σx, which may be nearly 0 where activations are signed
                if key[0] != "grad_cam_pp" or key[1] == "pool":
                    difference = (together[key][i] - alone[key][0]).abs().max()
                    assert difference <= 2e-5 * alone[key].abs().max(), key


def test_the_same_batch_twice_gives_the_same_bits() -> None:
    with Explainer(small(), SMALL_LAYERS, ANYWHERE) as explainer:
        first, second = (explainer(images(), TARGETS) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


# Targets


def test_a_padded_target_has_zero_maps_and_disturbs_no_other() -> None:
    with Explainer(small(), SMALL_LAYERS, ANYWHERE) as explainer:
        full = explainer(images(), TARGETS)
        padded = explainer(images(), torch.tensor([[0, NO_TARGET, 4], [NO_TARGET, NO_TARGET, 0]]))
    present = torch.tensor([[True, False, True], [False, False, True]])
    for key in full:
        assert torch.equal(padded[key][present], full[key][present]), key
        assert (padded[key][~present] == 0).all(), key


def test_a_target_given_twice_has_the_same_map_twice() -> None:
    maps = Explainer(small(), SMALL_LAYERS, ANYWHERE)(images(), TARGETS[:, [0, 1, 0]])
    for values in maps.values():
        assert torch.equal(values[:, 0], values[:, 2])
        assert not torch.equal(values[:, 0], values[:, 1])


def test_targets_may_be_chosen_by_the_logits() -> None:
    choosers = [
        lambda z: [int(top(z[None])), int(least(z[None]))],
        lambda z: [int(z.argsort()[2])],
    ]
    model, batch = small(), images()
    with torch.no_grad():
        order = model(batch).argsort(1)
    expected = torch.tensor([[order[0, -1], order[0, 0]], [order[1, 2], NO_TARGET]])

    with Explainer(model, SMALL_LAYERS, ANYWHERE) as explainer:
        chosen = explainer(batch, choosers)
        given = explainer(batch, expected)

    assert torch.equal(chosen.targets, expected)
    _assert_maps_equal(chosen, given, 0)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches are computed here as on a GPU, with a row per image and target."""
    monkeypatch.setattr(engine, "_leaves_room", lambda images: True)


@pytest.mark.parametrize(
    "targets",
    [
        TARGETS,
        torch.tensor([[0, NO_TARGET, 4], [NO_TARGET, NO_TARGET, 2]]),
        torch.zeros(2, 0, dtype=torch.int64),
        [lambda z: [int(z.argmax()), 1], lambda z: [int(z.argmin())]],
    ],
    ids=["full", "padded", "none", "chosen"],
)
def test_rows_of_targets_give_the_maps_of_one_target_after_the_other(
    targets: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = images()
    with Explainer(small(), SMALL_LAYERS, ANYWHERE) as explainer:
        expected = explainer(batch, targets)
        monkeypatch.setattr(engine, "_leaves_room", lambda images: True)
        found = explainer(batch, targets)
    assert torch.equal(found.targets, expected.targets)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.spreads, expected.spreads, rtol=1e-12, atol=1e-12)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("rows")
def test_with_rows_the_cost_is_a_forward_and_a_backward_for_each_rule() -> None:
    model = small()
    forwards = []
    model.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    backwards = []
    explainer = Explainer(
        model, ["conv3"], ["gradient", "normgrad", "deconvnet"], layouts=SMALL_LAYOUTS
    )
    grad = torch.autograd.grad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
        explainer(images(), TARGETS)
    assert (forwards, len(backwards)) == ([6], 2)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[0], [5]]), "target 5 is not a class: valid are 0 to 4"),
        (torch.tensor([[-2], [0]]), "target -2 is not a class"),
        (torch.tensor([[0.0], [1.0]]), r"integers \[B, K\] with B = 2.*float32"),
        (torch.tensor([[True], [False]]), r"integers \[B, K\] with B = 2.*bool"),
        (torch.tensor([0, 1]), r"integers \[B, K\] with B = 2.*\[2\]"),
        (torch.tensor(0), r"integers \[B, K\] with B = 2.*\[\]"),
        (torch.tensor([[0]]), r"integers \[B, K\] with B = 2.*\[1, 1\]"),
        (torch.tensor([[0], [1], [2]]), r"integers \[B, K\] with B = 2.*\[3, 1\]"),
        ([lambda z: [0]], "1 functions choose the targets of 2 images"),
        (
            [[0], [1]],
            r"a tensor of integers \[B, K\], or a function per image, not \[\[0\], \[1\]\]",
        ),
        (1, "a function per image, not 1; torch.tensor"),
        ([lambda z: [0]] * 3, "3 functions choose the targets of 2 images"),
        ([lambda z: [0], lambda z: [9]], "target 9 is not a class"),
    ],
)
def test_wrong_targets_are_named(targets: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Explainer(small(), ["pool"], ["gradient"])(images(), targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 16, 16), (0, 3, 16, 16)])
def test_images_of_a_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        Explainer(small(), ["pool"], ["gradient"])(torch.zeros(shape), TARGETS)


# Passes


@pytest.mark.parametrize(
    ("methods", "rules"),
    [
        (["gradient", "grad_cam", "normgrad"], 1),
        (["guided_backprop", "guided:scaling:norm"], 1),
        (ANYWHERE, 5),
    ],
)
def test_the_cost_is_one_forward_and_a_backward_for_each_rule_and_target(
    methods: list[str], rules: int
) -> None:
    model = small()
    forwards, backwards = [], []

    def count(module: nn.Module, args: object, logits: Tensor) -> None:
        forwards.append(1)
        assert logits.grad_fn is not None
        logits.grad_fn.register_prehook(lambda g: backwards.append(1))

    model.register_forward_hook(count)
    Explainer(model, SMALL_LAYERS, methods, layouts=SMALL_LAYOUTS)(images(), TARGETS)
    assert (len(forwards), len(backwards)) == (1, rules * TARGETS.shape[1])


def test_the_backward_stops_at_the_lowest_layer() -> None:
    model = small()
    reached: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            if output.grad_fn is not None:
                output.grad_fn.register_prehook(lambda g: reached.append(name))

        return hook

    for name in ("stem", "conv2", "conv3"):
        model.get_submodule(name).register_forward_hook(watch(name))
    Explainer(model, ["pool", "relu3"], ["gradient"])(images(), TARGETS[:, :1])
    assert reached == ["conv3"]


def test_the_graph_is_freed_with_the_last_backward() -> None:
    model, kept = small(), []
    model.register_forward_hook(lambda module, args, logits: kept.append(logits))
    Explainer(model, SMALL_LAYERS, ANYWHERE, layouts=SMALL_LAYOUTS)(images(), TARGETS)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        kept[0].sum().backward()


# Restoration


def _state(model: nn.Module) -> dict[str, object]:
    return {
        "hooks": [
            (name, len(hooks))
            for name, module in model.named_modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ],
        "training": [module.training for module in model.modules()],
        "inplace": [getattr(module, "inplace", None) for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad is None for parameter in model.parameters()],
        "values": [(name, value.clone()) for name, value in model.state_dict().items()],
        "tf32": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
        ),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def _assert_same_state(before: dict[str, object], after: dict[str, object]) -> None:
    values_before, values_after = before.pop("values"), after.pop("values")
    assert before == after
    for (name, was), (_, now) in zip(values_before, values_after, strict=True):
        assert torch.equal(was, now), name


def _mixed() -> Small:
    """Some modules in train mode, some parameters frozen."""
    model = small().train()
    model.bn1.eval()
    model.drop.eval()
    model.conv2.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    return model


class _Failing(Small):
    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        raise ArithmeticError("the model's own")


def _failing() -> nn.Module:
    model = _mixed()
    model.__class__ = _Failing
    return model


def _failing_backward() -> nn.Module:
    def fail(g: Tensor) -> None:
        raise ArithmeticError("on the way back")

    def watched(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        x = args[0].clone()
        if x.requires_grad:
            x.register_hook(fail)
        return x

    model = _mixed()
    model.head.register_forward_pre_hook(watched)
    return model


OUTCOMES: dict[str, tuple[Callable[[], nn.Module], list[str], Tensor, type[Exception] | None]] = {
    "success": (_mixed, SMALL_LAYERS, TARGETS, None),
    "failing forward": (_failing, SMALL_LAYERS, TARGETS, ArithmeticError),
    "failing backward": (_failing_backward, SMALL_LAYERS, TARGETS, ArithmeticError),
    "wrong target": (_mixed, SMALL_LAYERS, TARGETS + 3, ValueError),
    "not a feature map": (_mixed, ["pool", "head"], TARGETS, LayerError),
}


@pytest.mark.parametrize("context", ["with", "alone"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_everything_is_as_before(outcome: str, precision: str, context: str) -> None:
    build, layers, targets, error = OUTCOMES[outcome]
    model, batch = build(), images()
    with _float32_precision(precision):
        before, batch_before = _state(model), batch.clone()
        explainer = Explainer(model, layers, ANYWHERE)
        with pytest.raises(error) if error else nullcontext():
            if context == "with":
                with explainer:
                    assert not any(module.training for module in model.modules())
                    assert not torch.backends.cuda.matmul.allow_tf32
                    assert not torch.backends.cudnn.allow_tf32
                    explainer(batch, targets)
            else:
                explainer(batch, targets)
        _assert_same_state(before, _state(model))
    assert torch.equal(batch, batch_before)
    assert batch.grad is None


@contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    was, was_cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(was)
        torch.backends.cudnn.allow_tf32 = was_cudnn


def _new_precisions() -> list[str]:
    backends = torch.backends
    operations = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
    return [operation.fp32_precision for operation in (*operations, backends.mkldnn.conv)]


def test_float32_is_full_inside_and_as_before_outside_in_pytorchs_new_settings_too() -> None:
    model, seen = small(torch.float32), []
    model.register_forward_hook(lambda *call: seen.append(_new_precisions()))
    matmul, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    was = matmul.fp32_precision, mkldnn.fp32_precision
    matmul.fp32_precision, mkldnn.fp32_precision = "tf32", "bf16"
    try:
        before = _new_precisions()
        explainer = Explainer(model, ["pool"], ["gradient"], layouts=SMALL_LAYOUTS)
        explainer(images(dtype=torch.float32), TARGETS)
        assert seen == [["ieee"] * 4]
        assert _new_precisions() == before
    finally:
        matmul.fp32_precision, mkldnn.fp32_precision = was


def test_an_unknown_layer_leaves_everything_as_it_was() -> None:
    model = _mixed()
    before = _state(model)
    with pytest.raises(LayerError, match="unknown layer of Small 'layer9'; valid: input, stem"):
        Explainer(model, ["stem", "layer9"], ["gradient"])
    _assert_same_state(before, _state(model))


def test_an_explainer_is_not_opened_twice_and_can_be_opened_again() -> None:
    with Explainer(small(), ["pool"], ["gradient"]) as explainer:
        first = explainer(images(), TARGETS)
        with pytest.raises(RuntimeError, match="already open"):
            explainer.__enter__()
    with explainer:
        _assert_maps_equal(explainer(images(), TARGETS), first, 0)


CALLERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast in inference_mode": lambda: _both(
        torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)
    ),
}


@contextmanager
def _both(a: AbstractContextManager[object], b: AbstractContextManager[object]) -> Iterator[None]:
    with a, b:
        yield


@pytest.mark.parametrize("layers", [SMALL_LAYERS, ["pool"]], ids="+".join)
@pytest.mark.parametrize("caller", CALLERS)
def test_the_callers_grad_mode_and_autocast_change_nothing(caller: str, layers: list[str]) -> None:
    model = _mixed().float()
    expected = Explainer(model, layers, ANYWHERE)(images(dtype=torch.float32), TARGETS)
    before = _state(model)
    with CALLERS[caller]():
        batch = images(dtype=torch.float32)  # an inference tensor, where that mode is on
        found = Explainer(model, layers, ANYWHERE)(batch, TARGETS)
    _assert_same_state(before, _state(model))
    _assert_maps_equal(found, expected, 0)


@pytest.mark.slow  # the import of the compiler
def test_compiled_parts_have_the_maps_of_the_plain_ones() -> None:
    model, methods = small(), ["gradient", "guided_backprop"]
    plain = Explainer(model, ["conv2"], methods)(images(), torch.tensor([[0], [1]]))
    model.conv3 = torch.compile(model.conv3, backend="eager")
    model.relu3.forward = torch.compile(model.relu3.forward, backend="eager")
    found = Explainer(model, ["conv2"], methods)(images(), torch.tensor([[0], [1]]))
    for key, values in plain.items():
        torch.testing.assert_close(found[key], values)


def test_images_that_require_grad_get_none() -> None:
    model, batch = small(), images().requires_grad_()
    maps = Explainer(model, SMALL_LAYERS, ["gradient"])(batch, TARGETS)
    assert batch.grad is None
    assert not any(values.requires_grad for values in maps.values())


def test_a_map_is_the_same_in_train_mode_and_beside_frozen_parameters() -> None:
    expected = Explainer(small(), SMALL_LAYERS, ANYWHERE)(images(), TARGETS)
    found = Explainer(_mixed(), SMALL_LAYERS, ANYWHERE)(images(), TARGETS)
    _assert_maps_equal(found, expected, 0)


# Memory


@pytest.mark.slow
def test_memory_is_flat_over_batches() -> None:
    process = psutil.Process()
    batch = images(4, 32, torch.float32)
    targets = torch.tensor([[0, 1]] * 4)
    with Explainer(small(torch.float32), SMALL_LAYERS, ANYWHERE) as explainer:
        for _ in range(20):
            explainer(batch, targets)
        tensors, size = _live_tensors(), process.memory_info().rss
        for _ in range(60):
            explainer(batch, targets)
        assert _live_tensors() == tensors
        assert process.memory_info().rss - size < 4e6  # a batch's activations are 3 MB


def test_a_batch_leaves_no_tensor_behind_but_its_maps() -> None:
    gc.disable()  # what only the collector frees would pile up on a device
    try:
        with Explainer(small(), SMALL_LAYERS, ANYWHERE) as explainer:
            explainer(images(), TARGETS)  # what is made of the weights stays until it is closed
            tensors = _live_tensors()
            maps = explainer(images(), TARGETS)
            kept = [*maps.values(), *maps.spreads.values(), maps.logits, maps.targets]
            assert _live_tensors() == tensors + len(kept)
            del kept
            del maps
            assert _live_tensors() == tensors
    finally:
        gc.enable()


def _live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


class _Greedy(nn.Module):
    """Runs out of memory, as a device does in the middle of a pass, above `fits` images."""

    def __init__(self, fits: int, inplace: bool = False) -> None:
        super().__init__()
        self.body, self.fits, self.inplace = small(), fits, inplace
        self.batches: list[int] = []
        self.failed: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert all(tensor() is None for tensor in self.failed), "the failed batch is still alive"
        self.batches.append(len(x))
        if self.inplace:
            x -= 0.5
        activations = self.body.stem(x)
        logits = self.body(x)
        if len(x) > self.fits:
            self.failed = [weakref.ref(activations), weakref.ref(logits)]
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits


def test_out_of_memory_halves_the_batch_frees_the_failed_one_and_changes_no_map() -> None:
    batch, targets = images(7), torch.tensor([[0, 1]] * 7)
    layers = [f"body.{layer}" for layer in ("bn1", "pool", "conv3")] + ["input"]
    expected = Explainer(_Greedy(7), layers, ANYWHERE, layouts=SMALL_LAYOUTS)(batch, targets)
    model = _Greedy(2)
    gc.disable()
    try:
        with Explainer(model, layers, ANYWHERE, layouts=SMALL_LAYOUTS) as explainer:
            assert explainer.micro_batch is None
            found = explainer(batch, targets)
            assert model.batches == [7, 3, 1, 1, 1, 1, 1, 1, 1]
            assert explainer.micro_batch == 1
            model.batches.clear()
            explainer(batch[:2], targets[:2])
            assert model.batches == [1, 1]
    finally:
        gc.enable()
    _assert_maps_equal(found, expected, 1e-10)


def test_the_micro_batch_is_the_largest_half_that_fits() -> None:
    model = _Greedy(4)
    with Explainer(model, ["body.pool"], ["gradient"], layouts=SMALL_LAYOUTS) as explainer:
        explainer(images(8), torch.zeros(8, 1, dtype=torch.int64))
        explainer(images(6), torch.zeros(6, 1, dtype=torch.int64))
    assert explainer.micro_batch == 4
    assert model.batches == [8, 4, 4, 4, 2]


def test_a_retried_batch_is_not_normalised_twice_by_a_model_that_does_it_in_place() -> None:
    targets = torch.tensor([[0]] * 4)
    methods = ["linear_approx", "guided_backprop"]
    expected, found = (
        Explainer(_Greedy(fits, inplace=True), ["body.pool"], methods, layouts=SMALL_LAYOUTS)(
            images(4), targets
        )
        for fits in (4, 1)
    )
    _assert_maps_equal(found, expected, 1e-10)


def test_choosers_follow_their_images_through_halved_batches() -> None:
    choosers = [lambda z, i=i: list(range(i)) for i in range(4)]
    with Explainer(_Greedy(1), ["body.pool"], ["normgrad"], layouts=SMALL_LAYOUTS) as explainer:
        maps = explainer(images(4), choosers)
    assert maps.targets.tolist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2]]
    whole = Explainer(_Greedy(4), ["body.pool"], ["normgrad"], layouts=SMALL_LAYOUTS)(
        images(4), maps.targets
    )
    difference = (maps["normgrad", "body.pool"] - whole["normgrad", "body.pool"]).abs().max()
    assert difference <= 1e-10 * whole["normgrad", "body.pool"].max()


def test_one_image_that_does_not_fit_is_an_error_and_leaves_nothing_behind() -> None:
    model = _Greedy(0)
    before = _state(model)
    with pytest.raises(torch.OutOfMemoryError):
        Explainer(model, ["body.pool"], ["gradient"], layouts=SMALL_LAYOUTS)(images(2), TARGETS)
    assert model.batches == [2, 1]
    _assert_same_state(before, _state(model))


# Models that cannot be explained


class _Ignoring(Small):
    """Calls a side branch whose result the logits do not use, and never calls `pool`."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.stem(images)))
        self.conv2(x)
        return self.head(self.conv3(x).mean((2, 3)))


class _Constant(Small):
    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).detach()
        return self.head(self.conv3(x.round().detach()).mean((2, 3)).detach())


class _Discarding(Small):
    """Throws away what an in-place ReLU gives: a tap on that ReLU is beside the path."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        self.relu1(x)
        return self.head(self.conv3(x).mean((2, 3)))


class _Inferring(Small):
    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            x = self.relu1(self.bn1(self.stem(images)))
        return self.head(self.conv3(x.clone()).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "layers", "message"),
    [
        (_Ignoring, ["pool"], "never called 'pool'"),
        (_Inferring, ["bn1"], "'bn1', or the model cuts them off by .* torch.no_grad"),
        (_Ignoring, ["conv2"], "do not depend on .*'conv2'"),
        (_Ignoring, ["stem", "conv2"], "do not depend on layer 'conv2'"),
        (_Constant, ["stem"], "do not depend on .*'stem'"),
        (_Discarding, ["relu1"], "do not depend on .*'relu1'"),
        (Small, ["head"], r"'head' gives \[2, 5\], not a feature map"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_named(
    kind: type[Small], layers: list[str], message: str
) -> None:
    model = small()
    model.__class__ = kind
    with pytest.raises(LayerError, match=message):
        Explainer(model, layers, ["gradient", "excitation_backprop"])(images(), TARGETS)


class _Tuple(Small):
    def forward(self, images: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(images),)


class _OneRow(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean(0, keepdim=True)


@pytest.mark.parametrize(("kind", "found"), [(_Tuple, "tuple"), (_OneRow, r"\[1, 5\]")])
def test_a_model_that_gives_no_logits_is_named(kind: type[Small], found: str) -> None:
    model = small()
    model.__class__ = kind
    with pytest.raises(ValueError, match=rf"must give logits \[B, N\].* B = 2, not {found}"):
        Explainer(model, ["pool"], ["gradient"])(images(), TARGETS)


def test_layers_and_methods_are_distinct_lists() -> None:
    with pytest.raises(TypeError, match="sequences of names"):
        Explainer(small(), "pool", ["gradient"])
    with pytest.raises(TypeError, match="sequences of names"):
        Explainer(small(), ["pool"], "gradient")
    for layers in ([], ["pool", "pool"]):
        with pytest.raises(LayerError, match="distinct and at least one"):
            Explainer(small(), layers, ["gradient"])


# Fully convolutional models


class _FullyConvolutional(Small):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.bn1(self.stem(images))))
        return self.classify(self.relu3(self.conv3(x)))


class _Summed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).sum((2, 3))


def test_a_fully_convolutional_score_is_the_sum_over_space() -> None:
    torch.manual_seed(0)
    body = _FullyConvolutional().double().eval()
    layers, methods = ["input", "bn1", "conv3", "classify"], PLAIN
    maps = Explainer(body, layers, methods)(images(), TARGETS)
    summed = Explainer(
        _Summed(copy.deepcopy(body)),
        [layer if layer == "input" else f"body.{layer}" for layer in layers],
        methods,
    )(images(), TARGETS)
    torch.testing.assert_close(maps.logits, summed.logits)
    for (method, layer), values in maps.items():
        expected = summed[method, layer if layer == "input" else f"body.{layer}"]
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    everywhere = maps["gradient", "classify"]
    assert torch.equal(everywhere, torch.ones_like(everywhere))


class _AtOneLocation(_Summed):
    """The logits of one location."""

    at = (0, 0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits[:, :, self.at[0], self.at[1]]


def test_excitation_of_a_fully_convolutional_model_is_the_sum_of_that_of_its_locations() -> None:
    torch.manual_seed(0)
    body = _FullyConvolutional().double().eval()
    methods, batch = ["excitation_backprop", "contrastive:bias:sum"], images()
    maps = Explainer(body, ["bn1", "conv3"], methods)(batch, TARGETS)
    single = _AtOneLocation(body)
    height, width = body(batch).shape[2:]
    with Explainer(single, ["body.bn1", "body.conv3"], methods) as explainer:
        found = {key: torch.zeros_like(values) for key, values in maps.items()}
        for single.at in itertools.product(range(height), range(width)):
            for (method, layer), values in explainer(batch, TARGETS).items():
                found[method, layer.removeprefix("body.")] += values
    for key, values in maps.items():
        torch.testing.assert_close(values, found[key], rtol=1e-12, atol=1e-12)


# The table of methods


def test_a_named_method_is_its_triple() -> None:
    for method in METHODS.values():
        if method.extract is not None:
            names = [method.name, method.formula]
            maps = Explainer(small(), ["conv3"], names)(images(), TARGETS)
            assert torch.equal(maps[method.name, "conv3"], maps[method.formula, "conv3"])


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (
            ["normgrda"],
            ["unknown method 'normgrda'; did you mean normgrad?", "rule:extract:aggregate"],
        ),
        (["plain:bias"], ["unknown method 'plain:bias'"]),
        (["plain:bias:sum:max"], ["unknown method 'plain:bias:sum:max'"]),
        (["plain:bias:sums"], ["unknown aggregate 'sums'; did you mean sum?"]),
        (["relu:bias:sum"], ["unknown rule 'relu'", "valid: plain, guided, deconvnet"]),
        (["plain:conv5x5:sum"], ["unknown extract 'conv5x5'", "bias, scaling, conv1x1, conv3x3"]),
        (["plain:bias:l2"], ["unknown aggregate 'l2'", "sum, norm, filter_norm, max, max_abs"]),
        (["normgrad", "gradient", "normgrad"], ["given twice: normgrad"]),
        ([], ["no method given; valid: gradient"]),
    ],
)
def test_a_wrong_method_is_answered_with_the_valid_ones(
    names: Sequence[str], parts: list[str]
) -> None:
    with pytest.raises(MethodError) as error:
        parse_methods(names)
    for part in parts:
        assert part in str(error.value)


def test_a_triple_differs_from_the_named_method_of_its_parts_in_nothing_but_its_name() -> None:
    for method in METHODS.values():
        if method.weighting is None:
            (triple,) = parse_methods([method.formula])
            assert triple.name == method.formula
            assert triple.relu_on_read == method.relu_on_read
            assert replace(triple, name=method.name, source=method.source) == method
    (contrastive,) = parse_methods(["contrastive:bias:sum"])
    assert contrastive.relu_on_read


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"extract": "bias"},
        {"aggregate": "sum"},
        {"extract": "bias", "aggregate": "sum", "weighting": "grad_cam"},
        {"extract": "bias", "weighting": "grad_cam"},
    ],
)
def test_parts_that_do_not_make_a_method_are_refused(parts: dict[str, str]) -> None:
    with pytest.raises(MethodError, match="'mine' needs an extract and an aggregate, or a weight"):
        Method("mine", "plain", **parts)


def test_the_cam_family_and_the_contrastive_rule_have_their_relu_applied_on_reading() -> None:
    family = {name for name, method in METHODS.items() if method.relu_on_read}
    cams = {"grad_cam", "grad_cam_pp", "xgrad_cam", "hires_cam", "layer_cam"}
    assert family == cams | {"contrastive_excitation_backprop"}
