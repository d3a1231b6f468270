"""Maps at other parameters: after a step of SGD, and with random weights."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import ANYWHERE, images, network, randomise, small
from torch import Tensor, nn
from torch.func import functional_call

from transforms.engine import Explainer
from transforms.map_key import NO_TARGET
from transforms.maps import Maps
from transforms.taps import LayerError
from transforms.variant_maps import cascade_parameters, explain_variants
from transforms.variants import (
    BASE,
    Base,
    Cascade,
    Meta,
    Variant,
    VariantError,
    opposite_step,
    parse_variants,
)

LAYERS = ["input", "bn1", "pool", "conv3"]
TARGETS = torch.tensor([[0, 3], [2, 2], [4, NO_TARGET]])
RATES = [0.02, -0.02, 0.1]


def _stepped(model: nn.Module, image: Tensor, target: int, lr: float) -> nn.Module:
    """A copy after one step of PyTorch's own SGD."""
    model = copy.deepcopy(model).eval().requires_grad_()
    model.zero_grad()
    # PyTorch's optimisers refuse negative rates: ascend instead.
    optimizer = torch.optim.SGD(model.parameters(), abs(lr), maximize=lr < 0)
    logits = model(image)
    logits = logits if logits.dim() == 2 else logits.mean((2, 3))
    F.cross_entropy(logits, torch.tensor([target])).backward()
    optimizer.step()
    return model


def _assert_close(found: Tensor, expected: Tensor, case: object) -> None:
    largest = expected.abs().max()
    assert largest > 0, case
    assert (found - expected).abs().max() <= 1e-10 * largest, case


# Meta-saliency


def test_meta_equals_a_step_of_sgd_on_a_copy() -> None:
    model, batch = small(), images(3)
    metas = [Meta(lr) for lr in RATES]
    with Explainer(model, LAYERS, ANYWHERE) as explainer:
        variants = explain_variants(explainer, batch, TARGETS, metas)
    assert list(variants) == [BASE, *(meta.name for meta in metas)]
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]:
        image, target = batch[row : row + 1], int(TARGETS[row, column])
        for meta in metas:
            there = _stepped(model, image, target, meta.lr)
            expected = Explainer(there, LAYERS, ANYWHERE)(image, torch.tensor([[target]]))
            for key, values in variants[meta.name].items():
                _assert_close(values[row, column], expected[key][0, 0], (meta.name, key))
                changed = (values[row, column] - variants[BASE][key][row, column]).abs().max()
                assert changed > 1e-4 * values[row, column].abs().max(), (meta.name, key)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "densenet121"])
def test_meta_of_torchvisions_networks_equals_a_step_of_sgd_on_a_copy(name: str) -> None:
    layers = {
        "resnet18": ["input", "layer4.0"],
        "squeezenet1_1": ["input", "features.12"],
        "densenet121": ["features.transition1", "features.norm5"],
    }[name]
    model, image = network(name, torch.float64), images(1, 64)
    target = int(model(image).argmax())
    methods = ["normgrad", "grad_cam", "guided_backprop", "deconvnet", "excitation_backprop"]
    meta = Meta(0.0025)
    with Explainer(model, layers, methods) as explainer:
        found = explain_variants(explainer, image, torch.tensor([[target]]), [meta])[meta.name]
    expected = Explainer(_stepped(model, image, target, meta.lr), layers, methods)(
        image, torch.tensor([[target]])
    )
    for key, values in found.items():
        _assert_close(values, expected[key], key)


def test_a_padded_target_has_zero_maps_under_meta_too() -> None:
    metas = [Meta(0.1), Meta(-0.1)]
    with Explainer(small(), LAYERS, ANYWHERE) as explainer:
        variants = explain_variants(explainer, images(3), TARGETS, metas)
    for maps in variants.values():
        assert torch.equal(maps.targets, TARGETS)
        assert all((values[2, 1] == 0).all() for values in maps.values())


