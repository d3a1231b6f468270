"""What holds for which network: a table of classifiers of torchvision and timm, in Markdown.

    uv run python tests/benchmarks/networks_table.py [--side 224] [NAME ...]

Without names, all classifiers of torchvision and ten models of timm, with random weights. A name is
a pattern, such as `resnet*`. `--side` is that of the images, for networks that take every size:
the table is the same, and made faster, with 96. A row per network:

- the stages that the preset finds, and how their outputs are laid out;
- whether normgrad, grad_cam, gradient and layer_cam at the stages equal those made from plain
  `torch.autograd.grad` and a hook, in float64 to 1e-10 of the largest value;
- guided backprop at the stages: right where it equals a backward pass in which hooks of this script
  clamp the signal at every ReLU of the graph, to 1e-10, or the reason of the refusal;
- excitation backprop at the stages: sound where no value is negative and they sum to more than 0
  and at most 1, as probabilities do (the tests compare it with another implementation), or the
  reason of the refusal.

Of more than five stages, the first, the middle and the last stand for all in the last two.
"""

import argparse
import fnmatch
import gc
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.model.layers import resolve_layers
from transforms.engine import Explainer
from transforms.layout import ChannelsLast, Layout, Tokens

TIMM = (
    *("vit_tiny_patch16_224", "vit_little_patch16_reg4_gap_256", "deit_tiny_distilled_patch16_224"),
    *("swin_tiny_patch4_window7_224", "convnext_atto", "maxvit_rmlp_pico_rw_256", "mixer_s32_224"),
    *("levit_128s", "pvt_v2_b0", "efficientnet_lite0"),
)
ONE_SIZE = {
    **dict.fromkeys(["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "maxvit_t"], 224),
    **dict.fromkeys([name for name in TIMM if "256" not in name], 224),
    **{name: 256 for name in TIMM if "256" in name},
    "inception_v3": 299,
}
"""Networks that take images of one size, or that need large ones, and that side."""

TOP = [lambda logits: [int(logits.argmax())]]
"""The most likely class is explained: the logit of another may be that of a closed ReLU."""

HEADER = (
    "| network | stages | layouts | plain = autograd | guided | excitation | seconds |\n"
    "|---|---|---|---|---|---|---|"
)


def names() -> Iterator[str]:
    yield from map(str, torchvision.models.list_models(module=torchvision.models))
    yield from (f"timm:{name}" for name in TIMM)


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        model = timm.create_model(name.removeprefix("timm:"))
    else:
        options: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # such as the head of a ViT
    return model.eval()


def by_autograd(
    model: nn.Module, layers: list[str], image: Tensor, guided: bool = False
) -> dict[str, tuple[Tensor, ...]]:
    """By layer, its output and the gradient of the top class there, or guided backprop's signal.

    Of the first of two equal images: of one image, PyTorch 2.13 can misread the signal in a batch
    norm in eval mode (levit).
    """
    kept: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: (
                kept.update({layer: output.clone()}) or kept[layer].clone()
            )
        )
        for layer in layers
    ]
    try:
        logits = model(torch.cat([image, image]).requires_grad_())
        score = logits[0].max()
    finally:
        for handle in handles:
            handle.remove()
    if guided:
        for node in nodes_of(score.grad_fn):
            if re.match("(Relu|Hardtanh)Backward", type(node).__name__):
                node.register_prehook(lambda g: (g[0].clamp_min(0),))
    gradients = torch.autograd.grad(score, [kept[layer] for layer in layers])
    return {k: (kept[k].detach()[:1], g[:1]) for k, g in zip(layers, gradients, strict=True)}


