"""The engine against TorchRay, Captum, another revision of itself, and the floor of its FLOPs.

    uv run --with torchray==1.0.0.2 python tests/benchmarks/engine_against_peers.py
        [--model resnet50] [--before REVISION] [--batch 2] [--rounds 3] [--parts sets,captum]

Seeded random weights with batch-norm statistics of random images; float32, channels-last, one
thread; three classes per image; the input and four layers, each with a ReLU above it. The methods:

    6 plain         gradient, linear_approx, normgrad, normgrad_selective, grad_cam, layer_cam
    10, 3 rules     and gradient_sum, grad_cam_pp, guided_backprop, deconvnet
    12, 5 rules     and excitation_backprop, contrastive_excitation_backprop

TorchRay's own functions make the maps that it has. What it lacks (NormGrad, LayerCAM, Grad-CAM++)
is made as in the authors' branch: its loop `saliency` with another function of activation and
gradient. Each map is one call with one forward and one backward pass (contrastive: two of each).
One class of the three is measured, and the time counts three times, since all classes cost the
same. TorchRay has no contrastive map at the input, so that one is left out of its time. Captum
makes the six shared attributions (see `engine_against_captum.py`); all of its calls are measured.
Both peers take batches of the sizes `--peer-batches`, and each size has a line.

The floor of a set is 1 forward pass, classes × rules backward passes and, for excitation, one
forward pass of the positive parts, each with the FLOPs of a forward pass as torch counts them, at
the best rate of some convolutions in the same run.

Times are CPU times (`time.process_time`) per image. In every round the programs take turns; the
result is the median. Before the sets are timed, the maps of the first class are compared with those
of TorchRay and of the other revision. Left out are contrastive maps, which are small differences
that float32 rounds away, Grad-CAM++ at the input, whose denominators come close to zero there,
excitation at the input, where TorchRay takes the signed image, and all excitation on a ResNet,
where TorchRay splits a residual sum by signed shares and this engine by those of the positive
parts. `--parts` chooses: `sets`, `captum`, `single` (one map alone),
`shapes` (photos of several shapes by turns), `meta` (a step per image and class), `memory` (the
peaks of five calls beside those of PyTorch).
"""

import argparse
import copy
import gc
import importlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from transforms.engine import Explainer
from transforms.extract import Activation, Tapped
from transforms.methods import METHODS
from transforms.rules import RULES
from transforms.variant_maps import explain_variants
from transforms.variants import LEARNING_RATE, Meta

PLAIN = ["gradient", "linear_approx", "normgrad", "normgrad_selective", "grad_cam", "layer_cam"]
THREE_RULES = [*PLAIN, "gradient_sum", "grad_cam_pp", "guided_backprop", "deconvnet"]
SETS = {
    "6 plain": PLAIN,
    "10, 3 rules": THREE_RULES,
    "12, 5 rules": [
        *(*THREE_RULES, "excitation_backprop", "contrastive_excitation_backprop"),
    ],
}
SHARED = ["gradient", "linear_approx", "guided_backprop", "deconvnet", "grad_cam"]
LAYERS = {
    "resnet50": ["input", "layer1", "layer2", "layer3", "layer4.1"],
    "vgg16": ["input", "features.4", "features.9", "features.16", "features.23"],
}
CLASSIFIER_INPUT = {"resnet50": "avgpool", "vgg16": "classifier.4"}
CLASSES = 3
TOLERANCE = 1e-3
"""Largest difference of the programs' maps, relative to a map's largest magnitude (float32)."""

NOT_AT_INPUT = {"excitation", "pp"}
"""What the maps are called that are not compared at the input."""

Program = Callable[[], Any]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 64, 64))
    model = model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def revision(name: str, folder: Path) -> tuple[type[Explainer], Any]:
    """`Explainer` and `transforms.variant_maps` of another revision, beside those of this one."""
    archive = ["git", "archive", name, "transforms"]
    tar = subprocess.run(archive, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=tar, check=True)
    own = {key: m for key, m in sys.modules.items() if key.partition(".")[0] == "transforms"}
    for key in own:
        del sys.modules[key]
    sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module("transforms.engine").Explainer
        return found, importlib.import_module("transforms.variant_maps")
    finally:
        sys.path.remove(str(folder))
        for key in [key for key in sys.modules if key.partition(".")[0] == "transforms"]:
            del sys.modules[key]
        sys.modules.update(own)


