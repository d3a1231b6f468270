"""The maps of every variant of a model: the engine run with other parameters.

A meta-saliency step (Rebuffi et al. 2020, section 4) is made per image and target. A cascade
(Adebayo et al. 2018) draws random weights. The variants themselves are in `transforms.variants`.
"""

import copy
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from transforms.backward import RuleSwitch
from transforms.engine import Chooser, Explainer
from transforms.map_key import NO_TARGET
from transforms.maps import Maps
from transforms.names import unknown_name
from transforms.rules import GRADIENT, RULES
from transforms.variants import BASE, ONE_CLASS, Cascade, Meta, Variant, VariantError

Parameters = dict[str, Tensor]
"""Parameters and buffers by name."""


def explain_variants(
    explainer: Explainer,
    images: Tensor,
    targets: Tensor | Sequence[Chooser],
    variants: Sequence[Variant],
    seed: int = 0,
) -> dict[str, Maps]:
    """The maps of `base` and of each of `variants`, by the variant's name.

    The logits of a `meta` variant's maps are those of `base`. `seed` is that of the random weights
    of the cascades.

    Raises:
        VariantError: the model has no layer of a cascade's name, or one class and a meta step, or
            the second order is asked for with a rule that is not the gradient.
    """
    with nullcontext() if explainer.is_open else explainer, explainer.differentiating(images):
        base = explainer(images, targets)
        maps = {BASE: base}
        metas = [variant for variant in variants if isinstance(variant, Meta)]
        if metas:
            maps.update(_meta(explainer, images, base, metas))
        cascades = [variant for variant in variants if isinstance(variant, Cascade)]
        if cascades:
            draws = _draws_of(explainer, {cascade.layer for cascade in cascades}, seed)
        for cascade in cascades:
            chosen = targets if cascade.own_classes else base.targets
            maps[cascade.name] = explainer(images, chosen, draws[cascade.layer])
    return {name: maps[name] for name in (BASE, *(variant.name for variant in variants))}


def meta_steps(
    model: nn.Module, image: Tensor, targets: Sequence[int], rates: Sequence[float]
) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    """Parameters after one step on `image` `[1, 3, H, W]`, for each target and rate.

    Yields (target, rate, parameters). The next ones are written over them, since allocating those
    of a large model takes longer than computing them.
    """
    theta = _leaves(model)
    stepped = {name: torch.empty_like(p) for name, p in theta.items()}
    with RuleSwitch([GRADIENT]):
        # A copy: a model may normalise in place.
        scores = _scores(functional_call(model, theta, (image.clone(),)))
    for i, target in enumerate(targets):
        # The gradient of the cross-entropy: the probabilities, minus 1 at the target.
        signal = scores.detach().softmax(1)
        signal[0, target] -= 1
        gradient = torch.autograd.grad(
            scores,
            list(theta.values()),
            signal,
            retain_graph=i + 1 < len(targets),
            materialize_grads=True,
        )
        for rate in rates:
            for (name, p), g in zip(theta.items(), gradient, strict=True):
                torch.mul(g, -rate, out=stepped[name]).add_(p.detach())
            yield target, rate, stepped


def cascade_parameters(model: nn.Module, layer: str, seed: int) -> dict[str, Tensor]:
    """Random parameters and buffers for every module from the head down to `layer`.

    Modules come in the order of `named_modules`, and their `reset_parameters` draws.

    Raises:
        VariantError: no such layer.
    """
    return _prefixes(model, {layer}, seed)[layer]


def _draws_of(
    explainer: Explainer, layers: AbstractSet[str], seed: int
) -> dict[str, dict[str, Tensor]]:
    """The parameters of the cascades to each of `layers`, drawn once while it is open."""
    model = explainer.model
    return explainer.weights.get(
        ("cascades", frozenset(layers), seed),
        lambda: _prefixes(model, layers, seed),
        *model.state_dict(keep_vars=True).values(),
    )