def nodes_of(root: Any) -> list[Any]:
    seen, stack = {root}, [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return list(seen)


def cells(t: Tensor, layout: Layout, rows: int, columns: int) -> Tensor:
    """`[B, rows, columns, C]`, by plain indexing."""
    if isinstance(layout, Tokens):
        return t[:, layout.leading : layout.leading + rows * columns].reshape(
            len(t), rows, columns, -1
        )
    return t if isinstance(layout, ChannelsLast) else t.permute(0, 2, 3, 1)


def plain(model: nn.Module, layers: list[str], image: Tensor) -> tuple[str, dict[str, Layout]]:
    methods = ["normgrad", "grad_cam", "gradient", "layer_cam"]
    explainer = Explainer(model, layers, methods)
    maps = explainer(image, TOP)
    worst = 0.0
    silent = []
    for layer, (x, g) in by_autograd(model, layers, image).items():
        rows, columns = maps["normgrad", layer].shape[2:]
        x, g = (cells(t, explainer.layouts[layer], rows, columns) for t in (x, g))
        expected = {
            "normgrad": x.norm(dim=-1) * g.norm(dim=-1),
            "grad_cam": (x * g.mean((1, 2), keepdim=True)).sum(-1),
            "gradient": g.abs().amax(-1),
            "layer_cam": (x * g.clamp_min(0)).sum(-1),
        }
        for method, values in expected.items():
            found = maps[method, layer][:, 0]
            terms = (x.abs() * g.abs().amax((1, 2), keepdim=True)).sum(-1).max()
            scale = values.abs().max() if method in ("normgrad", "gradient") else terms
            if not scale:
                silent.append(layer)
                continue
            worst = max(worst, float((found - values).abs().max() / scale))
    word = f"yes, {worst:.0e}" if worst <= 1e-10 else f"**NO, {worst:.0e}**"
    return word + (f"; no signal at {', '.join(silent)}" if silent else ""), dict(explainer.layouts)


def guided(model: nn.Module, layer: str, image: Tensor) -> str:
    maps = Explainer(model, [layer], ["guided:bias:sum", "gradient_sum"])
    found = maps(image, TOP)
    values, gradient = (found[m, layer][:, 0] for m in ("guided:bias:sum", "gradient_sum"))
    ((_, g),) = by_autograd(model, [layer], image, guided=True).values()
    expected = cells(g, maps.layouts[layer], *values.shape[1:]).sum(-1)
    if (values - expected).abs().max() > 1e-10 * g.abs().max():
        return "**WRONG**"
    return "right" if not torch.equal(values, gradient) else "right, equal to the gradient"


def excitation(model: nn.Module, layer: str, image: Tensor) -> str:
    (values,) = Explainer(model, [layer], ["excitation_backprop"])(image, TOP).values()
    if not values.isfinite().all() or values.min() < 0:
        return "**WRONG**"
    total = float(values.sum())
    return "sound" if 0 < total <= 1 + 1e-9 else f"signal {total:.2g}"


def summary(of: Callable[[nn.Module, str, Tensor], str], model: nn.Module, layers: list[str],
            image: Tensor) -> str:  # fmt: skip
    found: Counter[str] = Counter()
    for layer in layers:
        try:
            found[of(model, layer, image)] += 1
        except ValueError as error:
            text = str(error).partition(": ")[2] or str(error)
            text = re.sub(r" between '.*?' and the logits.*", " above", text)
            text = re.sub(r"excitation backprop is defined for ReLU networks, and", "", str(error)
                          if "excitation" in str(error) else text)  # fmt: skip
            found[f"refused: {text.strip()[:60]}"] += 1
    return "; ".join(f"{text} ({n})" for text, n in found.items())


def row(name: str, side: int) -> str:
    began = time.process_time()
    model = make(name)
    bare = name.removeprefix("timm:")
    side = ONE_SIZE.get(bare, side)
    try:
        stages = list(resolve_layers(model, name, ["stages"], side))
    except SettingsError as error:
        return f"| {name} | **none: {str(error)[:120]}** | | | | | |"
    model = model.double()
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    word, layouts = plain(model, stages, image)
    kinds = ", ".join(dict.fromkeys(str(layout) for layout in layouts.values()))
    some = [stages[0], stages[len(stages) // 2], stages[-1]] if len(stages) > 5 else stages
    columns = [
        f"{len(stages)}: {', '.join(stages) if len(stages) < 6 else f'{stages[0]} … {stages[-1]}'}",
        kinds,
        word,
        summary(guided, model, some, image),
        summary(excitation, model, some, image),
        f"{time.process_time() - began:.0f}",
    ]
    return f"| {name} | {' | '.join(columns)} |"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("names", nargs="*", default=["*"])
    options = parser.parse_args()
    print(HEADER)
    for name in names():
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.names):
            print(row(name, options.side), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