def test_a_target_given_twice_has_the_same_meta_map_twice() -> None:
    for meta in (Meta(0.1), Meta(0.1, second_order=True)):
        with Explainer(small(), LAYERS, ["normgrad", "gradient"]) as explainer:
            maps = explain_variants(explainer, images(3), TARGETS, [meta])[meta.name]
        for values in maps.values():
            assert torch.equal(values[1, 0], values[1, 1])
            assert values[1, 0].abs().max() > 0


@pytest.mark.parametrize("second_order", [False, True])
def test_a_meta_map_depends_on_its_own_image_and_target_alone(second_order: bool) -> None:
    meta, batch = Meta(0.3, second_order), images(3)
    methods = ["normgrad", "gradient", "grad_cam"]
    with Explainer(small(), LAYERS, methods) as explainer:
        together = explain_variants(explainer, batch, TARGETS, [meta])[meta.name]
        for row, column in [(0, 1), (1, 0), (2, 0)]:
            target = TARGETS[row : row + 1, column : column + 1]
            alone = explain_variants(explainer, batch[row : row + 1], target, [meta])[meta.name]
            for key in together:
                assert torch.equal(together[key][row, column], alone[key][0, 0]), key


def test_choosers_choose_by_the_base_models_logits() -> None:
    choosers = [lambda z: [int(z.argmax()), int(z.argmin())], lambda z: [1]]
    with Explainer(small(), LAYERS, ["normgrad"]) as explainer:
        chosen = explain_variants(explainer, images(), choosers, [Meta(2.0)])
        given = explain_variants(explainer, images(), chosen[BASE].targets, [Meta(2.0)])
    for maps, expected in zip(chosen.values(), given.values(), strict=True):
        assert torch.equal(maps.targets, chosen[BASE].targets)
        assert torch.equal(maps.logits, chosen[BASE].logits)
        assert all(torch.equal(maps[key], expected[key]) for key in maps)


def _state(model: nn.Module) -> dict[str, object]:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
    }


VARIANTS = [
    *(Meta(0.1), Meta(-0.1), Meta(0.1, second_order=True)),
    *(Cascade("head"), Cascade("conv2"), Cascade("stem", own_classes=True)),
]


@pytest.mark.parametrize("opened", [True, False])
def test_the_model_is_left_as_it_was(opened: bool) -> None:
    model = small().train()
    model.drop.eval()
    model.conv2.requires_grad_(False)
    before, batch = _state(model), images(3)
    explainer = Explainer(model, LAYERS, ["normgrad"])
    if opened:
        with explainer:
            found = explain_variants(explainer, batch, TARGETS, VARIANTS)
    else:
        found = explain_variants(explainer, batch, TARGETS, VARIANTS)
    after = _state(model)
    values_before, values_after = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(values_before[name], values_after[name]) for name in values_before)
    assert torch.equal(batch, images(3))

    with Explainer(small(), LAYERS, ["normgrad"]) as explainer:  # in eval mode, and all trainable
        expected = explain_variants(explainer, batch, TARGETS, VARIANTS)
    for name, maps in expected.items():
        assert all(torch.equal(maps[key], found[name][key]) for key in maps), name


def test_the_model_is_left_as_it_was_when_a_pass_fails() -> None:
    model, calls = small(), []

    def fail_the_third_time(module: nn.Module, args: object, output: object) -> None:
        calls.append(module)
        if len(calls) == 3:
            raise ArithmeticError("the model's own")

    handle = model.head.register_forward_hook(fail_the_third_time)
    before = _state(model)
    with (
        pytest.raises(ArithmeticError, match="the model's own"),
        Explainer(model, LAYERS, ["normgrad"]) as explainer,
    ):
        explain_variants(explainer, images(3), TARGETS, VARIANTS)
    after = _state(model)
    values_before, values_after = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(values_before[name], values_after[name]) for name in values_before)
    handle.remove()


class _NormalisingInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x /= 0.25
        return self.body(x)