def _prefixes(
    model: nn.Module, layers: AbstractSet[str], seed: int
) -> dict[str, dict[str, Tensor]]:
    """`cascade_parameters` for each of `layers`; they share their tensors."""
    names = [name for name, _ in model.named_modules()]
    for layer in sorted(layers):
        if layer not in names[1:]:
            raise VariantError(f"cascade: {unknown_name('layer', layer, names[1:])}")
    found: dict[str, Parameters] = {}
    drawn: Parameters = {}
    own = model.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # From the head, so that a longer cascade starts with the weights of a shorter one.
        for name, module in reversed(list(model.named_modules())):
            if hasattr(module, "reset_parameters"):
                # On the CPU, so that every device has the same weights.
                fresh = copy.deepcopy(module).cpu()
                fresh.reset_parameters()
                state = fresh.state_dict(prefix=f"{name}.")
                drawn.update({key: value.to(own[key].device) for key, value in state.items()})
            if name in layers:
                found[name] = dict(drawn)
            if len(found) == len(layers):
                break
    return found


def _meta(
    explainer: Explainer, images: Tensor, base: Maps, metas: Sequence[Meta]
) -> dict[str, Maps]:
    """The maps of each image and target, computed alone, so that no map depends on its batch."""
    if base.logits.shape[1] == 1:
        raise VariantError(ONE_CLASS)
    targets = base.targets
    first = [meta for meta in metas if not meta.second_order]
    second = [meta for meta in metas if meta.second_order]
    others = [rule for rule in explainer.methods if not RULES[rule].is_gradient]
    if second and others:
        raise VariantError(
            f"second order is defined for the gradient, not for rule {', '.join(others)}"
        )
    maps = {
        meta.name: {key: torch.zeros_like(values) for key, values in base.items()} for meta in metas
    }

    def put(meta: Meta, row: int, target: int, found: Maps) -> None:
        for key, values in found.items():
            maps[meta.name][key][row, targets[row] == target] = values[0, 0]

    for row, image in enumerate(torch.split(images, 1)):
        chosen = list(dict.fromkeys(int(t) for t in targets[row] if t != NO_TARGET))
        if first and chosen:
            steps = meta_steps(explainer.model, image, chosen, [meta.lr for meta in first])
            for target, rate, theta in steps:
                found = explainer(image, torch.tensor([[target]]), theta)
                put(Meta(rate), row, target, found)
        for meta in second:
            for target in chosen:
                put(meta, row, target, _second_order(explainer, image, target, meta.lr))
    return {meta.name: Maps(base.logits, targets, base.spreads, maps[meta.name]) for meta in metas}


def _second_order(explainer: Explainer, image: Tensor, target: int, lr: float) -> Maps:
    """The gradient of the score after the step, through the step.

    The activation enters both the forward pass of the step and the one after it. Zeros are added
    to it in both, and the gradient is with respect to these.
    """
    model, taps = explainer.model, explainer.taps
    # The fused kernels of attention have no second derivative.
    with (
        explainer.differentiating(image),
        taps.shifted() as shifts,
        sdpa_kernel(SDPBackend.MATH),
    ):
        theta = _leaves(model)
        before = _scores(functional_call(model, theta, (taps.start(image),)))
        targets = torch.tensor([target], device=image.device)
        loss = torch.nn.functional.cross_entropy(before, targets)
        gradient = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, materialize_grads=True
        )
        stepped = {name: p - lr * g for (name, p), g in zip(theta.items(), gradient, strict=True)}
        logits = functional_call(model, stepped, (taps.start(image),))
        after = _scores(logits)
        signal = explainer.signal(logits, targets)
        tapped = [shifts[layer] for layer in taps.layers]
        gradients = torch.autograd.grad(logits, tapped, signal, allow_unused=True)
        return Maps(
            after.detach(),
            targets[:, None],
            {},
            {
                key: values[:, None]
                for rule in explainer.methods
                for key, values in explainer.aggregate(rule, signal, gradients)
            },
        )


def _leaves(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_() for name, p in model.named_parameters()}


def _scores(logits: Tensor) -> Tensor:
    """`[B, N]`; for a fully convolutional model, the means over space."""
    return logits if logits.dim() == 2 else logits.mean((2, 3))
