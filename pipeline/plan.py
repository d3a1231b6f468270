"""From settings to a plan: the ordered shards, and everything that decides the bytes.

A plan is made before any work, so that whatever is wrong with the settings is said here. Its
identity is hashed into the run id; where the files lie is not part of it.
"""

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from pipeline.classes import (
    CLASS_MAPS,
    IMAGENET_CLASSES,
    ClassNames,
    class_names,
    read_class_map,
    resolve_labels,
)
from pipeline.config import RunConfig, SettingsError, check_choice, parse_keep, parse_role
from pipeline.images import PREPROCESS, PROPORTIONAL
from pipeline.models import ModelSpec, resolve_layers
from pipeline.packed import Packed
from pipeline.sources import SOURCES, Example, read_examples
from pipeline.store import files, names, schemas
from pipeline.store.parquet import write_manifest
from pipeline.store.records import PlannedExample
from pipeline.store.tar import layer_members
from transforms.engine import Explainer
from transforms.methods import MethodError, parse_methods
from transforms.receptive_field import Axis, Geometry, NoGeometry, trace_geometry
from transforms.resize import UPSAMPLINGS
from transforms.seeds import SEEDS
from transforms.variants import BASE, Cascade, VariantError, parse_variants

WITH_REGIONS = ("voc", "coco")
"""Sources whose photos are seen whole by default, since their objects may lie at the border."""


