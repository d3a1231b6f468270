"""Meta-saliency against a loop over images: CPU time for the same maps, which must agree.

    uv run python tests/benchmarks/meta_against_loop.py [--rounds 5] [--images 1] [--size 224]

SqueezeNet 1.1, both signs of the rate, eight methods at five layers for K classes per image; one
thread, float32. The weights are random with a seed or, if BACKLIGHT_DATA names a folder, those of
ImageNet from there. Four programs are timed. Backlight and both loops give the same meta maps:

    Backlight          `explain_variants`: the base model and both meta steps in one call
    base alone         the part of Backlight's call that is for the base model; it is subtracted
    one call per map   a loop: for each image, class and rate, copy the model, take the step, then
                       one forward and one backward per method and layer, as a user of Captum or
                       TorchRay asks for them
    one call per copy  a loop: for each image, class and rate, copy the model, take the step, then
                       one `Explainer` call for all methods and layers. Against this loop Backlight
                       gains by not copying and by sharing the step. The rest of what it gains
                       against the other loop comes from the passes that the engine shares.

The loops compute no base maps, so their times are divided by Backlight's time minus that of base
alone. The ratio to the whole of Backlight's time is printed too.

The time is the CPU time (`time.process_time`) of whole calls. In every round the programs take
turns. The result is the median over the rounds, after one round to warm up. The maps are compared
in float64, where no rounding decides a ReLU. No time is asserted.
"""

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from transforms.engine import Explainer
from transforms.extract import Activation, Tapped
from transforms.methods import METHODS
from transforms.variant_maps import explain_variants
from transforms.variants import LEARNING_RATE, Meta

LAYERS = ["features.2", "features.5", "features.8", "features.10", "features.12"]
CHOSEN = [
    *("gradient", "linear_approx", "normgrad", "normgrad_selective"),
    *("grad_cam", "layer_cam", "guided_backprop", "deconvnet"),
]
METAS = [Meta(LEARNING_RATE), Meta(-LEARNING_RATE)]
TOLERANCE = 1e-8
"""Largest difference of the programs' maps, relative to a map's largest magnitude (float64)."""

Maps = dict[tuple[str, str, str], Tensor]  # by variant, method and layer: [B, K, h, w]


def stepped_copy(model: nn.Module, image: Tensor, target: int, lr: float) -> nn.Module:
    """A copy of `model` after one step of SGD on one image `[1, 3, H, W]` and one class."""
    model = copy.deepcopy(model)
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), abs(lr), maximize=lr < 0)
    F.cross_entropy(model(image), torch.tensor([target])).backward()
    optimizer.step()
    return model.requires_grad_(False)


@contextmanager
def hooked_relus(model: nn.Module, rule: str) -> Iterator[None]:
    """As in Captum and TorchRay: hooks on the ReLU modules change the gradient."""

    def guided(module: nn.Module, g_in: tuple[Tensor], g_out: tuple[Tensor]) -> tuple[Tensor]:
        return (F.relu(g_in[0]) if rule == "guided" else F.relu(g_out[0]),)

    with ExitStack() as stack:
        for module in model.modules() if rule != "plain" else ():
            if isinstance(module, nn.ReLU):
                handle = module.register_full_backward_hook(guided)
                stack.callback(handle.remove)
        yield