def test_images_survive_a_model_that_normalises_them_in_place() -> None:
    model, batch = _NormalisingInPlace().eval(), images(3)
    variants = [Meta(0.1), Meta(-0.1), Meta(0.1, second_order=True)]
    with Explainer(model, ["body.pool"], ["normgrad"]) as explainer:
        found = explain_variants(explainer, batch, TARGETS, variants)
    assert torch.equal(batch, images(3))
    with Explainer(model.body, ["pool"], ["normgrad"]) as explainer:
        expected = explain_variants(explainer, (images(3) - 0.5) / 0.25, TARGETS, variants)
    for name, maps in expected.items():
        _assert_close(found[name]["normgrad", "body.pool"], maps["normgrad", "pool"], name)


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_changes_nothing(caller: Callable) -> None:
    model = small(torch.float32)
    explainer = Explainer(model, LAYERS, ["normgrad"])
    batch = images(3, dtype=torch.float32)
    expected = explain_variants(explainer, batch, TARGETS, VARIANTS)
    with caller(), torch.autocast("cpu", torch.bfloat16):
        batch = images(3, dtype=torch.float32)
        found = explain_variants(explainer, batch, TARGETS, VARIANTS)
    for name, maps in expected.items():
        assert all(torch.equal(maps[key], found[name][key]) for key in maps), name


class _FullyConvolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.classify = nn.Conv2d(6, 5, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.body(x))


def test_the_step_of_a_fully_convolutional_model_is_by_the_mean_over_space() -> None:
    model, image, meta = _FullyConvolutional(), images(1), Meta(0.5)
    with Explainer(model, ["body"], ["normgrad"]) as explainer:
        found = explain_variants(explainer, image, torch.tensor([[3]]), [meta])[meta.name]
    there = _stepped(model, image, 3, meta.lr)
    expected = Explainer(there, ["body"], ["normgrad"])(image, torch.tensor([[3]]))
    _assert_close(found["normgrad", "body"], expected["normgrad", "body"], meta.name)


# Second order


def _score_after_the_step(
    model: nn.Module, image: Tensor, target: int, lr: float, layer: str, shift: Tensor
) -> Tensor:
    """The logit after the step, with `shift` added to the layer's output in both passes."""

    def shifted(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + shift

    handle = model.get_submodule(layer).register_forward_hook(shifted)
    theta = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = F.cross_entropy(functional_call(model, theta, image), torch.tensor([target]))
    gradient = torch.autograd.grad(loss, [*theta.values()])
    stepped = {name: p - lr * g for (name, p), g in zip(theta.items(), gradient, strict=True)}
    score = functional_call(model, stepped, image)[0, target].detach()
    handle.remove()
    return score


class _Smooth(nn.Module):
    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.act1 = nn.Conv2d(3, 4, 3, stride=2, padding=1), act()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4), act()
        self.head = nn.Linear(4, 5)
        randomise(self, torch.rand(4, 3, 16, 16))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.bn2(self.conv2(self.act1(self.conv1(x))))).mean((2, 3)))


@pytest.mark.parametrize("act", [nn.Tanh, nn.Softplus, nn.ReLU])
def test_second_order_is_the_slope_of_the_score_through_the_step(act: type[nn.Module]) -> None:
    model, image, lr = _Smooth(act), images(1), 0.3
    layers, target, meta = ["conv1", "bn2", "act2"], 3, Meta(lr, second_order=True)
    # hires_cam is Σ x g: with the activation after the step it checks both.
    methods = ["plain:bias:sum", "plain:bias:norm", "hires_cam"]
    with Explainer(model, layers, methods) as explainer:
        found = explain_variants(explainer, image, torch.tensor([[target]]), [meta, Meta(lr)])
    after = _stepped(model, image, target, lr)
    seen: dict[str, Tensor] = {}
    for layer in layers:
        after.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: seen.update({layer: output.detach()})
        )
    after(image)
    for layer in layers:
        slopes = torch.zeros_like(seen[layer][0])
        for entry in _entries(slopes):
            step = torch.zeros_like(slopes)
            step[entry] = 1e-5
            ahead, behind = (
                _score_after_the_step(model, image, target, lr, layer, sign * step)
                for sign in (1, -1)
            )
            slopes[entry] = (ahead - behind) / 2e-5
        maps = {method: found[meta.name][method, layer][0, 0] for method in methods}
        expected = {
            "plain:bias:sum": slopes.sum(0),
            "plain:bias:norm": slopes.square().sum(0).sqrt(),
            "hires_cam": (slopes * seen[layer][0]).sum(0),
        }
        for method, values in expected.items():
            assert (maps[method] - values).abs().max() <= 1e-6 * slopes.abs().max(), (layer, method)
        first = found[Meta(lr).name]["plain:bias:sum", layer][0, 0]
        assert (maps["plain:bias:sum"] - first).abs().max() > 1e-2 * slopes.abs().max(), layer


