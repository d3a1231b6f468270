"""Variants: the model under which a map is computed.

``base`` is the model itself. ``meta(lr=…)`` is the paper's meta-saliency (Rebuffi et al. 2020,
section 4): the model after one step of plain SGD on one image and target. ``cascade(layer)`` has
its weights drawn anew from the head down to a layer (Adebayo et al. 2018). A variant is a choice
of parameters and never a copy of the model.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from transforms.engine import NO_TARGET, Chooser, Explainer, Maps

LEARNING_RATE = 0.0025
BASE = "base"


class VariantError(ValueError):
    """Not a variant, or one that the model or the methods do not allow."""


@dataclass(frozen=True)
class Meta:
    """One step ``θ − lr ∇_θ CE(Φ_θ(x), target)``; a negative ``lr`` goes the adversarial way.

    ``second_order`` differentiates the map's gradient through the step as well.
    """

    lr: float
    second_order: bool = False

    @property
    def name(self) -> str:
        """``meta(lr=+0.0025)``, with ``,second_order`` where it is."""
        return f"meta(lr={self.lr:+}{',second_order' if self.second_order else ''})"


@dataclass(frozen=True)
class Cascade:
    """Weights drawn anew from the head down to ``layer``, that included.

    The classes stay those that the base model chose, unless they are ``anew`` those of the
    randomised model.
    """

    layer: str
    anew: bool = False

    @property
    def name(self) -> str:
        """``cascade(layer4)``, with ``,anew`` where the classes are chosen anew."""
        return f"cascade({self.layer}{',anew' if self.anew else ''})"


Variant = Meta | Cascade

_META = r"meta\(lr=([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(,second_order)?\)"


def parse_variants(names: Iterable[str], layers: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The variants beside ``base`` that ``names`` stand for, each once.

    ``meta`` stands for both signs of the paper's rate, ``cascade`` for a cascade to each of
    ``layers``, from the last to the first.

    Raises:
        VariantError: a name is none of base, meta, meta(lr=X[,second_order]), cascade,
            cascade(LAYER[,anew]).
    """
    found: list[Variant] = []
    for name in names:
        if name == "meta":
            found += [Meta(LEARNING_RATE), Meta(-LEARNING_RATE)]
        elif match := re.fullmatch(_META, name):
            found.append(Meta(float(match[1]), bool(match[2])))
        elif name == "cascade":
            found += [Cascade(layer) for layer in reversed(layers)]
        elif match := re.fullmatch(r"cascade\(([\w.]+)(,anew)?\)", name):
            found.append(Cascade(match[1], bool(match[2])))
        elif name != BASE:
            raise VariantError(
                f"unknown variant {name!r}; valid: base, meta, meta(lr=0.001), "
                "meta(lr=0.001,second_order), cascade, cascade(LAYER), cascade(LAYER,anew)"
            )
    return tuple(dict.fromkeys(found))


def explain_variants(
    explainer: Explainer,
    images: Tensor,
    targets: Tensor | Sequence[Chooser],
    variants: Sequence[Variant],
    seed: int = 0,
) -> dict[str, Maps]:
    """The maps of ``base`` and of each of ``variants``, by the variant's name.

    The logits of a ``meta`` variant's maps are those of ``base``. ``seed`` draws the
    weights of the cascades.

    Raises:
        VariantError: a cascade's layer is not one of the model's, or second order is asked of a
            rule other than ``plain``.
    """
    with nullcontext() if explainer.is_open else explainer, explainer.differentiating(images):
        base = explainer(images, targets)
        maps = {BASE: base}
        metas = [variant for variant in variants if isinstance(variant, Meta)]
        if metas:
            maps.update(_meta(explainer, images, base, metas))
        for variant in variants:
            if isinstance(variant, Cascade):
                parameters = cascade_parameters(explainer.model, variant.layer, seed)
                chosen = targets if variant.anew else base.targets
                maps[variant.name] = explainer(images, chosen, parameters)
    return {name: maps[name] for name in (BASE, *(variant.name for variant in variants))}


def meta_steps(
    model: nn.Module, image: Tensor, targets: Sequence[int], rates: Sequence[float]
) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    """Parameters after one step on ``image`` ``[1, 3, H, W]``, for each target and rate.

    Yields (target, rate, parameters).
    """
    theta = _leaves(model)
    # A copy: a model may normalise in place.
    scores = _scores(functional_call(model, theta, (image.clone(),)))
    for i, target in enumerate(targets):
        seed = scores.detach().softmax(1)  # less 1 at the target, the gradient of the cross-entropy
        seed[0, target] -= 1
        gradient = torch.autograd.grad(
            scores,
            list(theta.values()),
            seed,
            retain_graph=i + 1 < len(targets),
            materialize_grads=True,
        )
        for rate in rates:
            stepped = zip(theta.items(), gradient, strict=True)
            yield target, rate, {name: p.detach() - rate * g for (name, p), g in stepped}


def cascade_parameters(model: nn.Module, layer: str, seed: int) -> dict[str, Tensor]:
    """Parameters and buffers drawn anew for every module from the head down to ``layer``.

    Modules are taken in the order of ``named_modules``, and drawn by their ``reset_parameters``.

    Raises:
        VariantError: no such layer.
    """
    names = [name for name, _ in model.named_modules()]
    if layer not in names[1:]:
        raise VariantError(f"cascade: no layer named {layer!r}; valid: {', '.join(names[1:])}")
    drawn: dict[str, Tensor] = {}
    own = model.state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # From the head, so that a longer cascade starts with the weights of a shorter one.
        for name, module in reversed(list(model.named_modules())[names.index(layer) :]):
            if hasattr(module, "reset_parameters"):
                # On the CPU, so that every device has the same weights.
                fresh = copy.deepcopy(module).cpu()
                fresh.reset_parameters()
                state = fresh.state_dict(prefix=f"{name}.")
                drawn.update({key: value.to(own[key].device) for key, value in state.items()})
    return drawn


def _meta(
    explainer: Explainer, images: Tensor, base: Maps, metas: Sequence[Meta]
) -> dict[str, Maps]:
    """Each image and target by itself, so that no map depends on its batch."""
    targets = base.targets
    first = [meta for meta in metas if not meta.second_order]
    second = [meta for meta in metas if meta.second_order]
    if second and set(explainer.methods) != {"plain"}:
        others = ", ".join(rule for rule in explainer.methods if rule != "plain")
        raise VariantError(f"second order is defined for rule plain, not for {others}")
    maps = {
        meta.name: {key: torch.zeros_like(values) for key, values in base.items()} for meta in metas
    }

    def put(meta: Meta, row: int, target: int, found: Maps) -> None:
        for key, values in found.items():
            maps[meta.name][key][row, targets[row] == target] = values[0, 0]

    for row, image in enumerate(images.split(1)):
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

    The activation enters both the step's own forward pass and the one after it; zeros added to it
    in both are what is differentiated by.
    """
    model, taps = explainer.model, explainer.taps
    with explainer.differentiating(image), taps.shifted() as shifts:
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
        gradients = torch.autograd.grad(
            logits,
            [shifts[layer] for layer in taps.layers],
            explainer.signal(logits, targets),
            allow_unused=True,
        )
        return Maps(
            after.detach(),
            targets[:, None],
            {},
            {key: values[:, None] for key, values in explainer.aggregate("plain", gradients)},
        )


def _leaves(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_() for name, p in model.named_parameters()}


def _scores(logits: Tensor) -> Tensor:
    """``[B, N]``; of a fully convolutional model, the means over space."""
    return logits if logits.dim() == 2 else logits.mean((2, 3))
