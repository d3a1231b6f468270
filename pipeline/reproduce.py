"""The paper's pointing game as a preset: its runs, its scores, its figures beside the published.

The protocol is that of TorchRay's benchmark (`torchray/benchmark/`, `examples/
attribution_benchmark.py`): whole photos with the shortest side at 224, a fully convolutional model,
output gradient `pointing`, every class of every photo. A run is a grid of layers × methods. The
protocol is not one grid, so it is made of parts, and each part is a run of its own under OUT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.console import Console
from torch import nn

from pipeline import files
from pipeline.config import RunConfig
from pipeline.errors import SettingsError, check_choice, print_fault
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.model import caffe
from pipeline.model.classes import dataset_classes
from pipeline.model.layers import resolve_layers
from pipeline.model.models import ModelSpec
from pipeline.model.origins import origin_of
from pipeline.notes import print_notes
from pipeline.plan import Plan
from pipeline.planning import count_classes
from pipeline.preprocess import STANDARD
from pipeline.progress import RunProgress
from pipeline.store import names
from pipeline.workers.beam_options import jar, pipeline_options
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.image_count import images_counted
from transforms.fully_convolutional import TWINS
from transforms.largest_pixels import CENTER
from transforms.map_key import MapKey, Origin
from transforms.methods import parse_methods
from transforms.statistics.statistic import Statistic
from transforms.taps import INPUT
from transforms.variants import BASE, LEARNING_RATE, Meta

METRIC = "pointing_game_first"
META = Meta(LEARNING_RATE).name

CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
"""BGR of the range 0 to 255, less the mean: what models fine-tuned in Caffe take."""

EXCITATION_LAYERS = {"vgg16": "features.23"}
"""Where excitation backprop is read, if not at the last stage but one (ResNet-50: layer3)."""

Percent = tuple[float, float | None]
"""Accuracy over all pairs and over the difficult ones."""


@dataclass(frozen=True)
class Benchmark:
    """A dataset of the paper's table: where its source finds it."""

    source: str
    split: str


BENCHMARKS = {"voc07": Benchmark("voc", "test"), "coco14": Benchmark("coco", "val2014")}


def _by_layer(
    method: str, all_pairs: Sequence[float], variant: str = BASE
) -> dict[Origin, Percent]:
    layers = (f"layer{i}" for i in (1, 2, 3, 4))
    return {
        (variant, method, layer): (value, None)
        for layer, value in zip(layers, all_pairs, strict=True)
    }


PUBLISHED: dict[tuple[str, str], dict[Origin, Percent]] = {
    ("voc07", "vgg16"): {
        (BASE, CENTER, ""): (69.6, 42.4),
        (BASE, "gradient", INPUT): (76.3, 56.9),
        (BASE, "deconvnet", INPUT): (67.5, 44.2),
        (BASE, "guided_backprop", INPUT): (75.9, 53.0),
        (BASE, "excitation_backprop", "features.23"): (77.1, 56.6),
        (BASE, "contrastive_excitation_backprop", "features.23"): (79.9, 66.5),
        (BASE, "grad_cam", "features.29"): (86.6, 74.0),
    },
    ("voc07", "resnet50"): {
        **_by_layer("grad_cam", (54.5, 52.9, 66.3, 90.4)),
        **_by_layer("linear_approx", (83.3, 85.5, 85.6, 90.2)),
        **_by_layer("normgrad", (81.9, 84.0, 84.6, 78.8)),
        **_by_layer("normgrad_selective", (82.3, 86.3, 86.9, 87.4)),
        **_by_layer("normgrad", (81.6, 84.7, 85.8, 80.9), META),
        (BASE, CENTER, ""): (69.6, 42.4),
        (BASE, "gradient", INPUT): (72.3, 56.8),
        (BASE, "deconvnet", INPUT): (68.6, 44.7),
        (BASE, "guided_backprop", INPUT): (77.2, 59.4),
        (BASE, "excitation_backprop", "layer3"): (84.5, 70.8),
        (BASE, "contrastive_excitation_backprop", "layer3"): (90.7, 82.1),
        (BASE, "grad_cam", "layer4"): (90.4, 82.3),
    },
}
"""In per cent, by benchmark and architecture; Rebuffi et al. 2020 and Fong et al. 2019."""