def _entries(slopes: Tensor) -> list[tuple[int, int, int]]:
    return [(int(c), int(i), int(j)) for c, i, j in torch.ones_like(slopes).nonzero()]


def test_second_order_of_every_layer_is_the_same_alone_and_beside_others() -> None:
    model, batch, meta = small(), images(3), Meta(0.3, second_order=True)
    together = Explainer(model, LAYERS, ["gradient", "normgrad"])
    found = explain_variants(together, batch, TARGETS, [meta])[meta.name]
    for layer in LAYERS:
        alone = explain_variants(Explainer(model, [layer], ["gradient"]), batch, TARGETS, [meta])
        _assert_close(found["gradient", layer], alone[meta.name]["gradient", layer], layer)


def test_second_order_with_a_rate_of_zero_is_the_gradient() -> None:
    meta = Meta(0.0, second_order=True)
    found = explain_variants(
        Explainer(small(), LAYERS, ["gradient", "normgrad"]), images(3), TARGETS, [meta]
    )
    for key, values in found[BASE].items():
        _assert_close(found[meta.name][key], values, key)


def test_both_orders_can_be_asked_for_at_once() -> None:
    metas = [Meta(0.1), Meta(0.1, second_order=True), Meta(-0.1)]
    explainer = Explainer(small(), LAYERS, ["gradient"])
    together = explain_variants(explainer, images(3), TARGETS, metas)
    for meta in metas:
        alone = explain_variants(explainer, images(3), TARGETS, [meta])[meta.name]
        assert all(torch.equal(alone[key], together[meta.name][key]) for key in alone)


@pytest.mark.parametrize("method", ["guided_backprop", "excitation_backprop"])
def test_second_order_of_another_rule_is_an_error(method: str) -> None:
    rule = method.removesuffix("_backprop")
    with (
        Explainer(small(), LAYERS, ["gradient", method]) as explainer,
        pytest.raises(
            VariantError, match=f"second order is defined for the gradient, not for rule {rule}"
        ),
    ):
        explain_variants(explainer, images(3), TARGETS, [Meta(0.1, second_order=True)])


# Cascades


def test_a_cascade_draws_everything_from_the_head_down_to_its_layer_and_nothing_below() -> None:
    model = small()
    drawn = cascade_parameters(model, "conv2", seed=0)
    modules = ("conv2", "bn2", "conv3", "head")
    whole = {name for name in model.state_dict() if name.split(".")[0] in modules}
    assert set(drawn) == whole
    state = model.state_dict()
    for name, value in drawn.items():
        if name.endswith("weight") and not name.startswith("bn"):
            assert not torch.isclose(value, state[name]).any(), name
            # PyTorch's own initialisation: uniform within 1 / √fan-in.
            bound = value[0].numel() ** -0.5
            assert 0.7 * bound < value.abs().max() <= bound
        assert value.shape == state[name].shape
        assert value.dtype == state[name].dtype
        assert not value.requires_grad


def test_the_maps_of_a_cascade_are_those_of_a_copy_with_its_weights() -> None:
    model, batch = small(), images(3)
    layers = ["input", "bn1", "pool", "conv3"]
    found = explain_variants(
        Explainer(model, layers, ANYWHERE), batch, TARGETS, [Cascade("bn2")], seed=5
    )["cascade(bn2)"]
    copied = copy.deepcopy(model)
    copied.load_state_dict(cascade_parameters(model, "bn2", seed=5), strict=False)
    expected = Explainer(copied, layers, ANYWHERE)(batch, TARGETS)
    assert torch.equal(found.logits, expected.logits)
    for key in expected:
        assert (found[key] - expected[key]).abs().max() <= 1e-12 * expected[key].abs().max(), key
    base = Explainer(model, layers, ANYWHERE)(batch, TARGETS)
    assert not torch.equal(found["normgrad", "bn1"], base["normgrad", "bn1"])


