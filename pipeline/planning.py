"""From settings to a plan: presets spelled out, names resolved, the dataset read and checked.

A plan is made before any work, so that whatever is wrong with the settings is said here.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from pipeline import files
from pipeline.config import RunConfig, parse_keep
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.model.classes import (
    IMAGENET_CLASSES,
    ClassNames,
    class_names,
    labels_not_in,
    read_class_map,
    resolve_labels,
)
from pipeline.model.factories import in_one_line
from pipeline.model.layers import resolve_layers
from pipeline.model_checks import check_on_photos, model_for_photos
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.plan import Plan, image_hash
from pipeline.preprocess import PREPROCESSES
from pipeline.roles import ModelClasses, parse_roles
from pipeline.sources import SOURCES, check_root, read_examples
from pipeline.store import schemas
from pipeline.store.formats import FORMATS
from pipeline.store.outline import RunOutline, canonical
from pipeline.store.records import PlannedExample
from transforms.engine import Explainer
from transforms.geometry import Geometry, NoGeometry
from transforms.layout import ChannelsFirst, Layout, Tokens, parse_layouts
from transforms.layout_probe import find_layouts
from transforms.methods import Method, MethodError, parse_methods
from transforms.names import unknown_name
from transforms.receptive_field import trace_geometry
from transforms.relu_calls import RELU
from transforms.rules import RULES
from transforms.variants import ONE_CLASS, Cascade, Meta, Variant, VariantError, parse_variants


def make_plan(
    config: RunConfig,
    *,
    checks_photos: bool = True,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> tuple[Plan, Sequence[PlannedExample]]:
    """Resolve settings against the dataset and the model; nothing is written.

    `checks_photos`: try the model on the first photos, which is where a bad one may do harm.
    `on_phase` sees what is being done, in words.

    Memory: the examples as `pipeline.packed.Packed`, and what the source needs to read them.

    Raises:
        SettingsError: anything that would fail later: an unknown source, method, layer or model,
            weights that do not fit, an empty set, a repeated image id, labels without a class.
    """
    source = SOURCES[config.source]
    try:
        methods = parse_methods(config.methods)
        parse_variants(config.variants)
    except (MethodError, VariantError) as error:
        raise SettingsError(str(error)) from error
    check_root(config.source, config.root)
    notes = Notes()
    on_phase("loading the model")
    config, model, network, input_rules = model_for_photos(config, notes)
    preprocess, input_size = str(config.preprocess), model.input_size
    layers = resolve_layers(network, config.model, config.layers, input_size)
    layouts = _layouts(network, layers, config.layout, input_size)
    classes = count_classes(network, layers, methods, input_size, layouts, notes)
    named = class_names(config.class_index, classes)
    for role in parse_roles(config.roles):
        role.check(len(named.names))
    variants = _variants(config, network, layers, methods)
    if len(named.names) == 1 and any(isinstance(variant, Meta) for variant in variants):
        raise SettingsError(ONE_CLASS)
    for name in config.format:
        own_classes = [variant.name for variant in variants if variant.own_classes]
        if problem := FORMATS[name].misfit(layers, own_classes):
            raise SettingsError(problem)
    on_phase("reading the set")
    examples = read_examples(
        config.source,
        config.root,
        split=config.split,
        annotations=config.annotations,
        notes=notes,
        columns=config.columns,
        follow_links=config.follow_links,
    )
    named = _own_classes(config, named, notes)
    if config.limit is not None:
        examples = examples[: config.limit]
    class_map = _class_map(config, named)
    noted = _Noted()
    explained = _with_model_classes(examples, named, config, class_map, notes)
    planned = Packed(noted.passing(explained))
    _note_unknown_labels(config, noted, notes)
    resolved = replace(
        config,
        layers=layers,
        layout=_layout_entries(layouts, notes),
        variants=tuple(variant.name for variant in variants),
        class_map=class_map,
        region=config.region or (source.region,),
        shard_size=config.shard_size or _shard_size(len(planned)),
        root=files.absolute(config.root),
        weights=model.located().weights,
    )
    plan = Plan.resolved(
        resolved,
        identity=_identity(resolved, named, model.digest(), noted.digest.hexdigest()[:16]),
        outline=RunOutline("", len(planned), -(-len(planned) // (resolved.shard_size or 1)), 0),
        class_names=named.names,
        geometry=_geometry(network, layouts, preprocess, input_size),
        keep_below=_keep_below(config.keep, (p.example.image_id for p in planned)),
        input_rules=input_rules,
        channels_last=model.memory_format == torch.channels_last,
    )
    if checks_photos:
        on_phase("checking the model on the first photos")
        check_on_photos(network, plan, planned, notes)
    maps = sum(plan.maps_of(classes) * n for classes, n in noted.model_classes.items())
    return replace(plan, planned_maps=maps, notes=notes.all()), planned


def count_classes(
    network: nn.Module,
    layers: Sequence[str],
    methods: Sequence[Method],
    input_size: int,
    layouts: Mapping[str, Layout] | None = None,
    notes: Notes | None = None,
) -> int:
    """How many classes the model has, found by explaining one black image.

    What the methods' rules do not treat in the model is added to `notes`.

    Raises:
        SettingsError: the model does not map an image `[1, 3, H, W]` to logits, or the methods
            cannot explain it at the layers.
    """
    try:
        image = torch.zeros(1, 3, input_size, input_size)
        explainer = Explainer(network, layers, methods, layouts=layouts)
        maps = explainer(image, torch.zeros(1, 1, dtype=torch.int64))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except Exception as error:
        raise SettingsError(
            f"the model cannot be explained at these layers: {in_one_line(error)}"
        ) from error
    if notes is not None:
        _note_nonlinearities(explainer, notes)
    return maps.logits.shape[1]


def _own_classes(config: RunConfig, named: ClassNames, notes: Notes) -> ClassNames:
    """The set's own classes, in its order, for a model of as many classes that no one has named.

    Where the model's classes are known by names or numbers that the set has, those hold.
    """
    order = SOURCES[config.source].class_order
    if order is None or config.class_index is not None or config.class_map not in (None, "none"):
        return named
    own = order(config.root, config.split, config.columns)
    if len(own) != len(named.names):
        return named
    try:
        known = resolve_labels(own, named)
    except SettingsError:
        notes.add(
            "output",
            "of the model taken for the set's classes in their order",
            *own,
            count=len(own),
        )
        return ClassNames(own)
    if moved := [n for i, n in enumerate(own) if n.isdecimal() and known[n] != (i,)]:
        what = "taken for the model's class of that number, not for its place in the set's order"
        notes.add("label", what, *moved, count=len(moved))
    return named


_PACKAGES = ("backlight", "torch", "torchvision", "numpy", "pillow", "pyarrow")

_FEW_KNOWN = 0.5
"""The share of the images below which it is said how many have a label that the model knows."""

# The settings that decide the bytes as they stand; the others do by what they lead to.
_DECIDING = (
    *("source", "split", "model", "fully_convolutional", "layers", "layout", "methods", "roles"),
    *("variants", "output_gradient", "preprocess", "input_size", "resize_size", "interpolation"),
    *("channel_order", "mean", "std"),
    *("format", "map_dtype", "shard_size", "batch_size", "device"),
)

# Scores of maps that are not kept cannot be computed again, so then they are a part of the run.
_SCORING = ("keep", "evaluate", "upsample", "combine", "region")


def _identity(config: RunConfig, named: ClassNames, weights: str, examples: str) -> dict[str, Any]:
    settings = config.to_settings()
    return {
        **{name: settings[name] for name in _DECIDING},
        **({name: settings[name] for name in _SCORING} if config.keep != "all" else {}),
        "num_classes": len(named.names),
        "class_names": _digest(named.names),
        "weights": weights,
        "examples": examples,
        "schema": schemas.SCHEMA_VERSION,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _layouts(
    network: nn.Module, layers: Sequence[str], entries: Sequence[str], input_size: int
) -> dict[str, Layout]:
    """How each layer lays out its output: as the user says, or as the network shows."""
    named = parse_layouts(entries)
    for layer in named:
        if layer not in layers:
            raise SettingsError(f"--layout: {unknown_name('tapped layer', layer, layers)}")
    others = [layer for layer in layers if layer not in named]
    try:
        return {**find_layouts(network, others, (input_size, input_size)), **named}
    except ValueError as error:
        raise SettingsError(str(error)) from error
    except Exception as error:
        raise SettingsError(
            f"the layouts of the layers cannot be found: {in_one_line(error)}"
        ) from error


def _layout_entries(layouts: Mapping[str, Layout], notes: Notes) -> tuple[str, ...]:
    """The layouts as the setting has them, without the usual one; tokens left out are noted."""
    for layer, layout in layouts.items():
        if isinstance(layout, Tokens) and layout.left_out:
            ends = (layout.leading, "first"), (layout.trailing, "last")
            where = " and ".join(f"{count} {end}" for count, end in ends if count)
            what = f"read without the {where} of its tokens, which are no cells of the grid"
            notes.add("layer", what, layer)
    usual = ChannelsFirst()
    return tuple(f"{layer}={layout}" for layer, layout in layouts.items() if layout != usual)


def _note_nonlinearities(explainer: Explainer, notes: Notes) -> None:
    """Note the nonlinearities that the rules for ReLUs leave as they are."""
    rules = ", ".join(name for name in explainer.methods if RULES[name].needs_relu)
    others = {name: n for name, n in explainer.nonlinearities.items() if name != RELU and n}
    if rules and others:
        treated = explainer.nonlinearities.get(RELU, 0)
        what = (
            f"of {', '.join(others)} passed by the gradient: {rules} treat ReLUs alone, which the "
            f"model calls {treated} times"
        )
        notes.add("call", what, count=sum(others.values()))


def _variants(
    config: RunConfig, network: nn.Module, layers: Sequence[str], methods: Sequence[Method]
) -> tuple[Variant, ...]:
    """All variants, the base model first, with `meta` and `cascade` spelled out."""
    modules = [name for name, _ in network.named_modules() if name]
    found = parse_variants(config.variants, [layer for layer in layers if layer in modules])
    for variant in found:
        if isinstance(variant, Cascade) and variant.layer not in modules:
            wrong = unknown_name("layer", variant.layer, modules)
            raise SettingsError(f"variant {variant.name}: {wrong}")
        if isinstance(variant, Meta) and variant.second_order:
            others = [m.name for m in methods if not RULES[m.rule].is_gradient]
            if others:
                gradients = (name for name, rule in RULES.items() if rule.is_gradient)
                raise SettingsError(
                    f"variant {variant.name} is defined for methods of rule "
                    f"{', '.join(gradients)}, not for {', '.join(others)}"
                )
    return found


def _class_map(config: RunConfig, named: ClassNames) -> str | None:
    """The class map that was given, or the source's own where the model has ImageNet's classes."""
    if config.class_map is None and len(named.names) == IMAGENET_CLASSES:
        return SOURCES[config.source].class_map
    return config.class_map


def _with_model_classes(
    examples: Sequence[Example],
    named: ClassNames,
    config: RunConfig,
    class_map: str | None,
    notes: Notes,
) -> Iterator[PlannedExample]:
    """The examples with the model's classes that stand for each of their labels."""
    labels = list(dict.fromkeys(label for example in examples for label in example.labels))
    entries = None
    if class_map not in (None, "none"):
        entries = read_class_map(str(class_map), len(named.names))
    explained = [role.name for role in parse_roles(config.roles) if role.entry.needs_labels]
    noted = "".join(f"; {note}" for note in notes.all())
    if explained and not labels:
        raise SettingsError(
            f"roles include {explained[0]}, but no image of the set has a label; "
            f"leave {explained[0]} out, or give the set's labels{noted}"
        )
    try:
        classes = resolve_labels(labels, named, entries)
    except SettingsError as error:
        if explained:
            raise SettingsError(f"{error}{noted}") from None
        # The labels are not explained. Where the model knows them, `random` still avoids them.
        classes = dict.fromkeys(labels, ())
    numbers = [label for label in labels if entries is None and label.isdecimal()]
    if moved := [n for n in numbers if classes[n] and classes[n] != (int(n),)]:
        what = "taken for the model's class of that name, not of that number"
        notes.add("label", what, *moved, count=len(moved))
    if entries is not None and (missing := labels_not_in(entries, labels)):
        what = f"of {len(labels):,} not in the class map {class_map}, so without maps of it"
        notes.add("label", what, *missing, count=len(missing))
    return (
        PlannedExample(example, tuple(classes[label] for label in example.labels))
        for example in examples
    )


