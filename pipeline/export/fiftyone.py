"""A run as a dataset of FiftyOne, in the format that it imports (`fiftyone.types.FiftyOneDataset`).

    FOLDER/metadata.json    the fields, and which map or score each of them is
    FOLDER/samples.json     the samples; written last
    FOLDER/fields/NAME/     heatmaps and masks of objects, as PNG
    FOLDER/data/            photos, where they are linked or copied

A field of FiftyOne holds one heatmap. So a sample is an image *and an explained class*: it has a
heatmap for every method and layer, the scores of these maps, the class, and all annotated objects.

Source of the format: https://docs.voxel51.com/user_guide/import_datasets.html
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline import files
from pipeline.errors import SettingsError, check_choice
from pipeline.example import Region
from pipeline.export.fiftyone_documents import (
    PHOTOS,
    SAMPLE_FIELDS,
    VERSION,
    Document,
    classification,
    heatmap_field,
    object_id,
    plain_field,
)
from pipeline.photo_bytes import file_of, read_photo
from pipeline.plan import Plan, read_plan
from pipeline.store import MapDataset
from pipeline.store.commit import CommitRecord
from pipeline.store.evaluation import read_evaluation, statistics_problems
from pipeline.store.filters import check_values
from pipeline.store.names import SCORES, shard_file
from pipeline.store.parquet import read_rows
from pipeline.store.records import ImageRecord, MapRecord
from transforms.map_key import NO_TARGET, MapKey
from transforms.resize import place

_SIDE = 128  # pixels of the longer side of a heatmap, unless the map itself is finer
_METADATA, _SAMPLES = "metadata.json", "samples.json"
_MADE_BY = "made_by"

_TAKEN = {str(declared["name"]) for declared in SAMPLE_FIELDS}

Explained = tuple[str, int, str]
"""Role, target and class name: what a sample is of, besides its image."""


@dataclass
class Export:
    """What was written.

    Attributes:
        folder: where.
        samples, images: how many; a sample is an image and an explained class.
        heatmaps: how many.
        scores: how many; those that are undefined are left out.
        undefined: how many scores are undefined.
        of_several: how many scores are left out because one map has several: those of the classes
            of objects in the image, none of which it explains.
        not_finite: how many maps have nan or infinite values, and are left out.
        without_photo: of how many images the photo is not where the plan says.
        extracted: how many photos are in archives or in an object store, and were copied.
        shards, planned_shards: how many shards were there, and how many the run has.
        is_scored: whether an evaluation was there, and had come to its end.
    """

    folder: str
    samples: int = 0
    images: int = 0
    heatmaps: int = 0
    scores: int = 0
    undefined: int = 0
    of_several: int = 0
    not_finite: int = 0
    without_photo: int = 0
    extracted: int = 0
    shards: int = 0
    planned_shards: int = 0
    is_scored: bool = False


def export_fiftyone(
    out: str,
    folder: str | None = None,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    variant: str = "base",
    photos: str = "original",
    overwrite: bool = False,
    on_start: Callable[[int], None] = lambda images: None,
    on_image: Callable[[], None] = lambda: None,
) -> Export:
    """Write the maps and the scores of `out` to `folder`, by default `OUT-fiftyone`.

    `methods`, `layers` and `roles` are by default all that `out` has. Heatmaps are upsampled
    bilinearly to the shape of the photo. `overwrite` deletes an earlier export first. Memory: one
    shard, as `MapDataset.shard_images`, and its scores.

    Raises:
        SettingsError: a name is unknown; the folder has other files, or an export without
            `overwrite`; there are neither maps nor scores.
    """
    check_choice("photos", photos, PHOTOS)
    if folder is None:
        if files.is_object_store(out):
            raise SettingsError(f"{out} is a URL: name a local FOLDER to export to")
        folder = out.rstrip("/") + "-fiftyone"
    dataset = MapDataset(out)
    plan = read_plan(out)
    wanted = _Wanted(plan, methods, layers, roles, variant)
    scored = not statistics_problems(out, by_hash=False)
    _prepare(Path(folder), overwrite)
    writer = _Writer(Path(folder), plan.root, photos, wanted, _parts_told(out))
    on_start(sum(record.images for record in dataset.commits))
    with (Path(folder) / f"{_SAMPLES}.part").open("w", encoding="utf-8") as file:
        file.write('{"samples": [')
        for record in dataset.commits:
            scores = _scores(out, record) if scored else {}
            for image, maps in dataset.shard_images(record.index):
                for sample in writer.samples(image, maps, scores.get(image.image_id, [])):
                    file.write(",\n" if writer.done.samples else "\n")
                    file.write(json.dumps(sample, ensure_ascii=False))
                    writer.done.samples += 1
                on_image()
        file.write("\n]}\n")
    writer.done.is_scored = scored
    writer.done.shards, writer.done.planned_shards = len(dataset.commits), plan.shards
    if not writer.done.samples:
        raise SettingsError(f"{out} has neither maps nor scores of what was asked for")
    (Path(folder) / _METADATA).write_text(json.dumps(writer.metadata(out), indent=1))
    os.replace(Path(folder) / f"{_SAMPLES}.part", Path(folder) / _SAMPLES)
    return writer.done


class _Wanted:
    """Which maps and scores are exported."""

    def __init__(
        self,
        plan: Plan,
        methods: Sequence[str] | None,
        layers: Sequence[str] | None,
        roles: Sequence[str] | None,
        variant: str,
    ) -> None:
        self.all_roles = {role.name for role in plan.roles}
        self._given: dict[str, set[str]] = {}
        for name, values, present in (
            ("method", methods, plan.method_names),
            ("layer", layers, plan.layers),
            ("role", roles, self.all_roles),
            ("variant", [variant], [each.name for each in plan.variants]),
        ):
            if values is not None:
                check_values(name, list(values), list(present))
                self._given[name] = set(values)

    def has_map(self, key: MapKey) -> bool:
        return all(getattr(key, name) in values for name, values in self._given.items())

    def has_score(self, key: MapKey) -> bool:
        """As `has_map`, but a baseline has no layer, and a pair has a role of its own."""
        return all(
            getattr(key, name) in values
            for name, values in self._given.items()
            if (name != "layer" or key.layer) and (name != "role" or key.role in self.all_roles)
        )

    def is_of(self, key: MapKey, what: Explained) -> bool:
        """Whether a score is of what a sample is of; that of a pair of roles is of every sample.

        A map of the most likely class, say, has a score for each class of objects.
        """
        role, target, class_name = what
        same = key.role == role and class_name in ("", key.class_name)
        return key.role not in self.all_roles or (same and key.target in (target, NO_TARGET))


@dataclass(frozen=True)
class _Score:
    """A row of scores/, without its curve."""

    metric: str
    key: MapKey
    upsampling: str
    region: str
    value: float


@dataclass
class _Writer:
    """Writes the files of the samples, and knows the fields that they have so far."""

    folder: Path
    root: str
    photos: str
    wanted: _Wanted
    parts: frozenset[str]
    done: Export = field(init=False)
    _names: dict[tuple[str, ...], str] = field(default_factory=dict)
    _types: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = Export(str(self.folder))

    def samples(
        self, image: ImageRecord, maps: Sequence[MapRecord], scores: Sequence[_Score]
    ) -> Iterator[Document]:
        """A sample per explained class of the image, and the files that they name."""
        maps = [record for record in maps if self.wanted.has_map(record.key)]
        scores = [score for score in scores if self.wanted.has_score(score.key)]
        explained = _explained(image, maps, scores, self.wanted)
        if not explained:
            return
        self.done.images += 1
        present = [
            classification(f"{image.image_id} label {label.class_name}", label.class_name)
            for label in image.labels
        ]
        objects = [self._detection(image, number, r) for number, r in enumerate(image.regions)]
        shared = {
            "filepath": self._photo(image),
            "_media_type": "image",
            "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
            "image_id": image.image_id,
            "labels": {"_cls": "Classifications", "classifications": present},
            "ground_truth": {"_cls": "Detections", "detections": objects},
        }
        top = (image.top_name, image.top_probability, image.top_logit)
        for what, facts in explained.items():
            role, target, class_name = what
            identity = json.dumps([image.image_id, *what])
            sample = {
                "_id": object_id(identity),
                "_rand": int(object_id(identity)["$oid"][:8], 16) / 2**32,
                "tags": [role],
                **shared,
                "role": role,
                "target": target,
                "class_name": class_name,
                "explained": classification(f"{identity} explained", *facts),
                "top": classification(f"{identity} top", *top),
            }
            for record in maps:
                if _what(record.key) == what:
                    self._add_heatmap(sample, image, record)
            self._add_scores(sample, [s for s in scores if self.wanted.is_of(s.key, what)])
            yield sample

    def metadata(self, out: str) -> Document:
        """The content of metadata.json."""
        told = {name: ", ".join(filter(None, key)) for key, name in self._names.items()}
        maps, scores = (
            [name for name, type_ in self._types.items() if type_ == of]
            for of in ("heatmap", "score")
        )
        groups = {
            "tags": ["tags"],
            "explained": ["explained", "role", "class_name", "target", "image_id"],
            "image": ["ground_truth", "labels", "top", "metadata.width", "metadata.height"],
            "maps": maps,
            "scores": scores,
            "other": ["id", "filepath"],
        }
        return {
            "name": Path(out.rstrip("/")).name,
            "version": VERSION,
            "media_type": "image",
            "sample_fields": [
                *SAMPLE_FIELDS,
                *(heatmap_field(name, told[name]) for name in maps),
                *(plain_field(name, "FloatField", told[name]) for name in scores),
            ],
            "info": {_MADE_BY: "backlight", "out": out},
            "app_config": {
                "media_fields": ["filepath"],
                "grid_media_field": "filepath",
                "modal_media_field": "filepath",
                "sidebar_groups": [{"name": n, "paths": paths} for n, paths in groups.items()],
            },
        }

    def _add_heatmap(self, sample: Document, image: ImageRecord, record: MapRecord) -> None:
        if not np.isfinite(record.values).all():
            self.done.not_finite += 1
            return
        name = self._name("heatmap", record.key.method, record.key.layer)
        pixels, low, high = heatmap_pixels(record.values, image)
        path = f"fields/{name}/{sample['_id']['$oid']}.png"
        self._write_png(path, pixels)
        sample[name] = {
            "_id": object_id(path),
            "_cls": "Heatmap",
            "tags": [],
            "map_path": path,
            "range": [0.0, 255.0],
            "low": low,
            "high": high,
        }
        self.done.heatmaps += 1

    def _add_scores(self, sample: Document, scores: Sequence[_Score]) -> None:
        """The scores of a sample; where a map has several of a kind, a field cannot hold them."""
        by_field: dict[tuple[str, ...], list[float]] = {}
        for score in scores:
            shown = {"upsampling": score.upsampling, "region": score.region}
            extra = [value for part, value in shown.items() if part in self.parts and value]
            key = (score.metric, score.key.method, score.key.layer, *extra)
            by_field.setdefault(key, []).append(score.value)
        for key, values in by_field.items():
            if len(values) > 1:
                self.done.of_several += len(values)
            elif math.isnan(values[0]):
                self.done.undefined += 1
            else:
                sample[self._name("score", *key)] = values[0]
                self.done.scores += 1

    def _name(self, type_: str, *key: str) -> str:
        """The name of the field of a map or a score; two of them never share one."""
        if key not in self._names:
            plain = re.sub(r"\W+", "_", "_".join(part for part in key if part)).strip("_")
            name, number = plain, 2
            while name in self._types or name in _TAKEN:
                name, number = f"{plain}_{number}", number + 1
            self._names[key], self._types[name] = name, type_
        return self._names[key]

    def _detection(self, image: ImageRecord, number: int, region: Region) -> Document:
        identity = f"{image.image_id} object {number}"
        found: Document = {
            "_id": object_id(identity),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": region.class_name,
            "iscrowd": region.crowd,
            "difficult": region.difficult,
        }
        left, top, right, bottom = region.box
        if region.rle is not None:
            counts = {"size": [image.height, image.width], "counts": region.rle.encode()}
            rows, columns = np.nonzero(coco_mask.decode(counts))
            if rows.size:
                top, bottom = float(rows.min()), float(rows.max() + 1)
                left, right = float(columns.min()), float(columns.max() + 1)
                pixels = np.zeros((int(bottom - top), int(right - left)), dtype=np.uint8)
                pixels[rows - int(top), columns - int(left)] = 255
                path = f"fields/ground_truth.detections/{object_id(identity)['$oid']}.png"
                self._write_png(path, pixels)
                found["mask_path"] = path
        width, height = image.width, image.height
        box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        return {**found, "bounding_box": box}

    def _photo(self, image: ImageRecord) -> str:
        """The path of the photo: absolute, or relative to the folder."""
        address = os.path.join(self.root, image.path)
        in_archive = file_of(address) != address or files.is_object_store(address)
        if not in_archive and not os.path.isfile(address):
            self.done.without_photo += 1
            return os.path.abspath(address)
        if not in_archive and self.photos == "original":
            return os.path.abspath(address)
        suffix = Path(address).suffix
        if in_archive:
            try:
                content = read_photo(address)
            except OSError:
                self.done.without_photo += 1
                return os.path.abspath(file_of(address))
            with Image.open(BytesIO(content)) as photo:
                suffix = f".{(photo.format or 'img').lower()}"
        place_ = self.folder / "data" / (object_id(image.image_id)["$oid"] + suffix)
        place_.parent.mkdir(exist_ok=True)
        if in_archive:
            self.done.extracted += 1
            place_.write_bytes(content)
        elif self.photos == "link":
            place_.symlink_to(os.path.abspath(address))
        else:
            shutil.copyfile(address, place_)
        return f"data/{place_.name}"

    def _write_png(self, path: str, pixels: NDArray[np.uint8]) -> None:
        place_ = self.folder / path
        place_.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place_)


def heatmap_pixels(
    values: NDArray[np.float32], image: ImageRecord
) -> tuple[NDArray[np.uint8], float, float]:
    """A finite map `[h, w]` in the shape of the photo, and the values of its pixels 1 and 255.

    Pixel 0 is what the network did not see. The scale goes from the lowest to the highest value, or
    is the same on both sides of zero where there are negative ones.
    """
    scale = max(_SIDE, *values.shape) / max(image.width, image.height)
    height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
    across, down = width / image.width, height / image.height
    left, top, view_width, view_height = image.view
    view = (left * across, top * down, view_width * across, view_height * down)
    maps = torch.from_numpy(np.ascontiguousarray(values, np.float64))[None]
    placed = place(maps, view, height, width, math.nan)[0].numpy()
    low, high = float(values.min()), float(values.max())
    if low < 0:
        high = max(high, -low)
        low = -high
    with np.errstate(invalid="ignore"):
        shades = 1 + np.rint(254 * np.clip((placed - low) / ((high - low) or 1.0), 0, 1))
    return np.where(np.isnan(placed), 0, shades).astype(np.uint8), low, high


def _explained(
    image: ImageRecord, maps: Sequence[MapRecord], scores: Sequence[_Score], wanted: _Wanted
) -> dict[Explained, tuple[str, float | None, float | None]]:
    """What of the image is explained, with the class's name, probability and logit.

    Where the maps were not kept, it is what was scored.
    """
    if maps:
        return {_what(m.key): (m.target_name, m.probability, m.logit) for m in maps}
    names = {image.top: image.top_name, image.least: image.least_name}
    return {
        _what(score.key): (names.get(score.key.target, score.key.class_name), None, None)
        for score in scores
        if score.key.target != NO_TARGET and score.key.role in wanted.all_roles
    }


def _what(key: MapKey) -> Explained:
    return key.role, key.target, key.class_name


def _scores(out: str, record: CommitRecord) -> dict[str, list[_Score]]:
    """The scores of a shard, by image."""
    columns = ["image_id", "metric", *MapKey._fields, "upsampling", "region", "value"]
    table = read_rows(files.join(out, shard_file(SCORES, record.index, record.count)), columns)
    found: dict[str, list[_Score]] = {}
    for row in table.to_pylist():
        key = MapKey(**{name: row[name] for name in MapKey._fields})
        score = _Score(row["metric"], key, row["upsampling"], row["region"], row["value"])
        found.setdefault(row["image_id"], []).append(score)
    return found


def _parts_told(out: str) -> frozenset[str]:
    """What else names a score: the upsampling and the region, where the last evaluation had two."""
    record = read_evaluation(out) or {}
    asked = {"upsampling": record.get("upsamplings", []), "region": record.get("regions", [])}
    return frozenset(name for name, values in asked.items() if len(values) > 1)


def _prepare(folder: Path, overwrite: bool) -> None:
    """Make the folder; one with an earlier export is emptied if that was asked for.

    Raises:
        SettingsError: there are other files in it, or it is a file.
    """
    files.check_folder(str(folder))
    if folder.is_dir() and any(folder.iterdir()):
        if not _is_export(folder):
            raise SettingsError(f"{folder} has other files; name an empty or a new FOLDER")
        if not overwrite:
            raise SettingsError(f"{folder} has an export already; --overwrite replaces it")
        for name in (_SAMPLES, f"{_SAMPLES}.part"):
            (folder / name).unlink(missing_ok=True)
        for name in ("fields", "data"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _METADATA).write_text(json.dumps({"info": {_MADE_BY: "backlight"}}))


def _is_export(folder: Path) -> bool:
    try:
        found = files.parsed_json((folder / _METADATA).read_bytes())
        return bool(found["info"][_MADE_BY] == "backlight")
    except (OSError, ValueError, KeyError, TypeError):
        return False