def test_the_same_seed_draws_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (cascade_parameters(small(), "conv2", seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv3.weight"], other["conv3.weight"])
    torch.manual_seed(99)  # whatever the caller's own state is
    assert torch.equal(
        cascade_parameters(small(), "conv2", 3)["conv2.weight"], first["conv2.weight"]
    )


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_longer_cascade_begins_with_the_weights_of_a_shorter_one(name: str) -> None:
    model = network(name, torch.float32)
    layers = {
        "resnet18": ["fc", "layer4.1.conv2", "layer4", "layer2", "conv1"],
        "squeezenet1_1": ["classifier", "features.12.expand3x3", "features.9", "features"],
    }[name]
    drawn = [cascade_parameters(model, layer, seed=0) for layer in layers]
    for shorter, longer in itertools.pairwise(drawn):
        assert len(longer) > len(shorter) > 0
        assert all(torch.equal(longer[key], value) for key, value in shorter.items())
    assert set(drawn[-1]) == set(model.state_dict())


def test_classes_are_those_of_the_base_model_or_the_cascades_own() -> None:
    choosers = [lambda z: [int(z.argmax()), int(z.argmin())]] * 3
    variants = [Cascade("stem"), Cascade("stem", own_classes=True)]
    found = explain_variants(
        Explainer(small(), LAYERS, ["normgrad"]), images(3), choosers, variants
    )
    kept, own = found["cascade(stem)"], found["cascade(stem,own_classes)"]
    assert torch.equal(kept.logits, own.logits)
    assert not torch.equal(kept.logits, found[BASE].logits)
    assert torch.equal(kept.targets, found[BASE].targets)
    by_random_logits = torch.stack([own.logits.argmax(1), own.logits.argmin(1)], 1)
    assert torch.equal(own.targets, by_random_logits)
    assert not torch.equal(own.targets, kept.targets)


def test_a_cascade_to_no_layer_is_answered_with_the_valid_ones() -> None:
    for layer in ("conv9", "input", ""):
        with pytest.raises(VariantError) as error:
            cascade_parameters(small(), layer, seed=0)
        assert f"unknown layer {layer!r}; " in str(error.value)
        assert "valid: stem, bn1, relu1, conv2, bn2" in str(error.value)
    with pytest.raises(VariantError, match="unknown layer 'conv9'; did you mean conv"):
        explain_variants(
            Explainer(small(), LAYERS, ["normgrad"]), images(3), TARGETS, [Cascade("conv9")]
        )


# Names


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Meta(0.0025), "meta(lr=+0.0025)"),
        (Meta(-0.0025), "meta(lr=-0.0025)"),
        (Meta(1e-05), "meta(lr=+1e-05)"),
        (Meta(0.001234567891), "meta(lr=+0.001234567891)"),
        (Meta(2.0), "meta(lr=+2.0)"),
        (Meta(0.0025, second_order=True), "meta(lr=+0.0025,second_order)"),
        (Cascade("layer4"), "cascade(layer4)"),
        (Cascade("layer4.0.conv1", own_classes=True), "cascade(layer4.0.conv1,own_classes)"),
    ],
)
def test_a_variant_is_known_by_its_name(variant: Variant, name: str) -> None:
    assert variant.name == name
    assert parse_variants([name]) == (Base(), variant)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["base"], []),
        ([], []),
        (["base", "meta"], ["meta(lr=+0.0025)", "meta(lr=-0.0025)"]),
        (["meta(lr=0.0025)", "meta"], ["meta(lr=+0.0025)", "meta(lr=-0.0025)"]),
        (["meta(lr=.5)", "meta(lr=2)"], ["meta(lr=+0.5)", "meta(lr=+2.0)"]),
        (["meta(lr=1e-3)", "meta(lr=+1e+1)"], ["meta(lr=+0.001)", "meta(lr=+10.0)"]),
        (["cascade"], ["cascade(pool)", "cascade(stem)"]),
        (["cascade(pool)", "cascade"], ["cascade(pool)", "cascade(stem)"]),
    ],
)
def test_short_names_stand_for_several(names: list[str], expected: list[str]) -> None:
    variants = parse_variants(names, ["stem", "pool"])
    assert [variant.name for variant in variants] == [BASE, *expected]


