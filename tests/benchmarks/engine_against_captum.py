"""The engine against Captum: CPU time for six attributions both have, and that their maps agree.

    uv run python tests/benchmarks/engine_against_captum.py [--rounds 5] [--batch 2] [--size 224]

ResNet-50 with seeded random weights, frozen, in eval mode; float32, one thread; K classes per
image; five layers: `input`, `layer1` to `layer3`, and `layer4.1`, the last block below which there
is a ReLU before the logits. All programs give the same maps:

    attribution                Backlight            at the input      at layer1 .. layer4.1
    Saliency                   gradient             Saliency          see below
    InputXGradient             linear_approx        InputXGradient    (the next row)
    LayerGradientXActivation   linear_approx        (the row above)   LayerGradientXActivation
    GuidedBackprop             guided_backprop      GuidedBackprop    see below
    Deconvolution              deconvnet            Deconvolution     see below
    LayerGradCam               grad_cam             (undefined)       LayerGradCam

Captum's Saliency, GuidedBackprop and Deconvolution explain inputs. To explain a layer, a user of
Captum takes the gradient from `LayerGradientXActivation(multiply_by_inputs=False)`. For the guided
rules the user cuts the model behind the layer, takes the activation from `LayerActivation`, and
explains the rest of the model, whose input is that activation. This is also the cheapest way, since
only the rest of the model runs again. Captum needs a ReLU module of its own for each call of a
ReLU, so it explains a copy of the network in which every block has three ReLUs instead of one that
is called three times. Nothing else differs.

Two users of Captum are timed. The first follows the documentation, with one attribution object per
layer. The second knows that LayerGradientXActivation and LayerActivation take a list of layers, and
asks for all four layers in one pass. Neither of them uses the result of one method for another,
since Captum has no API for that. The engine is asked for the five methods in one call.
`--input-only` and `--layers-only` measure one half of the table.

The time is the CPU time (`time.process_time`) of whole calls. In every round the programs take
turns. The result is the median over the rounds, after one round to warm up. No time is asserted.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from captum import attr
from torch import Tensor, nn
from torchvision import models

from transforms.engine import Explainer

LAYERS = ["layer1", "layer2", "layer3", "layer4.1"]
RULES = {"guided_backprop": attr.GuidedBackprop, "deconvnet": attr.Deconvolution}
METHODS = ["gradient", "linear_approx", *RULES, "grad_cam"]
TOLERANCE = 1e-4
"""Largest difference of the programs' maps, relative to a map's largest magnitude (float32)."""

Programs = dict[str, Callable[[], dict[tuple[str, str], Tensor]]]


class CaptumUser:
    """What a user of Captum writes for these maps, returned by key as the engine returns them."""

    def __init__(self, model: nn.Module, images: Tensor, targets: Tensor) -> None:
        self.model, self.images, self.targets = model, images, targets.T
        self.modules = [model.get_submodule(layer) for layer in LAYERS]
        self.rests = [_behind(model, layer) for layer in LAYERS]

    def at_the_input(self) -> dict[tuple[str, str], Tensor]:
        """Four attributions, each with one forward and one backward pass per class."""
        attributions = {
            "gradient": lambda t: attr.Saliency(self.model).attribute(self.images, t).amax(1),
            "linear_approx": lambda t: (
                attr.InputXGradient(self.model).attribute(self.images, t).sum(1)
            ),
            **{
                method: lambda t, rule=rule: _max_abs(rule(self.model).attribute(self.images, t))
                for method, rule in RULES.items()
            },
        }
        return {
            (method, "input"): self._class_by_class(attribution)
            for method, attribution in attributions.items()
        }

    def layer_by_layer(self) -> dict[tuple[str, str], Tensor]:
        """One attribution object per layer, as in the examples of the documentation."""
        maps = {}
        for layer, module, rest in zip(LAYERS, self.modules, self.rests, strict=True):
            local = attr.LayerGradientXActivation(self.model, module, multiply_by_inputs=False)
            product = attr.LayerGradientXActivation(self.model, module)
            x = attr.LayerActivation(self.model, module).attribute(self.images)
            attributions = {
                "gradient": lambda t, a=local: _max_abs(a.attribute(self.images, t)),
                "linear_approx": lambda t, a=product: a.attribute(self.images, t).sum(1),
                **self._guided(rest, x),
                "grad_cam": self._grad_cam(module),
            }
            for method, attribution in attributions.items():
                maps[method, layer] = self._class_by_class(attribution)
        return maps

    def layers_in_a_list(self) -> dict[tuple[str, str], Tensor]:
        """All layers in one pass where Captum can: gradients, products, activations."""
        maps = {}
        local = attr.LayerGradientXActivation(self.model, self.modules, multiply_by_inputs=False)
        product = attr.LayerGradientXActivation(self.model, self.modules)
        gradients = [local.attribute(self.images, t) for t in self.targets]
        products = [product.attribute(self.images, t) for t in self.targets]
        activations = attr.LayerActivation(self.model, self.modules).attribute(self.images)
        for i, layer in enumerate(LAYERS):
            maps["gradient", layer] = torch.stack([_max_abs(g[i]) for g in gradients], 1)
            maps["linear_approx", layer] = torch.stack([p[i].sum(1) for p in products], 1)
            for method, attribution in self._guided(self.rests[i], activations[i]).items():
                maps[method, layer] = self._class_by_class(attribution)
            maps["grad_cam", layer] = self._class_by_class(self._grad_cam(self.modules[i]))
        return maps

    def _guided(self, rest: nn.Module, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        return {
            method: lambda t, rule=rule: _max_abs(rule(rest).attribute(x.detach(), t))
            for method, rule in RULES.items()
        }

    def _grad_cam(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        cam = attr.LayerGradCam(self.model, module)
        return lambda t: cam.attribute(self.images, t)[:, 0]

    def _class_by_class(self, attribution: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([attribution(t).detach() for t in self.targets], 1)


def _behind(model: nn.Module, layer: str) -> nn.Module:
    """The rest of the model behind a stage, or behind a block of it."""
    stage, _, block = layer.partition(".")
    blocks = list(model.get_submodule(stage).children())[int(block) + 1 :] if block else []
    names = [name for name, _ in model.named_children()]
    *stages, classifier = list(model.children())[names.index(stage) + 1 :]
    return nn.Sequential(*blocks, *stages, nn.Flatten(1), classifier)


class _BlockWithThreeReLUs(models.resnet.Bottleneck):
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


def resnet50() -> nn.Module:
    """ResNet-50 with seeded weights and batch-norm statistics of random images; frozen."""
    torch.manual_seed(0)
    model = models.resnet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 64, 64))
    return model.eval().requires_grad_(False)


def with_one_relu_a_call(model: nn.Module) -> nn.Module:
    """A copy that Captum can explain: no in-place ReLU, and three ReLUs per block."""
    model = copy.deepcopy(model)
    model.relu.inplace = False
    for block in model.modules():
        if isinstance(block, models.resnet.Bottleneck):
            block.__class__ = _BlockWithThreeReLUs
            del block.relu
            block.relu1, block.relu2, block.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
    return model


def _max_abs(g: Tensor) -> Tensor:
    return g.abs().amax(1)


def measure(programs: Programs, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each program in each round. The first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds + 1):
        for name, program in programs.items():
            start = time.process_time()
            program()
            if i:
                seconds[name].append(time.process_time() - start)
            print(f"  round {i} of {rounds}: {name}", file=sys.stderr)
    return seconds


def largest_difference(
    found: dict[tuple[str, str], Tensor], expected: dict[tuple[str, str], Tensor]
) -> float:
    """The largest difference in any map, relative to its largest magnitude; nan if a map is 0."""
    differences = [
        ((found[key] - values).abs().amax((2, 3)) / values.abs().amax((2, 3))).max()
        for key, values in expected.items()
    ]
    return torch.stack(differences).max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=3, help="classes to explain per image")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--input-only", action="store_true")
    part.add_argument("--layers-only", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # on every call Captum warns that it sets hooks
    model = resnet50()
    images = torch.rand(options.batch, 3, options.size, options.size)
    targets = torch.randint(1000, (options.batch, options.classes))
    captum = CaptumUser(with_one_relu_a_call(model), images, targets)
    layers = ["input"] if options.input_only else LAYERS
    if not options.input_only and not options.layers_only:
        layers = ["input", *LAYERS]
    explainer = Explainer(model, layers, METHODS)

    def captums(at_layers: Callable[[], dict[tuple[str, str], Tensor]]) -> Callable[[], dict]:
        return lambda: {
            **({} if options.layers_only else captum.at_the_input()),
            **({} if options.input_only else at_layers()),
        }

    programs: Programs = {"Backlight": lambda: dict(explainer(images, targets))}
    if options.input_only:
        programs["Captum"] = captums(dict)
    else:
        programs["Captum, layer by layer"] = captums(captum.layer_by_layer)
        programs["Captum, layers in a list"] = captums(captum.layers_in_a_list)

    ours = programs["Backlight"]()
    print(
        f"ResNet-50, {options.batch} images of {options.size}², {options.classes} classes, "
        f"{' '.join(layers)}; one thread, {options.rounds} rounds; torch {torch.__version__}"
    )
    for name in list(programs)[1:]:
        difference = largest_difference(ours, programs[name]())
        print(f"  largest relative difference from {name}: {difference:.1e}")
        if not difference <= TOLERANCE:
            raise SystemExit(f"the maps differ by more than {TOLERANCE}, or one is zero")

    seconds = measure(programs, options.rounds)
    print(f"{'':26}{'CPU s, median':>14}{'min':>8}{'max':>8}{'ratio':>10}{'min':>8}{'max':>8}")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["Backlight"], strict=True)]
        print(
            f"{name:26}{statistics.median(times):14.2f}{min(times):8.2f}{max(times):8.2f}"
            f"{statistics.median(ratios):9.2f}x{min(ratios):7.2f}x{max(ratios):7.2f}x"
        )


if __name__ == "__main__":
    main()
