"""A small run of two shards with every oddity, written by `python made_shards.py OUT`."""

import sys
from dataclasses import replace

import numpy as np

from pipeline import files
from pipeline.example import Example, Region
from pipeline.store import names, schemas
from pipeline.store.commit import CommitRecord
from pipeline.store.manifest import write_manifest
from pipeline.store.outline import run_id_of, sealed
from pipeline.store.records import (
    ErrorRecord,
    ImageRecord,
    LabelRecord,
    MapRecord,
    PlannedExample,
)
from pipeline.store.shard import ShardInfo, write_shard
from transforms.map_key import MapKey

METHODS = {"grad_cam": True, "normgrad": False}
LAYERS = {"Mixed.layer3": (5, 7), "layer4": (3, 3)}
TARGETS = (("label", 7, "dog"), ("label", 7, "wolf"), ("top", 3, ""), ("least", 11, ""))
IDENTITY = {"schema": schemas.SCHEMA_VERSION, "made": "up"}
RUN_ID = run_id_of(IDENTITY)
INFO = ShardInfo(
    index=0,
    count=2,
    run_id=RUN_ID,
    formats=("parquet", "webdataset"),
    map_dtype="float16",
    versions={"torch": "2.13.0", "torchvision": "0.28.0", "backlight": "0.1.0"},
)
LOST = ErrorRecord("torn.png", "b/torn.png", "decode", "truncated", "ends after 3 bytes", 16)
PLANNED = 16 * 5


def image(image_id: str, labels: tuple[LabelRecord, ...] = ()) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        path=f"photos/{image_id}.jpg",
        width=640,
        height=427,
        input_width=224,
        input_height=224,
        view=(106.5, 0.0, 427.0, 427.0),
        labels=labels,
        regions=(
            Region("dog", (1.0, 2.5, 30.0, 40.0), difficult=True),
            Region("wolf", (0.0, 0.0, 9.0, 9.0), rle="012QY3", crowd=True),
        ),
        top=3,
        top_name="tench",
        top_logit=9.5,
        top_probability=0.75,
        least=11,
        least_name="junco",
        least_logit=-4.25,
        least_probability=2.0**-20,
    )


LABELS = (
    LabelRecord("dog", (5, 7), 7),
    LabelRecord("wolf", (7,), 7),
    LabelRecord("yeti", (), None),
)


def maps(seed: int) -> list[MapRecord]:
    """All targets, methods and layers, in no particular order; scales from 1e-9 to 1e9."""
    rng = np.random.default_rng(seed)
    records = [
        MapRecord(
            key=MapKey("base", method, layer, role, target, class_name),
            target_name=f"class {target}",
            logit=target / 3,
            probability=target / 100,
            relu_on_read=relu,
            values=(rng.normal(size=shape) * 10.0 ** rng.integers(-9, 10)).astype(np.float32),
        )
        for role, target, class_name in TARGETS
        for method, relu in METHODS.items()
        for layer, shape in LAYERS.items()
    ]
    return [records[i] for i in rng.permutation(len(records))]


def shard_contents(
    index: int,
) -> tuple[list[tuple[ImageRecord, list[MapRecord]]], list[ErrorRecord]]:
    if index == 0:
        odd = maps(2)
        odd[0] = replace(odd[0], values=np.zeros_like(odd[0].values))
        odd[1] = replace(odd[1], values=np.full_like(odd[1].values, -2.5))
        odd[2].values[0, :2] = np.nan, np.inf
        return [
            (image("z/first.v2", LABELS), maps(1)),
            (image("unlabelled"), []),
            (image("a%odd", LABELS), odd),
        ], [LOST]
    return [(image("_third", LABELS), maps(3)), (image("größe", LABELS), maps(4))], []


def write_plan(out: str) -> None:
    """The plan and the manifest, in the order of the shards' images and errors."""
    shards = []
    for index in range(2):
        images, errors = shard_contents(index)
        examples = [Example(image.image_id, image.path, ()) for image, _ in images]
        examples += [Example(error.image_id, error.path, ()) for error in errors]
        shards.append([PlannedExample(example, ()) for example in examples])
    write_manifest(out, shards, schemas.metadata(RUN_ID, INFO.versions))
    outline = {"run_id": RUN_ID, "examples": 6, "shards": 2, "planned_maps": PLANNED}
    files.write_text(out, names.PLAN, sealed({**outline, "identity": IDENTITY}))


def write_run(out: str, **changes: object) -> list[CommitRecord]:
    write_plan(out)
    return [
        write_shard(
            out,
            replace(INFO, index=index, **changes),  # type: ignore[arg-type]
            *shard_contents(index),
            extra={"seconds": 1.5},
        )
        for index in (1, 0)
    ]


if __name__ == "__main__":
    write_run(sys.argv[1])