def test_only_a_cascade_may_have_its_own_classes() -> None:
    variants = parse_variants(["meta", "cascade(stem)", "cascade(stem,own_classes)"])
    assert [v.name for v in variants if v.own_classes] == ["cascade(stem,own_classes)"]


@pytest.mark.parametrize(
    ("name", "opposite"),
    [
        ("meta(lr=+0.0025)", "meta(lr=-0.0025)"),
        ("meta(lr=+1e-05,second_order)", "meta(lr=-1e-05,second_order)"),
        ("meta(lr=-0.0025)", None),
        ("base", None),
        ("cascade(stem)", None),
    ],
)
def test_a_positive_step_has_an_opposite(name: str, opposite: str | None) -> None:
    assert opposite_step(name) == opposite


def test_variants_are_those_that_were_parsed_with_the_base_first() -> None:
    variants = parse_variants(["meta(lr=0.1)", "base", "cascade(head)"])
    explainer = Explainer(small(), LAYERS, ["normgrad"])
    found = explain_variants(explainer, images(3), TARGETS, variants)
    assert list(found) == [BASE, "meta(lr=+0.1)", "cascade(head)"]


@pytest.mark.parametrize(
    "name",
    [
        *("Base", "metas", "meta()", "meta(0.1)", "meta(lr=)", "meta(lr=1.2.3)", "meta(lr=.)"),
        *("meta(lr=nan)", "meta(lr=0.1,second)", "meta(lr=0.1", "cascade()", "cascade(a,b)", ""),
    ],
)
def test_a_wrong_variant_is_answered_with_the_valid_ones(name: str) -> None:
    with pytest.raises(VariantError) as error:
        parse_variants(["base", name])
    assert f"unknown variant {name!r}; " in str(error.value)
    assert "valid: base, meta, meta(lr=0.001)" in str(error.value)
    assert "cascade(LAYER,own_classes)" in str(error.value)


def test_variants_are_named_in_the_order_asked_for() -> None:
    variants = [Cascade("head"), Meta(-0.1), Cascade("conv3"), Meta(0.1)]
    found: dict[str, Maps] = explain_variants(
        Explainer(small(), LAYERS, ["normgrad"]), images(3), TARGETS, variants
    )
    assert list(found) == [BASE, *(variant.name for variant in variants)]


def test_a_layer_that_cannot_be_explained_is_named_before_any_step() -> None:
    with pytest.raises(LayerError, match="not a feature map"):
        explain_variants(
            Explainer(small(), ["head"], ["normgrad"]), images(3), TARGETS, [Meta(0.1)]
        )


def test_the_weights_of_cascades_are_drawn_once_while_the_explainer_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draws = []
    reset = nn.Linear.reset_parameters

    def counting(layer: nn.Linear) -> None:
        draws.append(layer)
        reset(layer)

    model = small()
    monkeypatch.setattr(nn.Linear, "reset_parameters", counting)
    variants = [Cascade("head"), Cascade("conv3")]
    with Explainer(model, ["pool"], ["normgrad"]) as explainer:
        first, again = (explain_variants(explainer, images(3), TARGETS, variants) for _ in range(2))
        assert len(draws) == 1
        for name, maps in first.items():
            assert torch.equal(again[name]["normgrad", "pool"], maps["normgrad", "pool"])
        explain_variants(explainer, images(3), TARGETS, variants, seed=1)
    assert len(draws) == 2
