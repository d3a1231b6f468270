"""The engine on one GPU: precision, layout, batch sizes, peers and the card's convolution rate.

    python tests/benchmarks/engine_on_gpu.py [--seconds 220] [--photos FOLDER]
        [--model squeezenet1_1 --weights FILE]

It needs torch, torchvision, numpy, scipy and the package `transforms`; Captum is compared where it
is installed. Without `--weights` the network is ResNet-50 with seeded random weights and batch-norm
statistics of random images. Without `--photos` the images are smooth noise. `--device cpu --size 64
--batches 1,2` tries the script out.

The grid is the paper's: nine methods at five layers for three classes. It prints:

    rates        FLOP/s of the fastest of some convolutions, by precision
    precision    float32, TF32 and bfloat16 against float64 on the same images: the share of ReLU
                 decisions that differ, the mean rank correlation of the maps, and the share of maps
                 that point at the same cell
    speed        images and maps per second and peak memory, by precision, layout and batch size
    classes      classes as rows of one batch (each image once per class) against one backward pass
                 per class
    graph        one forward and fifteen backward passes by PyTorch alone, and replayed as a CUDA
                 graph: what capturing could gain
    peers        loops with a forward and a backward pass per map, as in TorchRay, and Captum's six
                 shared attributions, each at its best batch size

Times are wall times with the device idle before and after, the better of two. A section that the
time does not allow is left out, and the script says so.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import io, models, transforms

sys.path.insert(0, str(Path(__file__).parents[2]))

from transforms import engine
from transforms.engine import Explainer
from transforms.extract import Activation, Tapped
from transforms.methods import METHODS
from transforms.rank_correlation import centred_ranks, correlations

LAYERS = {
    "resnet50": ["input", "layer1", "layer2", "layer3", "layer4.1"],
    "squeezenet1_1": [f"features.{i}" for i in (1, 4, 7, 10)] + ["input"],
    "mobilenet_v2": ["input", *(f"features.{i}" for i in (3, 6, 13)), "features.18.1"],
}
GRID = [
    *("gradient", "linear_approx", "guided_backprop", "deconvnet", "grad_cam", "normgrad"),
    *("normgrad_selective", "excitation_backprop", "contrastive_excitation_backprop"),
]
SHARED = ["gradient", "linear_approx", "guided_backprop", "deconvnet", "grad_cam"]
CLASSES = 3
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class OutOfTimeError(Exception):
    """The next measurement may not begin any more."""


class Bench:
    """One network on one device, with the clock that all sections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.name = options.model
        self.layers = LAYERS[options.model]
        self.size = options.size
        self.images = photos(options.photos, options.size, max(options.batches))
        self.model = network(options.model, options.weights).to(self.device)
        self.batches: list[int] = options.batches
        self.end = time.perf_counter() + options.seconds

    def batch(self, count: int, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        images = self.images[torch.arange(count) % len(self.images)]
        return images.to(self.device, dtype).contiguous(memory_format=layout)

    def targets(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.randint(1000, (count, CLASSES), generator=generator).to(self.device)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], times: int = 2) -> float:
        """The better time of `run`, after one to warm up."""
        if time.perf_counter() > self.end:
            raise OutOfTimeError
        run()
        best = float("inf")
        for _ in range(times):
            self.synchronise()
            began = time.perf_counter()
            run()
            self.synchronise()
            best = min(best, time.perf_counter() - began)
        return best

    @contextmanager
    def explaining(
        self, precision: str, layout: torch.memory_format, methods: list[str]
    ) -> Iterator[Explainer]:
        """The engine open on a copy of the network in that precision and layout."""
        model = copy.deepcopy(self.model).to(dtype=PRECISIONS[precision], memory_format=layout)
        with Explainer(model, self.layers, methods) as explainer, products(precision):
            yield explainer


@contextmanager
def products(precision: str) -> Iterator[None]:
    """TF32 in products and convolutions if `precision` says so; else full float32."""
    operations = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    was = [operation.fp32_precision for operation in operations]
    try:
        for operation in operations:
            operation.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for operation, before in zip(operations, was, strict=True):
            operation.fp32_precision = before