@dataclass(frozen=True)
class Plan:
    """What a run does, fully resolved; stored as ``_meta/plan.json``.

    Attributes:
        config: the settings with every preset and default spelled out.
        identity: everything that decides the bytes; :attr:`run_id` is its hash.
        class_names: the model's, by index.
        examples, shards, planned_maps: how much there is to do.
        geometry: where the cells of each layer lie in the network's input, or why nowhere.
        keep_below: maps are kept of the images whose hash is below; None: of all.
    """

    config: RunConfig
    identity: Mapping[str, Any]
    class_names: tuple[str, ...]
    examples: int
    shards: int
    planned_maps: int = 0
    geometry: Mapping[str, Geometry | NoGeometry] = field(default_factory=dict)
    keep_below: int | None = None

    @property
    def run_id(self) -> str:
        """SHA-256 of the identity, 16 hexadecimal digits."""
        return hashlib.sha256(_canonical(self.identity).encode()).hexdigest()[:16]

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that decide the bytes."""
        return dict(self.identity["versions"])

    @property
    def model(self) -> ModelSpec:
        """What a worker needs to build the model."""
        return _model(self.config)

    def maps_of(self, targets: Sequence[Sequence[int]]) -> int:
        """How many maps an example gives, by the model's classes for each of its labels."""
        count = sum(_maps_of_role(role, targets) for role in self.config.targets)
        return (
            count * len(self.config.layers) * len(self.config.methods) * len(self.config.variants)
        )

    def keeps(self, image_id: str) -> bool:
        """Whether the maps of the image are kept."""
        return self.keep_below is None or _hash(image_id) < self.keep_below

    def to_json(self) -> str:
        """The text of ``plan.json``."""
        return json.dumps(
            {
                "run_id": self.run_id,
                "examples": self.examples,
                "shards": self.shards,
                "planned_maps": self.planned_maps,
                "config": self.config.to_settings(),
                "identity": self.identity,
                "geometry": {layer: asdict(found) for layer, found in self.geometry.items()},
                "keep_below": self.keep_below,
                "class_names": self.class_names,
            },
            indent=1,
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that :meth:`to_json` wrote."""
        stored = json.loads(text)
        return cls(
            config=RunConfig.from_settings(stored["config"]),
            identity=stored["identity"],
            class_names=tuple(stored["class_names"]),
            examples=stored["examples"],
            shards=stored["shards"],
            planned_maps=stored["planned_maps"],
            geometry={k: _stored_geometry(v) for k, v in stored.get("geometry", {}).items()},
            keep_below=stored.get("keep_below"),
        )


def make_plan(config: RunConfig) -> tuple[Plan, Sequence[PlannedExample]]:
    """Resolve settings against the dataset and the model; nothing is written.

    Memory: the examples as :class:`~pipeline.packed.Packed`, and what the source needs to read
    them.

    Raises:
        SettingsError: anything that would fail later: an unknown source, method, layer or model,
            weights that do not fit, an empty set, a repeated image id, labels without a class.
    """
    check_choice("source", config.source, SOURCES)
    try:
        parse_methods(config.methods)
        parse_variants(config.variants)
    except (MethodError, VariantError) as error:
        raise SettingsError(str(error)) from error
    preprocess = config.preprocess or (
        "shortest_side" if config.source in WITH_REGIONS else "center_crop"
    )
    check_choice("preprocess", preprocess, PREPROCESS)
    check_choice("seed", config.seed, SEEDS)

    model = _model(config)
    network = model.load()
    layers = resolve_layers(network, config.model, config.layers)
    classes = count_classes(network, layers, config.methods, config.input_size)
    named = class_names(config.class_index, classes)
    if "webdataset" in config.format:
        layer_members(layers)
    _check_targets(config.targets, len(named.names))
    examples = read_examples(
        config.source,
        config.root,
        split=config.split,
        annotations=config.annotations,
    )
    if config.limit is not None:
        examples = examples[: config.limit]
    variants = _check_variants(config, network, layers)
    with_targets, class_map = _with_targets(examples, named, config)
    noted = _Noted()
    planned = Packed(noted.passing(with_targets))
    shard_size = config.shard_size or _shard_size(len(examples))
    config = replace(
        config,
        layers=layers,
        variants=variants,
        preprocess=preprocess,
        class_map=class_map,
        shard_size=shard_size,
        root=files.absolute(config.root),
        weights=model.located().weights,
    )
    settings = config.to_settings()
    identity = {
        **{name: settings[name] for name in _DECIDING},
        # Scores of maps that are not kept cannot be made anew, so they are a part of the run.
        **({name: settings[name] for name in _SCORING} if config.keep != "all" else {}),
        "num_classes": len(named.names),
        "class_names": _digest(named.names),
        "weights": model.digest(),
        "examples": noted.digest.hexdigest()[:16],
        "schema": schemas.SCHEMA_VERSION,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    plan = Plan(
        config,
        identity,
        named.names,
        len(planned),
        -(-len(planned) // shard_size),
        geometry=_geometry(network, layers, preprocess, config.input_size),
        keep_below=_keep_below(config.keep, (p.example.image_id for p in planned)),
    )
    planned_maps = sum(plan.maps_of(targets) * n for targets, n in noted.targets.items())
    return replace(plan, planned_maps=planned_maps), planned


def write_plan(out: str, plan: Plan, planned: Sequence[PlannedExample]) -> None:
    """Write the manifest, then the plan, whose presence says that the manifest is whole."""
    size = plan.config.shard_size or len(planned)
    waiting = iter(planned)
    shards = iter(lambda: list(islice(waiting, size)), [])
    write_manifest(out, shards, schemas.metadata(plan.run_id, plan.versions))
    files.write_text(out, names.PLAN, plan.to_json())


def read_plan(out: str) -> Plan:
    """The plan of an output.

    Raises:
        SettingsError: there is none: not an output of ``backlight generate``.
    """
    path = files.join(out, names.PLAN)
    if not files.exists(path):
        raise SettingsError(f"{out} holds no maps: it has no {names.PLAN}; run backlight generate")
    return Plan.from_json(files.read_text(path))


def check_same_plan(out: str, plan: Plan) -> bool:
    """Whether ``out`` already has this plan.

    Raises:
        SettingsError: it has another plan, or files that are not Backlight's; the message names
            each setting that differs.
    """
    if not files.exists(files.join(out, names.PLAN)):
        above = next(path for path in (Path(out), *Path(out).absolute().parents) if path.exists())
        if not files.is_object_store(out) and not above.is_dir():
            raise SettingsError(f"{above} is a file; choose an empty or a new folder")
        if not files.is_object_store(out) and os.path.isdir(out):
            others = sorted(set(os.listdir(out)) - {names.META, names.TEMPORARY})
            if others:
                raise SettingsError(
                    f"{out} has files and no plan ({', '.join(others[:5])}), so it is not an "
                    "output of Backlight; choose an empty or a new folder"
                )
        return False
    stored = read_plan(out)
    if stored.run_id == plan.run_id:
        return True
    before, now = _flat(stored.identity), _flat(plan.identity)
    differing = "; ".join(
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
    raise SettingsError(
        f"{out} holds another run ({stored.run_id}), which differs in {differing}. "
        "Choose another OUT, or start afresh with --overwrite"
    )


def check_upsampling(upsampling: str, plan: Plan, layers: Sequence[str]) -> None:
    """Raise :class:`SettingsError` for an unknown upsampling, or one that lacks a geometry."""
    check_choice("upsampling", upsampling, UPSAMPLINGS)
    for layer in layers if upsampling == "receptive-field" else ():
        missing = NoGeometry("the run does not say; run backlight generate with --overwrite")
        geometry = plan.geometry.get(layer, missing)
        if isinstance(geometry, NoGeometry):
            raise SettingsError(
                f"upsampling receptive-field needs to know where the cells of layer {layer!r} lie: "
                f"{geometry.reason}; upsampling bilinear does not"
            )


def count_classes(
    network: nn.Module, layers: Sequence[str], methods: Sequence[str], input_size: int
) -> int:
    """How many classes the model tells apart, found by explaining one black image.

    Raises:
        SettingsError: the model does not map an image ``[1, 3, H, W]`` to logits, or the methods
            cannot explain it at the layers.
    """
    try:
        image = torch.zeros(1, 3, input_size, input_size)
        maps = Explainer(network, layers, methods)(image, torch.zeros(1, 1, dtype=torch.int64))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except RuntimeError as error:
        raise SettingsError(
            f"the model fails on an image of {input_size} × {input_size} pixels "
            f"(--input-size): {error}"
        ) from error
    return maps.logits.shape[1]


_PACKAGES = ("backlight", "torch", "torchvision", "numpy", "pillow", "pyarrow")

# The settings that decide the bytes as they stand; the others do by what they lead to.
_DECIDING = (
    "source",
    "split",
    "model",
    "fully_convolutional",
    "layers",
    "methods",
    "targets",
    "variants",
    "seed",
    "preprocess",
    "input_size",
    "channel_order",
    "mean",
    "std",
    "format",
    "map_dtype",
    "shard_size",
    "batch_size",
    "device",
)

_SCORING = ("keep", "evaluate", "upsample", "combine")


def _keep_below(keep: str, image_ids: Iterable[str]) -> int | None:
    """The hash that the ``N`` smallest are below, for ``sample:N``."""
    count = parse_keep(keep)
    if count is None:
        return None
    smallest = heapq.nsmallest(count, map(_hash, image_ids))
    return smallest[-1] + 1 if smallest else 0


def _geometry(
    network: nn.Module, layers: Sequence[str], preprocess: str, input_size: int
) -> dict[str, Geometry | NoGeometry]:
    """Of photos of any shape the same, or none."""
    square = trace_geometry(network, layers, (input_size, input_size))
    if preprocess not in PROPORTIONAL:
        return square
    try:
        long = trace_geometry(network, layers, (input_size, input_size + input_size // 2))
    except RuntimeError:
        return dict.fromkeys(layers, NoGeometry("the model fails on photos that are not square"))
    varies = NoGeometry(f"it depends on the photo's size, which preprocess {preprocess} varies")
    return {
        layer: found if long[layer] == found or isinstance(found, NoGeometry) else varies
        for layer, found in square.items()
    }


def _stored_geometry(stored: Mapping[str, Any]) -> Geometry | NoGeometry:
    if "reason" in stored:
        return NoGeometry(stored["reason"])
    return Geometry(Axis(**stored["rows"]), Axis(**stored["columns"]))


def _with_targets(
    examples: Sequence[Example], named: ClassNames, config: RunConfig
) -> tuple[Iterator[PlannedExample], str | None]:
    labels = list(dict.fromkeys(label for example in examples for label in example.labels))
    class_map = config.class_map
    if class_map is None and config.source in CLASS_MAPS and len(named.names) == IMAGENET_CLASSES:
        class_map = config.source
    entries = None
    if class_map not in (None, "none"):
        entries = read_class_map(str(class_map), len(named.names))
    if "label" in config.targets:
        if not labels:
            raise SettingsError(
                "targets include label, but no image of the set has one; leave label out"
            )
        targets = resolve_labels(labels, named, entries)
    else:
        # The labels are not explained; known to the model, they are still kept out of `random`.
        try:
            targets = resolve_labels(labels, named, entries)
        except SettingsError:
            targets = dict.fromkeys(labels, ())
    planned = (
        PlannedExample(example, tuple(targets[label] for label in example.labels))
        for example in examples
    )
    return planned, class_map


def _check_targets(roles: Sequence[str], classes: int) -> None:
    for role in roles:
        kind, number = parse_role(role)
        if kind == "class" and number is not None and number >= classes:
            raise SettingsError(f"target {role}: the model's classes are 0 to {classes - 1}")
        if kind == "top" and number is not None and number > classes:
            raise SettingsError(f"target {role}: the model has {classes} classes")


def _check_variants(
    config: RunConfig, network: nn.Module, layers: Sequence[str]
) -> tuple[str, ...]:
    """The names of all variants, ``base`` first, with ``meta`` and ``cascade`` spelled out."""
    modules = [name for name, _ in network.named_modules() if name]
    found = parse_variants(config.variants, [layer for layer in layers if layer in modules])
    for variant in found:
        if isinstance(variant, Cascade):
            if variant.layer not in modules:
                raise SettingsError(
                    f"variant {variant.name}: no layer {variant.layer!r}; valid: "
                    f"{', '.join(modules)}"
                )
            if variant.anew and "webdataset" in config.format:
                raise SettingsError(
                    f"variant {variant.name} has classes of its own, which do not fit the arrays "
                    "of --format webdataset; use parquet"
                )
        elif variant.second_order and {m.rule for m in parse_methods(config.methods)} != {"plain"}:
            raise SettingsError(f"variant {variant.name} is defined for methods of rule plain")
    return (BASE, *(variant.name for variant in found))


def _maps_of_role(role: str, targets: Sequence[Sequence[int]]) -> int:
    kind, number = parse_role(role)
    if kind == "label":
        return sum(1 for classes in targets if classes)
    return number if kind == "top" and number is not None else 1


def _shard_size(examples: int) -> int:
    """16 images, so that little is lost in a crash; more for large sets, up to 128."""
    size = 16
    while size < 128 and examples > 2000 * size:
        size *= 2
    return size


def _model(config: RunConfig) -> ModelSpec:
    return ModelSpec(config.model, config.weights, config.num_classes, config.fully_convolutional)


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=7).digest())


class _Noted:
    """What a plan has to know of all its examples, noted as they pass on their way to be packed."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.targets: Counter[tuple[tuple[int, ...], ...]] = Counter()

    def passing(self, planned: Iterable[PlannedExample]) -> Iterator[PlannedExample]:
        for p in planned:
            # As `asdict`, which takes ten times as long.
            regions = [vars(region) for region in p.example.regions]
            identity = {"example": {**vars(p.example), "regions": regions}, "targets": p.targets}
            self.digest.update(_line(identity))
            self.targets[p.targets] += 1
            yield p


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(_line(value))
    return digest.hexdigest()[:16]


def _line(value: Any) -> bytes:
    return _canonical(value).encode() + b"\n"