def _note_unknown_labels(config: RunConfig, noted: "_Noted", notes: Notes) -> None:
    """Say so where most images have nothing to explain for a role that needs labels."""
    roles = [role.name for role in parse_roles(config.roles) if role.entry.needs_labels]
    images = sum(noted.model_classes.values())
    known = sum(count for classes, count in noted.model_classes.items() if any(classes))
    if roles and known < _FEW_KNOWN * images:
        what = f"of {images:,} without a label that the model knows, so without role {roles[0]}"
        notes.add("image", what, count=images - known)


def _geometry(
    network: nn.Module, layouts: Mapping[str, Layout], preprocess: str, input_size: int
) -> dict[str, Geometry | NoGeometry]:
    """Where the cells of each layer lie, if that is the same for photos of every shape."""
    layers = list(layouts)
    square = trace_geometry(network, layers, (input_size, input_size), layouts)
    if not PREPROCESSES[preprocess].is_proportional:
        return square
    try:
        longer = input_size, input_size + input_size // 2
        long = trace_geometry(network, layers, longer, layouts)
    except (RuntimeError, AssertionError):
        return dict.fromkeys(layers, NoGeometry("the model fails on photos that are not square"))
    varies = NoGeometry(f"it depends on the photo's size, which preprocess {preprocess} varies")
    return {
        layer: found if long[layer] == found or isinstance(found, NoGeometry) else varies
        for layer, found in square.items()
    }


def _keep_below(keep: str, image_ids: Iterable[str]) -> int | None:
    """The hash that the `N` smallest are below, for `sample:N`."""
    count = parse_keep(keep)
    if count is None:
        return None
    smallest = heapq.nsmallest(count, map(image_hash, image_ids))
    return smallest[-1] + 1 if smallest else 0


def _shard_size(examples: int) -> int:
    """16 images, so that a crash costs little; more for large sets, up to 128."""
    size = 16
    while size < 128 and examples > 2000 * size:
        size *= 2
    return size


class _Noted:
    """What a plan has to know of all its examples, noted as they pass on their way to be packed."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.model_classes: Counter[ModelClasses] = Counter()

    def passing(self, planned: Iterable[PlannedExample]) -> Iterator[PlannedExample]:
        for p in planned:
            # As `asdict`, which takes ten times as long.
            regions = [vars(region) for region in p.example.regions]
            identity = {
                "example": {**vars(p.example), "regions": regions},
                "model_classes": p.model_classes,
            }
            self.digest.update(_line(identity))
            self.model_classes[p.model_classes] += 1
            yield p


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(_line(value))
    return digest.hexdigest()[:16]


def _line(value: Any) -> bytes:
    return canonical(value).encode() + b"\n"