def network(name: str, weights: str | None) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(models, name)()
    if weights:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 96, 96))
    return model.eval().requires_grad_(False)


def photos(folder: str | None, size: int, count: int) -> Tensor:
    """Up to `count` normalised images `[B, 3, size, size]`."""
    if folder is None:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(min(count, 32), 3, size // 16 + 1, size // 16 + 1, generator=generator)
        return F.interpolate(noise, (size, size), mode="bicubic")
    view = transforms.Compose([
        transforms.Resize(size, antialias=True),
        transforms.CenterCrop(size),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    paths = sorted(Path(folder).rglob("*.jpg"))[: min(count, 32)]
    if not paths:
        raise SystemExit(f"no .jpg below {folder}")
    return torch.stack([view(io.read_image(str(p), io.ImageReadMode.RGB)) for p in paths])


def rates(bench: Bench) -> dict[str, float]:
    """The best FLOP/s of some convolutions, by precision."""
    best = {}
    count = 64 if bench.device.type == "cuda" else 1
    for precision, dtype in PRECISIONS.items():
        found = []
        with products(precision):
            for channels, side, kernel in ((64, 56, 3), (256, 56, 1), (256, 14, 3), (1024, 14, 1)):
                for layout in LAYOUTS.values():
                    x = torch.rand(count, channels, side, side, device=bench.device, dtype=dtype)
                    w = torch.rand(channels, channels, kernel, kernel, device=x.device, dtype=dtype)
                    x, w = (t.contiguous(memory_format=layout) for t in (x, w))
                    run = partial(F.conv2d, x, w, None, 1, kernel // 2)
                    seconds = bench.seconds(run, 5)
                    found.append(2 * x.numel() * channels * kernel**2 / seconds)
        best[precision] = max(found)
        print(f"  {precision:10} {best[precision] / 1e12:8.2f} TFLOP/s", flush=True)
    return best


@contextmanager
def relu_decisions(model: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Which outputs of ReLU modules are positive, in the order of the calls."""
    handles = [
        module.register_forward_hook(lambda m, args, output: found.append((output > 0).cpu()))
        for module in model.modules()
        if isinstance(module, nn.ReLU | nn.ReLU6)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def precision_effects(bench: Bench, count: int) -> None:
    """What each precision changes: ReLU decisions, ranks, and the cell that a map points at."""
    layout = torch.channels_last
    targets = bench.targets(count)

    def explained(model: nn.Module, precision: str, dtype: torch.dtype) -> tuple[dict, list]:
        model = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
        images, decisions = bench.batch(count, dtype, layout), []
        with Explainer(model, bench.layers, GRID) as explainer, products(precision):
            with torch.no_grad(), relu_decisions(model, decisions), explainer.taps.paused():
                model(images)
            maps = {k: v.double().cpu() for k, v in explainer(images, targets).items()}
        return maps, decisions

    expected, decided = explained(bench.model, "float64", torch.float64)
    for precision, dtype in PRECISIONS.items():
        if time.perf_counter() > bench.end:
            raise OutOfTimeError
        maps, decisions = explained(bench.model, precision, dtype)
        flips = sum(int((a != b).sum()) for a, b in zip(decided, decisions, strict=True))
        print(
            f"  {precision}: {flips} of {sum(d.numel() for d in decided)} ReLU decisions differ "
            f"({flips / sum(d.numel() for d in decided):.1e})"
        )
        for method in GRID:
            ranks, same = [], []
            for layer in bench.layers:
                a, b = (m[method, layer].flatten(0, 1).flatten(1) for m in (expected, maps))
                pairs = [(i, len(a) + i) for i in range(len(a))]
                ranks += correlations(centred_ranks(torch.cat([a, b])), pairs).tolist()
                same += (a.argmax(1) == b.argmax(1)).tolist()
            defined = [r for r in ranks if r == r]
            print(
                f"    {method:32} rank correlation {sum(defined) / max(len(defined), 1):.5f} "
                f"(lowest {min(defined, default=float('nan')):.4f}, "
                f"{len(ranks) - len(defined)} undefined), "
                f"same cell {sum(same) / len(same):.2%} of {len(same)}",
                flush=True,
            )


def speed(bench: Bench, rate: dict[str, float]) -> None:
    """Images and maps per second of the grid."""
    flops = forward_flops(bench)
    passes = 1 + CLASSES * 5 + 1  # rules: plain, guided, deconvnet, excitation, contrastive
    for precision, dtype in PRECISIONS.items():
        for label, layout in LAYOUTS.items():
            for count in bench.batches:
                images, targets = bench.batch(count, dtype, layout), bench.targets(count)
                with bench.explaining(precision, layout, GRID) as explainer:
                    if bench.device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    took = bench.seconds(lambda: explainer(images, targets))  # noqa: B023
                    halved = explainer.micro_batch
                floor = passes * flops * count / rate[precision]
                print(
                    f"  {precision:9} {label:14} batch {count:4}: {count / took:9.2f} images/s "
                    f"{count / took * len(GRID) * len(bench.layers) * CLASSES:10.0f} maps/s, "
                    f"{took / floor:6.2f} x the floor, {peak(bench)}"
                    + (f", halved to {halved}" if halved else ""),
                    flush=True,
                )


def peak(bench: Bench) -> str:
    if bench.device.type != "cuda":
        return "memory not measured"
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


def forward_flops(bench: Bench) -> float:
    """FLOPs of a forward pass of one image, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    image = bench.batch(1, torch.float32, torch.contiguous_format)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bench.model(image)
    return counter.get_total_flops()


def classes_as_rows(bench: Bench) -> None:
    """A row per image and class, as small batches have it, against one class after the other."""
    layout = torch.contiguous_format
    for count in bench.batches:
        images, targets = bench.batch(count, torch.float32, layout), bench.targets(count)
        seconds = []
        for has_rows in (False, True):
            with (
                patch.object(engine, "_leaves_room", lambda _, answer=has_rows: answer),
                bench.explaining("float32", layout, GRID) as explainer,
            ):
                seconds.append(bench.seconds(lambda: explainer(images, targets)))  # noqa: B023
        apart, rows = (count / each for each in seconds)
        print(f"  batch {count:4}: apart {apart:.2f} images/s, rows {rows:.2f}")


def graph(bench: Bench) -> None:
    """One forward and fifteen backward passes by PyTorch alone, eager and as a CUDA graph."""
    if bench.device.type != "cuda":
        print("  needs CUDA")
        return
    model = copy.deepcopy(bench.model)
    for count in bench.batches[:3]:
        images = bench.batch(count, torch.float32, torch.contiguous_format).requires_grad_()
        signal = torch.rand(count, 1000, device=bench.device)

        def passes() -> None:
            logits = model(images)  # noqa: B023
            for i in range(15):
                torch.autograd.grad(logits, images, signal, retain_graph=i < 14)  # noqa: B023

        eager = bench.seconds(passes)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            passes()
        torch.cuda.current_stream().wait_stream(aside)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            passes()
        replayed = bench.seconds(captured.replay)
        each = count / eager, count / replayed
        print(f"  batch {count:4}: eager {each[0]:.2f}, replayed {each[1]:.2f} images/s")


@contextmanager
def hooked_relus(model: nn.Module, rule: str) -> Iterator[None]:
    def changed(module: nn.Module, g_in: tuple[Tensor], g_out: tuple[Tensor]) -> tuple[Tensor]:
        return (F.relu(g_in[0]) if rule == "guided" else F.relu(g_out[0]),)

    hooked = [m for m in model.modules() if isinstance(m, nn.ReLU) and rule != "plain"]
    handles = [module.register_full_backward_hook(changed) for module in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loop(model: nn.Module, layers: list[str], images: Tensor, targets: Tensor) -> None:
    """A forward and a backward pass per method, layer and class; excitation is left out."""
    for method in GRID:
        rule = METHODS[method].rule
        if rule not in ("plain", "guided", "deconvnet"):
            continue
        for layer in layers:
            for target in targets.T:
                kept: list[Tensor] = []

                def keep(m: object, args: object, output: Tensor, kept: list = kept) -> Tensor:
                    kept.append(output.detach().requires_grad_())
                    return kept[0].clone()

                handle = None if layer == "input" else model.get_submodule(layer)
                handle = handle and handle.register_forward_hook(keep)
                with hooked_relus(model, rule):
                    x = images.clone()
                    if handle is None:
                        kept.append(x.requires_grad_())
                    score = model(x).gather(1, target[:, None]).sum()
                    (g,) = torch.autograd.grad(score, kept)
                if handle is not None:
                    handle.remove()
                METHODS[method].map(Tapped(Activation(kept[0].detach()), g))


def peers(bench: Bench) -> None:
    """Loops as in TorchRay, and Captum, against the engine on the same methods."""
    plain = copy.deepcopy(bench.model)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    seven = [m for m in GRID if "excitation" not in m]
    layout = torch.contiguous_format
    for count in bench.batches[:3]:
        images, targets = bench.batch(count, torch.float32, layout), bench.targets(count)
        theirs = bench.seconds(lambda: loop(plain, bench.layers, images, targets), 1)  # noqa: B023
        with bench.explaining("float32", layout, seven) as explainer:
            ours = bench.seconds(lambda: explainer(images, targets))  # noqa: B023
        print(
            f"  batch {count:4}: loops {count / theirs:.2f} images/s, engine {count / ours:.2f} "
            f"(7 methods, float32)",
            flush=True,
        )
    try:
        import captum  # noqa: F401
    except ImportError:
        print("  Captum is not installed")
        return
    if bench.name != "resnet50":
        print("  Captum is compared with ResNet-50 alone")
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from engine_against_captum import CaptumUser, with_one_relu_a_call

    model = with_one_relu_a_call(bench.model)
    for count in bench.batches[:3]:
        images, targets = bench.batch(count, torch.float32, layout), bench.targets(count)
        user = CaptumUser(model, images, targets)
        theirs = bench.seconds(lambda: (user.at_the_input(), user.layers_in_a_list()), 1)  # noqa: B023
        with bench.explaining("float32", layout, SHARED) as explainer:
            ours = bench.seconds(lambda: explainer(images, targets))  # noqa: B023
        print(
            f"  batch {count:4}: Captum {count / theirs:.2f} images/s, engine {count / ours:.2f} "
            "(six shared attributions, float32)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet50", choices=list(LAYERS))
    parser.add_argument("--weights", help="a state dict of torchvision")
    parser.add_argument("--photos", help="a folder with .jpg files")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=220, help="begin nothing later than this")
    parser.add_argument("--precision-images", type=int, default=16)
    parser.add_argument("--batches", default="1,8,32,128", help="batch sizes, with commas")
    parser.add_argument("--sections", default="rates,precision,speed,peers,classes,graph")
    options = parser.parse_args()
    options.batches = [int(b) for b in options.batches.split(",")]
    began = time.perf_counter()
    bench = Bench(options)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "the CPU"
    print(
        f"{options.model}, {'weights' if options.weights else 'random weights'}, "
        f"{len(bench.images)} images of {options.size}², {len(GRID)} methods x "
        f"{len(bench.layers)} layers x {CLASSES} classes, on {name}; torch {torch.__version__}"
    )
    rate = dict.fromkeys(PRECISIONS, float("nan"))
    sections: dict[str, Callable[[], object]] = {
        "rates": lambda: rate.update(rates(bench)),
        "precision": lambda: precision_effects(bench, options.precision_images),
        "speed": lambda: speed(bench, rate),
        "peers": lambda: peers(bench),
        "classes": lambda: classes_as_rows(bench),
        "graph": lambda: graph(bench),
    }
    for section in options.sections.split(","):
        print(f"{section} ({time.perf_counter() - began:.0f} s)", flush=True)
        try:
            with products("float32"):  # as the engine computes, and not PyTorch's TF32
                sections[section]()
        except OutOfTimeError:
            print(f"  out of time: the rest of {section} is left out", flush=True)
        except (RuntimeError, ValueError) as error:  # the other sections still count
            print(f"  failed: {type(error).__name__}: {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main()