class TorchRay:
    """TorchRay's maps of one class, one call per map."""

    def __init__(self, name: str, model: nn.Module, images: Tensor, target: int) -> None:
        attribution = importlib.import_module("torchray.attribution.common")
        self._saliency = attribution.saliency
        self._own = {
            method: getattr(importlib.import_module(f"torchray.attribution.{module}"), module)
            for method, module in {
                **{m: m for m in ("gradient", "linear_approx", "grad_cam", "deconvnet")},
                **{m: m for m in ("guided_backprop", "excitation_backprop")},
            }.items()
        }
        excitation = importlib.import_module("torchray.attribution.excitation_backprop")
        self._contrastive = excitation.contrastive_excitation_backprop
        self.model = copy.deepcopy(model)
        if name == "resnet50":
            excitation.update_resnet(self.model)
        self.images, self.target = images, target
        self._classifier_input = CLASSIFIER_INPUT[name]

    def map(self, method: str, layer: str) -> Tensor | None:
        """The map `[B, h, w]`, without a ReLU where it has none; None where it has none at all."""
        x = self.images.clone().requires_grad_()
        where = "" if layer == "input" else layer
        if method == "contrastive_excitation_backprop":
            if layer == "input":
                return None
            found = self._contrastive(
                self.model, x, self.target, where, contrast_layer=self._classifier_input
            )
        elif method in self._own:
            found = self._own[method](self.model, x, self.target, saliency_layer=where)
        else:
            found = self._saliency(
                *(self.model, x, self.target, where),
                gradient_to_saliency=lambda t: METHODS[method].map(
                    Tapped(Activation(t.detach()), t.grad)
                )[:, None],
            )
        return found[:, 0].detach()

    def maps(self, methods: list[str], layers: list[str]) -> dict[tuple[str, str], Tensor | None]:
        return {(method, layer): self.map(method, layer) for method in methods for layer in layers}