def attribution(model: nn.Module, image: Tensor, target: int, method: str, layer: str) -> Tensor:
    """One map `[h, w]`: one forward, and one backward that stops at the layer."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with hooked_relus(model, METHODS[method].rule):
            score = model(image)[0, target]
            (g,) = torch.autograd.grad(score, kept)
    finally:
        handle.remove()
    return METHODS[method].map(Tapped(Activation(kept[0].detach()), g))[0]


def loop(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    explain: Callable[[nn.Module, Tensor, int], dict[tuple[str, str], Tensor]],
) -> Maps:
    """For each rate, image and class: copy, step, explain."""
    found: dict[tuple[str, str, str], list[Tensor]] = {}
    for meta in METAS:
        for image, classes in zip(images.split(1), targets.tolist(), strict=True):
            for target in classes:
                there = stepped_copy(model, image, target, meta.lr)
                for (method, layer), values in explain(there, image, target).items():
                    found.setdefault((meta.name, method, layer), []).append(values)
    return {
        key: torch.stack(values).unflatten(0, tuple(targets.shape)) for key, values in found.items()
    }


def call_per_map(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    """One forward and one backward pass per map."""
    return loop(
        model,
        images,
        targets,
        lambda there, image, target: {
            (method, layer): attribution(there, image, target, method, layer)
            for method in CHOSEN
            for layer in LAYERS
        },
    )


def call_per_copy(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    """One call of the engine for all maps of a copy of the model."""

    def explain(there: nn.Module, image: Tensor, target: int) -> dict[tuple[str, str], Tensor]:
        maps = Explainer(there, LAYERS, CHOSEN)(image, torch.tensor([[target]]))
        return {key: values[0, 0] for key, values in maps.items()}

    return loop(model, images, targets, explain)


def backlight(explainer: Explainer, images: Tensor, targets: Tensor) -> Maps:
    """The maps of both meta steps. Those of the base model are computed too, and left out."""
    found = explain_variants(explainer, images, targets, METAS)
    return {(meta.name, *key): values for meta in METAS for key, values in found[meta.name].items()}


def squeezenet() -> tuple[nn.Module, str]:
    """The network, and where its weights come from."""
    torch.manual_seed(0)
    model = models.squeezenet1_1()
    weights = "random weights"
    if folder := os.environ.get("BACKLIGHT_DATA"):
        path = Path(folder, "weights", "squeezenet1_1-imagenet.pth")
        model.load_state_dict(torch.load(path, weights_only=True))
        weights = "ImageNet weights"
    for module in model.modules():  # the loop's hooks do not work with in-place ReLUs
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model.eval().requires_grad_(False), weights


def largest_difference(found: Maps, expected: Maps) -> tuple[float, int]:
    """The largest difference, relative to a map's largest magnitude, and how many maps are zero.

    A map counts as zero if it is zero in both programs. With random weights some are: after a step
    the last ReLU may be closed for a class.
    """
    assert found.keys() == expected.keys()
    largest, zeros = 0.0, 0
    for key, values in expected.items():
        magnitude = values.abs().amax((2, 3))
        difference = (found[key] - values).abs().amax((2, 3))
        zero = (magnitude == 0) & (difference == 0)
        zeros += int(zero.sum())
        largest = max(largest, torch.where(zero, 0, difference / magnitude).max().item())
    return largest, zeros


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=3, help="classes to explain per image")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model, weights = squeezenet()
    images = torch.randn(options.images, 3, options.size, options.size)
    # The most likely classes: SqueezeNet ends in a ReLU, and a class of logit 0 has no gradient.
    targets = model(images).topk(options.classes).indices
    print(
        f"SqueezeNet 1.1, {weights}, {options.images} images of {options.size}², "
        f"{options.classes} classes, {len(CHOSEN)} methods, {len(LAYERS)} layers, "
        f"lr ±{LEARNING_RATE}; one thread, {options.rounds} rounds; torch {torch.__version__}"
    )

    double = copy.deepcopy(model).double()
    with Explainer(double, LAYERS, CHOSEN) as explainer:
        ours = backlight(explainer, images.double(), targets)
    for name, program in (("one call per map", call_per_map), ("one call per copy", call_per_copy)):
        difference, zeros = largest_difference(ours, program(double, images.double(), targets))
        maps = len(ours) * targets.numel()
        print(
            f"  largest relative difference from {name}: {difference:.1e} "
            f"in {maps} maps, of which {zeros} are zero"
        )
        if not difference <= TOLERANCE or 2 * zeros > maps:
            raise SystemExit(f"the maps differ by more than {TOLERANCE}, or most are zero")

    with Explainer(copy.deepcopy(model), LAYERS, CHOSEN) as explainer:
        programs: dict[str, Callable[[], object]] = {
            "Backlight": lambda: backlight(explainer, images, targets),
            "base alone": lambda: explainer(images, targets),
            "one call per map": lambda: call_per_map(model, images, targets),
            "one call per copy": lambda: call_per_copy(model, images, targets),
        }
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for i in range(options.rounds + 1):
            for name, program in programs.items():
                start = time.process_time()
                program()
                if i:
                    seconds[name].append(time.process_time() - start)
            print(f"  round {i} of {options.rounds}", file=sys.stderr)

    whole, base = seconds["Backlight"], seconds["base alone"]
    meta = [a - b for a, b in zip(whole, base, strict=True)]
    print(f"{'':18}{'CPU s, median':>14}{'min':>8}{'max':>8}{'to meta':>10}{'to whole':>10}")
    for name, times in seconds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(times, ours, strict=True))
            for ours in (meta, whole)
        ]
        print(
            f"{name:18}{statistics.median(times):14.3f}{min(times):8.3f}{max(times):8.3f}"
            f"{ratios[0]:9.2f}x{ratios[1]:9.2f}x"
        )


if __name__ == "__main__":
    main()