@dataclass(frozen=True)
class Part:
    """One run of the protocol. Its figures are those of the last variant.

    Attributes:
        name: the folder of OUT that it is in.
        config: its settings.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True)
class Protocol:
    """A benchmark on the user's data and model.

    Attributes:
        benchmark: its name in `BENCHMARKS`.
        architecture: the model's name, without the module of a factory.
        parts: what to run.
        notes: what differs from the benchmark of the published figures, in words.
    """

    benchmark: str
    architecture: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One accuracy in per cent, the mean over classes of the share of hits, and the published one.

    Attributes:
        key: the maps that it is of.
        subset: `all` pairs of an image and a class in it, or the `difficult` ones.
        value: the accuracy.
        low, high: the ends of its 95 % interval, by a bootstrap over images.
        published: the paper's; None where it has none.
        pairs: how many pairs count.
        undefined: how many pairs have a map that points nowhere, and do not count.
        images: how many images the pairs are of.
    """

    key: MapKey
    subset: str
    value: float
    low: float
    high: float
    published: float | None
    pairs: int
    undefined: int
    images: int

    @property
    def difference(self) -> float | None:
        """Percentage points from the published figure."""
        return None if self.published is None else self.value - self.published


PARTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "input": ("input", ("gradient", "deconvnet", "guided_backprop"), BASE),
    "excitation": ("excitation", ("excitation_backprop", "contrastive_excitation_backprop"), BASE),
    "layers": (
        "stages",
        ("grad_cam", "linear_approx", "normgrad", "normgrad_selective"),
        BASE,
    ),
    "meta": ("stages", ("normgrad",), META),
}
"""Layers (the image, one intermediate, or the last four stages), methods and variant by part."""


def protocol(
    benchmark: str, settings: Mapping[str, Any], parts: Sequence[str] | None = None
) -> Protocol:
    """Resolve the preset for `settings`, which win over it; `root` and `model` are a must.

    `num_classes` is by default the dataset's, for a model that can be told. A model of the
    dataset's own classes is taken for one fine-tuned in Caffe; another needs a class map (shipped
    for ImageNet's 1000 classes) and is normalised as torchvision's.

    Raises:
        SettingsError: an unknown benchmark or part, or a wrong setting.
    """
    check_choice("benchmark", benchmark, BENCHMARKS)
    for name in parts or ():
        check_choice("part", name, PARTS)
    given = {name: value for name, value in settings.items() if value is not None}
    if missing := [name for name in ("root", "model") if name not in given]:
        raise SettingsError(f"missing settings: {', '.join(missing)}")
    chosen = BENCHMARKS[benchmark]
    own_classes = dataset_classes(chosen.source).names
    model = str(given["model"])
    if "num_classes" not in given and origin_of(model).takes_num_classes(model):
        given["num_classes"] = len(own_classes)
    network = ModelSpec(
        model, given.get("weights"), given.get("num_classes"), weights_key=given.get("weights_key")
    ).load()
    architecture = model.rpartition(":")[2]
    stages = resolve_layers(
        network, model, ["stages"], int(given.get("input_size", STANDARD.input_size))
    )
    layers = {
        "input": (INPUT,),
        "excitation": (EXCITATION_LAYERS.get(architecture, stages[-2:][0]),),
        "stages": stages[-4:],
    }
    grids = {
        name: (layers[where], methods, tuple(dict.fromkeys((BASE, variant))))
        for name, (where, methods, variant) in PARTS.items()
        if not parts or name in parts
    }
    # For every part, so that a method that the model does not allow is refused before any work.
    (classes,) = {
        count_classes(
            network, layers, parse_methods(methods), given.get("input_size", STANDARD.input_size)
        )
        for layers, methods, _ in grids.values()
    }
    preset: dict[str, Any] = {
        "source": chosen.source,
        "split": chosen.split,
        "roles": ("label",),
        "preprocess": "shortest_side_aliased",
        "fully_convolutional": type(network) in TWINS,
        "output_gradient": "pointing",
    }
    is_fine_tuned = classes == len(own_classes)
    if is_fine_tuned:
        preset["class_index"] = chosen.source
        preset |= {"channel_order": "bgr", "mean": CAFFE_MEAN, "std": CAFFE_STD}
    resolved = []
    for name, grid in grids.items():
        of_part = dict(zip(("layers", "methods", "variants"), grid, strict=True))
        resolved.append(Part(name, RunConfig.from_settings({**preset, **given, **of_part})))
    notes = _notes(benchmark, architecture, network, classes)
    if is_fine_tuned and architecture == model and architecture in vars(caffe):
        notes.append(
            f"TorchRay's weights, of Caffe, go with --model pipeline.model.caffe:{architecture}"
        )
    return Protocol(benchmark, architecture, tuple(resolved), tuple(notes))


