"""The plan of a run: the answer to its settings, with every name as the object it stands for.

`pipeline.planning` makes it, `_meta/plan.json` holds it, and every worker reads it there. The hash
of what decides the bytes is the run id; where the files lie is not part of it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Self

import torch

from pipeline import files
from pipeline.config import RunConfig
from pipeline.errors import InputChangedError, SettingsError, check_choice
from pipeline.model.models import ModelSpec
from pipeline.notes import Note
from pipeline.preprocess import STANDARD, Preparation, Sizing
from pipeline.roles import ModelClasses, Role, parse_roles
from pipeline.sources import SOURCES
from pipeline.store import names, schemas
from pipeline.store.commit import commit_indexes, committed
from pipeline.store.encoding import MapDtype, map_dtype_of
from pipeline.store.manifest import write_manifest
from pipeline.store.outline import (
    BrokenPlanError,
    RunOutline,
    has_plan,
    run_id_of,
    sealed,
    stored_plan,
)
from pipeline.store.records import PlannedExample
from transforms.geometry import Axis, Geometry, NoGeometry
from transforms.layout import ChannelsFirst, Layout, parse_layouts
from transforms.methods import Method, parse_methods
from transforms.upsampling import UPSAMPLINGS
from transforms.variants import Variant, parse_variants


@dataclass(frozen=True)
class Plan:
    """What a run does; stored as `_meta/plan.json`.

    Attributes:
        settings: the settings with every preset and default spelled out, as `RunConfig` has them.
        identity: everything that decides the bytes; `run_id` is its hash.
        examples: how many images there are.
        shards: how many shards they are in.
        planned_maps: how many maps they have.
        class_names: the model's classes, by index.
        root: the folder of the dataset, absolute, or its URL.
        model: what a worker needs to build the model.
        layers: the tapped layers, in the order asked for.
        layouts: how each of them lays out its output.
        methods: the saliency methods, in the order asked for.
        roles: which classes are explained.
        variants: the models that are explained, the base model first.
        output_gradient: what enters the output on the way back, a name in `OUTPUT_GRADIENTS`.
        preparation: how a photo becomes the network's input.
        input_rules: whose rules those of the preparation are that the user did not set.
        formats: the file formats of the maps.
        map_dtype: the number format of the maps.
        shard_size: images per shard.
        batch_size: images per batch.
        device: `auto`, `cpu` or `cuda`.
        metrics: the metrics that score the maps while they are in memory.
        upsamplings: how their maps are brought to pixels.
        combinations: the layer combinations that are scored too.
        regions: which pixels are an object's in their scores.
        keep: which maps are kept, in the user's word.
        keep_below: the maps are kept of the images whose hash is below; None: of all.
        geometry: where the cells of each layer lie in the network's input, or why nowhere.
        notes: what was left out of the dataset, or taken for something else.
    """

    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    examples: int
    shards: int
    planned_maps: int
    class_names: tuple[str, ...]
    root: str
    model: ModelSpec
    layers: tuple[str, ...]
    layouts: Mapping[str, Layout]
    methods: tuple[Method, ...]
    roles: tuple[Role, ...]
    variants: tuple[Variant, ...]
    output_gradient: str
    preparation: Preparation
    input_rules: str
    formats: tuple[str, ...]
    map_dtype: MapDtype
    shard_size: int
    batch_size: int
    device: str
    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...]
    combinations: tuple[str, ...]
    regions: tuple[str, ...]
    keep: str
    keep_below: int | None
    geometry: Mapping[str, Geometry | NoGeometry]
    notes: tuple[Note, ...] = ()

    @classmethod
    def resolved(
        cls,
        config: RunConfig,
        *,
        identity: Mapping[str, Any],
        outline: RunOutline,
        class_names: Iterable[str],
        geometry: Mapping[str, Geometry | NoGeometry],
        keep_below: int | None,
        input_rules: str,
        channels_last: bool,
        notes: Iterable[Note] = (),
    ) -> Self:
        """The plan of settings that leave nothing open, with the objects that they name.

        Raises:
            SettingsError: a method or a variant is unknown, or a setting is open.
        """
        if config.shard_size is None or not config.region:
            raise SettingsError("a plan needs a shard size and a region; make it by make_plan")
        return cls(
            settings=config.to_settings(),
            identity=identity,
            examples=outline.examples,
            shards=outline.shards,
            planned_maps=outline.planned_maps,
            class_names=tuple(class_names),
            root=SOURCES[config.source].folder(config.root),
            model=replace(model_of(config), memory_format=_FORMATS[channels_last]),
            layers=config.layers,
            layouts=dict.fromkeys(config.layers, ChannelsFirst()) | parse_layouts(config.layout),
            methods=parse_methods(config.methods),
            roles=parse_roles(config.roles),
            variants=parse_variants(config.variants),
            output_gradient=config.output_gradient,
            preparation=preparation_of(config),
            input_rules=input_rules,
            formats=config.format,
            map_dtype=map_dtype_of(config.map_dtype),
            shard_size=config.shard_size,
            batch_size=config.batch_size,
            device=config.device,
            metrics=config.evaluate,
            upsamplings=config.upsample,
            combinations=config.combine,
            regions=config.region,
            keep=config.keep,
            keep_below=keep_below,
            geometry=geometry,
            notes=tuple(notes),
        )

    @property
    def run_id(self) -> str:
        """SHA-256 of the identity, 16 hexadecimal digits."""
        return run_id_of(self.identity)

    @property
    def input_in_words(self) -> str:
        """What becomes of a photo, and whose rules these are."""
        return f"{self.preparation}; where not set, as {self.input_rules}"

    @property
    def outline(self) -> RunOutline:
        """How much there is to do."""
        return RunOutline(self.run_id, self.examples, self.shards, self.planned_maps)

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that decide the bytes."""
        return dict(self.identity["versions"])

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods by name."""
        return tuple(method.name for method in self.methods)

    @property
    def stored_formats(self) -> tuple[str, ...]:
        """The file formats that hold maps: none where no map is kept."""
        return () if self.keep_below == 0 else self.formats

    @property
    def keeps_all(self) -> bool:
        """Whether every map is kept."""
        return self.keep_below is None

    def keeps(self, image_id: str) -> bool:
        """Whether the maps of the image are kept."""
        return self.keep_below is None or image_hash(image_id) < self.keep_below

    def maps_of(self, model_classes: ModelClasses) -> int:
        """How many maps an example gives, by the model's classes for each of its labels."""
        classes = sum(role.count(model_classes) for role in self.roles)
        return classes * self.maps_per_target

    @property
    def maps_per_target(self) -> int:
        """How many maps one explained class of an image has."""
        return len(self.layers) * len(self.methods) * len(self.variants)

    def to_json(self) -> str:
        """The text of `plan.json`."""
        return sealed(
            {
                **asdict(self.outline),
                "settings": self.settings,
                "identity": self.identity,
                "geometry": {layer: asdict(found) for layer, found in self.geometry.items()},
                "keep_below": self.keep_below,
                "input_rules": self.input_rules,
                "channels_last": self.model.memory_format == torch.channels_last,
                "class_names": self.class_names,
                "notes": [asdict(note) for note in self.notes],
            }
        )

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote, from the content of its file.

        Raises:
            SettingsError: it is of another version of the schema.
        """
        schema = stored["identity"]["schema"]
        if schema != schemas.SCHEMA_VERSION:
            raise SettingsError(
                f"the output has schema {schema}, and this is Backlight for schema "
                f"{schemas.SCHEMA_VERSION}: use the version that wrote it, or generate again with "
                "--overwrite"
            )
        return cls.resolved(
            RunConfig.from_settings(stored["settings"]),
            identity=stored["identity"],
            outline=RunOutline.of(stored),
            class_names=stored["class_names"],
            geometry={k: _stored_geometry(v) for k, v in stored.get("geometry", {}).items()},
            keep_below=stored["keep_below"],
            input_rules=stored["input_rules"],
            channels_last=stored["channels_last"],
            notes=[Note(**n | {"names": tuple(n["names"])}) for n in stored["notes"]],
        )


def model_of(config: RunConfig) -> ModelSpec:
    """The model that the settings name."""
    return ModelSpec(
        config.model,
        config.weights,
        config.num_classes,
        config.fully_convolutional,
        config.weights_key,
        config.input_size or STANDARD.input_size,
    )


_FORMATS = {True: torch.channels_last, False: torch.contiguous_format}


def preparation_of(config: RunConfig) -> Preparation:
    """How photos become the network's input, by settings that leave nothing of it open.

    Raises:
        SettingsError: a setting is open.
    """
    if (
        config.preprocess is None
        or config.input_size is None
        or config.interpolation is None
        or config.mean is None
        or config.std is None
    ):
        raise SettingsError(
            "a plan needs a preprocess, an input size, an interpolation, a mean and a std; make it "
            "by make_plan"
        )
    sizing = Sizing(config.input_size, config.resize_size, config.interpolation)
    return Preparation(config.preprocess, sizing, config.channel_order, config.mean, config.std)


def write_plan(out: str, plan: Plan, planned: Sequence[PlannedExample]) -> None:
    """Write the manifest, then the plan, whose presence says that the manifest is whole."""
    waiting = iter(planned)
    shards = iter(lambda: list(islice(waiting, plan.shard_size)), [])
    write_manifest(out, shards, schemas.metadata(plan.run_id, plan.versions))
    files.write_text(out, names.PLAN, plan.to_json())


def read_plan(out: str | os.PathLike[str]) -> Plan:
    """The plan of an output.

    Raises:
        SettingsError: there is none: not an output of `backlight generate`.
    """
    return Plan.from_stored(stored_plan(os.fspath(out)))


def check_same_plan(out: str, plan: Plan) -> bool:
    """Whether `out` already has this plan.

    Where the plan's file is absent or broken, the shards that are there say which run it is.

    Raises:
        SettingsError: it has another plan, or files that are not Backlight's; the message names
            each setting that differs.
    """
    if not has_plan(out):
        if commit_indexes(out) and _has_shards_of_no_other_run(out, plan):
            return True
        _check_empty(out)
        return False
    try:
        stored = read_plan(out)
    except BrokenPlanError:
        if not _has_shards_of_no_other_run(out, plan):
            raise
        return True
    if stored.run_id == plan.run_id:
        return True
    before, now = _flat(stored.identity), _flat(plan.identity)
    differing = "; ".join(
        _HASHED.get(name)
        or f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
    raise SettingsError(
        f"{out} holds another run ({stored.run_id}), which differs in {differing}. "
        "Choose another OUT, or start afresh with --overwrite"
    )


_HASHED = {"examples": "the images or their annotations"}


def check_weights(plan: Plan) -> None:
    """Check that the weights, and the code of the model, are those that the plan was made for.

    Raises:
        InputChangedError: they have been replaced since.
    """
    found = plan.model.digest()
    if found != plan.identity["weights"]:
        raise InputChangedError(
            f"the weights {plan.model.weights or 'of ' + plan.model.name}, or the code of "
            f"{plan.model.name}, are not those that this run was planned with (hash "
            f"{plan.identity['weights']}, now {found}). Put them back, or start afresh with "
            "--overwrite"
        )


def check_upsampling(upsampling: str, plan: Plan, layers: Sequence[str]) -> None:
    """Check that there is such an upsampling, and that the layers have what it needs.

    Raises:
        SettingsError: it is unknown, or needs the geometry of a layer that has none.
    """
    check_choice("upsampling", upsampling, UPSAMPLINGS)
    for layer in layers if UPSAMPLINGS[upsampling].needs_geometry else ():
        missing = NoGeometry("the run does not say; run backlight generate with --overwrite")
        geometry = plan.geometry.get(layer, missing)
        if isinstance(geometry, NoGeometry):
            others = (name for name, entry in UPSAMPLINGS.items() if not entry.needs_geometry)
            raise SettingsError(
                f"upsampling {upsampling} needs to know where the cells of layer {layer!r} lie: "
                f"{geometry.reason}; upsampling {', '.join(others)} does not"
            )


def image_hash(image_id: str) -> int:
    """What decides whether the maps of an image are in the sample that is kept."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=7).digest())


def _has_shards_of_no_other_run(out: str, plan: Plan) -> bool:
    records = committed(out)
    own = all(record.run_id == plan.run_id for record in records)
    return own and (bool(records) or not commit_indexes(out))


def _check_empty(out: str) -> None:
    if files.is_object_store(out):
        return
    files.check_folder(out)
    if os.path.isdir(out):
        others = sorted(set(os.listdir(out)) - {names.META, names.TEMPORARY, names.LOCK})
        if others:
            raise SettingsError(
                f"{out} has files and no plan ({', '.join(others[:5])}), so it is not an "
                "output of Backlight; choose an empty or a new folder"
            )


def _stored_geometry(stored: Mapping[str, Any]) -> Geometry | NoGeometry:
    if "reason" in stored:
        return NoGeometry(stored["reason"])
    return Geometry(Axis(**stored["rows"]), Axis(**stored["columns"]))


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flat[name] = value
    return flat