def best_rate() -> float:
    """The best FLOP/s of some convolutions now."""
    best = 0.0
    for channels, side, kernel in ((64, 56, 3), (128, 28, 3), (256, 14, 3), (512, 28, 1)):
        x = torch.rand(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        w = torch.rand(channels, channels, kernel, kernel)
        w = w.contiguous(memory_format=torch.channels_last)
        for _ in range(6):
            began = time.process_time()
            F.conv2d(x, w, None, 1, kernel // 2)
            took = time.process_time() - began
            best = max(best, 2 * x.numel() * channels * kernel**2 / took)
    return best


def forward_flops(model: nn.Module, image: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops()


def passes(methods: list[str]) -> int:
    """The passes of a set's floor."""
    rules = {METHODS[method].rule for method in methods}
    return 1 + CLASSES * len(rules) + any(RULES[rule].excitation for rule in rules)


def measure(programs: dict[str, tuple[Program, float]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each program, times its weight, the programs taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds):
        for name, (program, weight) in programs.items():
            began = time.process_time()
            program()
            seconds[name].append((time.process_time() - began) * weight)
            print(f"    round {i + 1}: {name} {seconds[name][-1]:.3f} s", file=sys.stderr)
    return {name: statistics.median(times) for name, times in seconds.items()}


def check(found: Any, expected: Any, name: str) -> None:
    """Both give the first class's maps as `[B, h, w]`; on reading, ReLUs are applied."""
    worst = 0.0
    for key, theirs in expected.items():
        if theirs is None or (key[1] == "input" and NOT_AT_INPUT & set(key[0].split("_"))):
            continue
        if "contrastive" in key[0] or (name == "TorchRay on a ResNet" and "excitation" in key[0]):
            continue
        ours = found[key][:, 0]
        if METHODS[key[0]].relu_on_read and (theirs >= 0).all():
            ours = ours.clamp_min(0)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    print(f"  largest relative difference from {name}: {worst:.1e}", flush=True)
    if not worst <= TOLERANCE:
        raise SystemExit(f"the maps of {name} differ by more than {TOLERANCE}")


class Bench:
    def __init__(self, options: argparse.Namespace, before: tuple[Any, Any] | None) -> None:
        self.options, self.name, self.layers = options, options.model, LAYERS[options.model]
        self.model = network(options.model)
        self.other, self.before = copy.deepcopy(self.model), before
        generator = torch.Generator().manual_seed(1)
        size = options.size
        largest = max(options.batch, *options.peer_batches)
        images = torch.randn(largest, 3, size, size, generator=generator)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.targets = torch.tensor([[5, 300, 900]]).expand(largest, CLASSES)
        self._peer = "TorchRay on a ResNet" if self.name == "resnet50" else "TorchRay"
        self.flops = forward_flops(self.model, self.images[:1])
        try:
            self.peers = {
                count: TorchRay(self.name, self.model, self.images[:count], 5)
                for count in options.peer_batches
            }
        except ImportError:
            self.peers = {}
            print("TorchRay is not installed (see the top of this file): left out")

    def sets(self) -> None:
        """Sets of methods."""
        count = self.options.batch
        images, targets = self.images[:count], self.targets[:count]
        for label, methods in SETS.items():
            with Explainer(self.model, self.layers, methods) as ours:
                found = ours(images, targets)
                programs: dict[str, tuple[Program, float]] = {
                    "this": (lambda: ours(images, targets), 1 / count)
                }
                if self.before:
                    old = self.before[0](self.other, self.layers, methods).__enter__()
                    check(found, {k: v[:, 0] for k, v in old(images, targets).items()}, "before")
                    programs["before"] = (lambda: old(images, targets), 1 / count)  # noqa: B023
                for batch, peer in self.peers.items():
                    run = lambda p=peer: p.maps(methods, self.layers)  # noqa: B023, E731
                    if batch == min(self.peers):
                        check({k: v[:batch] for k, v in found.items()}, run(), self._peer)
                    programs[f"TorchRay, batch {batch}"] = (run, CLASSES / batch)
                self._table(label, measure(programs, self.options.rounds), passes(methods))
                if self.before:
                    old.__exit__(None, None, None)

    def captum(self) -> None:
        """The six attributions that Captum has."""
        if self.name != "resnet50":
            print("  Captum is compared with ResNet-50 alone")
            return
        from engine_against_captum import CaptumUser, with_one_relu_a_call

        warnings.filterwarnings("ignore")  # on every call Captum warns that it sets hooks
        count = self.options.batch
        with Explainer(self.model, self.layers, SHARED) as ours:
            programs: dict[str, tuple[Program, float]] = {
                "this": (lambda: ours(self.images[:count], self.targets[:count]), 1 / count)
            }
            for batch in self.options.peer_batches:
                user = CaptumUser(
                    with_one_relu_a_call(self.other), self.images[:batch], self.targets[:batch]
                )
                for what, run in (
                    ("layer by layer", user.layer_by_layer),
                    ("lists of layers", user.layers_in_a_list),
                ):
                    both = lambda u=user, r=run: (u.at_the_input(), r())  # noqa: E731
                    programs[f"Captum, {what}, batch {batch}"] = both, 1 / batch
            self._table(
                "six shared attributions", measure(programs, self.options.rounds), passes(SHARED)
            )

    def single(self) -> None:
        """One map alone: a method, a layer, a class, an image."""
        image, target = self.images[:1], self.targets[:1, :1]
        first, *_, last = self.layers[1:]
        for method, layer in (
            *(("gradient", "input"), ("grad_cam", last), ("normgrad", first)),
            *(("guided_backprop", first), ("excitation_backprop", first)),
            ("contrastive_excitation_backprop", last),
        ):
            with Explainer(self.model, [layer], [method]) as ours:
                ours(image, target)
                programs: dict[str, tuple[Program, float]] = {
                    "this": (lambda: ours(image, target), 1)
                }
                if self.before:
                    old = self.before[0](self.other, [layer], [method]).__enter__()
                    old(image, target)
                    programs["before"] = (lambda: old(image, target), 1)  # noqa: B023
                if 1 in self.peers:
                    peer = self.peers[1]
                    programs["TorchRay, batch 1"] = (lambda: peer.map(method, layer), 1)  # noqa: B023
                self._table(f"{method} at {layer}", measure(programs, self.options.rounds), None)
                if self.before:
                    old.__exit__(None, None, None)

    def shapes(self) -> None:
        """Photos of several shapes by turns, as in COCO; their shorter side is `--size`."""
        size = self.options.size
        sides = [(size, round(size * ratio)) for ratio in (1, 4 / 3, 1.5, 16 / 9)]
        generator = torch.Generator().manual_seed(2)
        images = [
            torch.randn(1, 3, *side, generator=generator).contiguous(
                memory_format=torch.channels_last
            )
            for height, width in sides
            for side in ((height, width), (width, height))
        ]
        targets = self.targets[:1]
        with ExitStack() as stack:
            ours = stack.enter_context(Explainer(self.model, self.layers, THREE_RULES))
            engines = {"this": ours}
            if self.before:
                engines["before"] = stack.enter_context(
                    self.before[0](self.other, self.layers, THREE_RULES)
                )
            programs: dict[str, tuple[Program, float]] = {
                name: (lambda e=engine: [e(image, targets) for image in images], 1 / len(images))  # type: ignore[misc]
                for name, engine in engines.items()
            }
            self._table("10 methods, 8 shapes", measure(programs, self.options.rounds), None)

    def meta(self) -> None:
        """A meta step per image and class: both signs, the methods of three rules."""
        images, targets, metas = self.images[:1], self.targets[:1], [Meta(LEARNING_RATE)]
        with Explainer(self.model, self.layers, THREE_RULES) as ours:
            programs: dict[str, tuple[Program, float]] = {
                "this": (lambda: explain_variants(ours, images, targets, metas), 1),
                "this, base alone": (lambda: ours(images, targets), 1),
            }
            if self.before:
                old = self.before[0](self.other, self.layers, THREE_RULES).__enter__()
                run = self.before[1]
                their = [run.Meta(LEARNING_RATE)]
                programs["before"] = (
                    lambda: run.explain_variants(old, images, targets, their),
                    1,
                )
            for program, _ in programs.values():
                program()
            self._table("base and meta(+lr)", measure(programs, self.options.rounds), None)
            if self.before:
                old.__exit__(None, None, None)

    def memory(self) -> None:
        """Peak memory after each of five calls, each program in a process of its own."""
        for label, methods in {"PyTorch, one gradient": None, **SETS}.items():
            with get_context("spawn").Pool(1) as process:
                peaks = process.apply(
                    peaks_of, (self.name, self.options.size, self.options.batch, methods)
                )
            print(f"  {label}: {', '.join(f'{p:.0f}' for p in peaks)} MB", flush=True)

    def _table(self, label: str, seconds: dict[str, float], count: int | None) -> None:
        print(f"  {label}")
        ours = seconds["this"]
        for name, took in seconds.items():
            print(f"    {name:34} {took:8.3f} s  {took / ours:6.2f} x", flush=True)
        if count is not None:
            floor = count * self.flops / best_rate()
            print(
                f"    {f'floor ({count} passes)':34} {floor:8.3f} s; this is {ours / floor:.2f} x"
            )


def peaks_of(name: str, size: int, count: int, methods: list[str] | None) -> list[float]:
    """The peak of the resident memory after each of five calls, in MB above that of the start."""
    torch.set_num_threads(1)
    model = network(name)
    images = torch.randn(count, 3, size, size).contiguous(memory_format=torch.channels_last)
    gc.collect()
    start, peaks = _status("VmRSS"), []

    def gradient() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(model(x)[:, 5].sum(), x)

    with ExitStack() as stack:
        run: Callable[[], object] = gradient
        if methods:
            explainer = stack.enter_context(Explainer(model, LAYERS[name], methods))
            targets = torch.tensor([[5, 300, 900]]).expand(count, CLASSES)
            run = partial(explainer, images, targets)
        for _ in range(5):
            run()
            peaks.append((_status("VmHWM") - start) / 1e3)
    return peaks


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet50", choices=list(LAYERS))
    parser.add_argument("--before", help="a git revision whose engine is timed as well")
    parser.add_argument("--batch", type=int, default=2, help="images per call of the engine")
    parser.add_argument("--peer-batches", default="1", help="batch sizes of the peers, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--parts", default="sets,captum,single,shapes,meta,memory")
    options = parser.parse_args()
    options.peer_batches = [int(batch) for batch in options.peer_batches.split(",")]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        before = revision(options.before, Path(scratch)) if options.before else None
        bench = Bench(options, before)
        print(
            f"{options.model}, {options.size}², {len(bench.layers)} layers, {CLASSES} classes, "
            f"batch {options.batch}; {bench.flops / 1e9:.1f} GFLOP per forward pass, "
            f"{best_rate() / 1e9:.0f} GFLOP/s at best; {options.rounds} rounds; "
            f"torch {torch.__version__}",
            flush=True,
        )
        for part in options.parts.split(","):
            print(part, flush=True)
            getattr(bench, part)()


if __name__ == "__main__":
    main()