def reproduce(
    protocol: Protocol,
    out: str,
    console: Console,
    execution: Execution = HERE,
    *,
    difficult: str | None = None,
    overwrite: bool = False,
    on_fault: Callable[[str], None] = print_fault,
) -> list[Figure]:
    """Run and score every part in `out`, or go on with what is there; progress on `console`.

    `difficult` is a flag file (`pipeline.scores.difficult`) that adds the figures of that subset.
    `on_fault` is as in `pipeline.generate`.

    Raises:
        SettingsError: a setting is wrong, or it asks for a jar.
        BacklightError: as `generate` and `evaluate`.
    """
    if difficult is not None and not files.is_file(difficult):
        raise SettingsError(f"no flag file {difficult}; give --difficult a CSV file")
    if jar(pipeline_options(execution)):
        raise SettingsError(
            "--output_executable_path makes a jar of one job, and these figures take several; use "
            "it with backlight generate and evaluate, or leave it out"
        )
    published = PUBLISHED.get((protocol.benchmark, protocol.architecture), {})
    figures: dict[tuple[Origin, str], Figure] = {}
    for part in protocol.parts:
        where = files.join(out, part.name)
        _generate(part, where, console, execution, overwrite, on_fault)
        for row in _evaluate(part, where, console, execution, difficult, on_fault):
            # The centre is scored in every part, and the same in each.
            figures.setdefault((row.key.origin, row.subset), _figure(row, published))
    return list(figures.values())


def _notes(benchmark: str, architecture: str, network: nn.Module, classes: int) -> list[str]:
    """How the run is not the one that the published figures are of."""
    notes = []
    own = len(dataset_classes(BENCHMARKS[benchmark].source).names)
    if (benchmark, architecture) not in PUBLISHED:
        known = ", ".join(f"{a} on {b}" for b, a in PUBLISHED)
        notes.append(f"no published figures of {architecture} on {benchmark} here, but of {known}")
    if type(network) not in TWINS:
        notes.append(
            f"no fully convolutional twin of a {type(network).__name__} is defined: it classifies "
            "each photo as a whole, not location by location as in the protocol"
        )
    if classes != own:
        notes.append(
            f"the published figures are of models fine-tuned on {benchmark} and its {own} classes, "
            f"and this model has {classes}"
        )
    return notes


def _generate(
    part: Part,
    out: str,
    console: Console,
    execution: Execution,
    overwrite: bool,
    on_fault: Callable[[str], None],
) -> None:
    with RunProgress(
        console, f"{part.name}: maps", "images", lambda: images_counted(out, names.MADE)
    ) as progress:

        def start(plan: Plan, before: int) -> None:
            console.print(
                f"{part.name}: {plan.examples:,} images → {plan.planned_maps:,} maps",
                highlight=False,
            )
            print_notes(console, plan.notes)
            progress.start(plan.examples, before)

        generate(
            part.config,
            out,
            execution,
            overwrite=overwrite,
            on_phase=progress.phase,
            on_start=start,
            on_poll=progress.poll,
            on_fault=on_fault,
        )
        progress.finish()


def _evaluate(
    part: Part,
    out: str,
    console: Console,
    execution: Execution,
    difficult: str | None,
    on_fault: Callable[[str], None],
) -> list[Statistic]:
    """The statistics that are figures: the centre first, then in the order of the part's grid."""
    with RunProgress(
        console, f"{part.name}: scores", "images", lambda: images_counted(out, names.SCORED)
    ) as progress:
        result = evaluate(
            out,
            execution,
            metrics=[METRIC],
            difficult=difficult,
            on_phase=progress.phase,
            on_start=progress.start,
            on_poll=progress.poll,
            on_fault=on_fault,
        )
        progress.finish()
    config = part.config
    grid = [(BASE, CENTER, ""), *product(config.variants[-1:], config.methods, config.layers)]
    place = {row: i for i, row in enumerate(grid)}
    rows = [
        row
        for row in result.statistics
        if row.statistic == "class_mean" and row.key.origin in place
    ]
    return sorted(rows, key=lambda row: place[row.key.origin])


def _figure(row: Statistic, published: Mapping[Origin, Percent]) -> Figure:
    of_all, of_difficult = published.get(row.key.origin, (None, None))
    return Figure(
        key=row.key,
        subset=row.subset,
        value=100 * row.value,
        low=100 * row.low,
        high=100 * row.high,
        published=of_difficult if row.subset == "difficult" else of_all,
        pairs=row.n,
        undefined=row.undefined,
        images=row.images,
    )
