"""The columns of every Parquet file of OUT: name, type, and what the number means.

A new column goes at the end and raises SCHEMA_VERSION's second number; readers ask for columns by
name, so older files stay readable. Changing what a column means raises the first number. The
description of a column travels in its Arrow field metadata and, in words, in the dataset card.
"""

import json
from collections.abc import Collection, Mapping

import pyarrow as pa

from pipeline.store.encoding import MapDtype
from transforms.map_key import MapKey

SCHEMA_VERSION = "3.3"
"""3.0: intervals are other ones, and `curve` of scores/ holds a metric's own numbers, as int32.
3.1: the manifest has the column `problem`, and the plan the rules of the input and the memory
format. 3.2: images/ has `photo_sha256`, and the plan a hash of itself. 3.3: the plan has the
setting `box_format`."""

CONVENTIONS = {
    "map": "row-major [height, width] at the layer's own resolution; value = map * map_scale",
    "relu_on_read": "apply max(value, 0) before use where true",
    "logit": "before the softmax",
    "coordinates": "pixels of the original image after EXIF rotation, x right, y down, half-open",
    "normalisation": "none",
}


IDENTITY = ("backlight.schema_version", "backlight.run_id")
"""The metadata by which a file says that it belongs to a run, and how its columns are meant."""


RUN_ID = b"backlight.run_id"
"""The key of the run's id in the metadata of a Parquet file."""


def metadata(run_id: str, versions: Mapping[str, str]) -> dict[str, str]:
    """The Arrow schema metadata of every file; `versions` names torch, torchvision, backlight."""
    return {
        "backlight.schema_version": SCHEMA_VERSION,
        "backlight.run_id": run_id,
        "backlight.conventions": json.dumps(CONVENTIONS, sort_keys=True),
        "backlight.versions": json.dumps(dict(versions), sort_keys=True),
    }


def _column(name: str, type_: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable, {"description": description})


def _list(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


def maps_schema(map_dtype: MapDtype) -> pa.Schema:
    """The columns of `maps/`; `map` holds float16 or float32."""
    values = pa.float16() if map_dtype == "float16" else pa.float32()
    return pa.schema(
        [
            _column("image_id", pa.string(), "the image; a key into images/"),
            _column("variant", pa.string(), "the model explained: base, meta(...), cascade(...)"),
            _column("method", pa.string(), "the saliency method"),
            _column("layer", pa.string(), "the module whose output was tapped; input = the image"),
            _column("role", pa.string(), "why the class was chosen: label, top, least, ..."),
            _column("target", pa.int32(), "the model's class index that is explained"),
            _column("target_name", pa.string(), "the model's name of that class"),
            _column("class_name", pa.string(), "the dataset class of role label; else empty"),
            _column("relu_on_read", pa.bool_(), "stored signed: apply max(value, 0) before use"),
            _column("logit", pa.float32(), "of the target, before the softmax"),
            _column(
                "probability",
                pa.float32(),
                "of the target: softmax, or sigmoid of a single output",
            ),
            _column("height", pa.int16(), "rows of the map"),
            _column("width", pa.int16(), "columns of the map"),
            _column("map", _list(values), "row-major values divided by map_scale"),
            _column("map_scale", pa.float32(), "a power of two; value = map * map_scale"),
            _column("map_min", pa.float32(), "least value before rounding, before any ReLU"),
            _column("map_max", pa.float32(), "largest value before rounding"),
            _column("map_sum", pa.float32(), "sum of the values before rounding"),
            _column(
                "is_constant",
                pa.bool_(),
                "all values are finite, and equal up to 2**-10 of the largest",
            ),
            _column("is_finite", pa.bool_(), "no value is nan or infinite"),
        ]
    )


_ORIGIN = 3  # fields of a MapKey that say what the map was computed with

MAP_ORDER = (*MapKey._fields[:_ORIGIN], "image_id", *MapKey._fields[_ORIGIN:])
"""The sort order of the rows of `maps/`: reading some methods or layers skips the rest."""

_BOX = [
    _column("class_name", pa.string(), "the dataset's class name"),
    _column("x0", pa.float64(), "left edge, pixels of the original image, half-open box"),
    _column("y0", pa.float64(), "top edge"),
    _column("x1", pa.float64(), "right edge"),
    _column("y1", pa.float64(), "bottom edge"),
    _column("rle", pa.string(), "COCO compressed RLE of the mask; null: the box", nullable=True),
    _column("difficult", pa.bool_(), "marked difficult by the dataset"),
    _column("crowd", pa.bool_(), "a crowd of objects, not one"),
]
_REGIONS = _column("regions", _list(pa.struct(_BOX)), "the annotated objects")

_LABEL = [
    _column("class_name", pa.string(), "the dataset's class name"),
    _column("model_classes", _list(pa.int32()), "the model's class indices that stand for it"),
]
_CHOSEN = _column(
    "chosen", pa.int32(), "the one of model_classes with the largest logit", nullable=True
)

_SPREAD = [
    _column("layer", pa.string(), "the module whose output was tapped"),
    _column("spread", pa.float64(), "mean absolute deviation from the spatial mean"),
]

IMAGES = pa.schema(
    [
        _column("image_id", pa.string(), "unique in the dataset"),
        _column("path", pa.string(), "of the image, relative to the source's root"),
        _column("width", pa.int32(), "of the original image, pixels, after EXIF rotation"),
        _column("height", pa.int32(), "of the original image, pixels, after EXIF rotation"),
        _column("input_width", pa.int32(), "of the network's input, pixels"),
        _column("input_height", pa.int32(), "of the network's input, pixels"),
        _column("view_left", pa.float64(), "left edge of what the network saw, original pixels"),
        _column("view_top", pa.float64(), "top edge of what the network saw, original pixels"),
        _column("view_width", pa.float64(), "width of what the network saw, original pixels"),
        _column("view_height", pa.float64(), "height of what the network saw, original pixels"),
        _column("labels", _list(pa.struct([*_LABEL, _CHOSEN])), "the classes that are present"),
        _REGIONS,
        _column("top", pa.int32(), "the model's most likely class"),
        _column("top_name", pa.string(), "its name"),
        _column("top_logit", pa.float32(), "its logit"),
        _column("top_probability", pa.float32(), "its probability"),
        _column("least", pa.int32(), "the model's least likely class"),
        _column("least_name", pa.string(), "its name"),
        _column("least_logit", pa.float32(), "its logit"),
        _column("least_probability", pa.float32(), "its probability"),
        _column("spreads", _list(pa.struct(_SPREAD)), "how far each layer's activation varies"),
        _column("photo_sha256", pa.string(), "SHA-256 of the photo's file, in hexadecimal"),
    ]
)

ERRORS = pa.schema(
    [
        _column("image_id", pa.string(), "the image that failed"),
        _column("path", pa.string(), "of the image, relative to the source's root"),
        _column("stage", pa.string(), "what was being done: plan, decode, ..."),
        _column("kind", pa.string(), "the kind of failure"),
        _column("message", pa.string(), "what went wrong, in words"),
        _column("planned_maps", pa.int32(), "the maps that this failure costs"),
    ]
)

MANIFEST = pa.schema(
    [
        _column("image_id", pa.string(), "unique in the dataset"),
        _column("path", pa.string(), "of the image, relative to the source's root"),
        _column("width", pa.int32(), "as annotated, pixels; null: not stated", nullable=True),
        _column("height", pa.int32(), "as annotated, pixels; null: not stated", nullable=True),
        _column("labels", _list(pa.struct(_LABEL)), "the classes that are present"),
        _REGIONS,
        _column("problem", pa.string(), "why the image cannot be used; empty: nothing is wrong"),
    ]
)


def _scored(class_name: str, *, without: Collection[str] = ()) -> list[pa.Field]:
    """The metric and the identity of the map that was scored, with what `class_name` means."""
    return [
        _column("metric", pa.string(), "what was measured"),
        *(
            _column(
                name,
                pa.int32() if kind is int else pa.string(),
                class_name if name == "class_name" else "of the map that was scored",
            )
            for name, kind in MapKey.__annotations__.items()
            if name not in without
        ),
    ]


_UPSAMPLING = _column(
    "upsampling", pa.string(), "how maps were brought to pixels: bilinear, ...; empty: not"
)

_REGION = _column(
    "region", pa.string(), "the region of localisation: boxes, masks; empty: the metric has none"
)

_CURVE = _column(
    "curve",
    _list(pa.int32()),
    "at each threshold of the map: the best IoU in per cent, or the metric's counts; null: none",
    nullable=True,
)

SCORES = pa.schema(
    [
        _column("image_id", pa.string(), "the image; a key into images/"),
        *_scored("the dataset class of role label; else empty"),
        _column("value", pa.float64(), "the score; nan = undefined"),
        _column("ties", pa.int32(), "pixels that share the arg max; 0 where there is no arg max"),
        _UPSAMPLING,
        _CURVE,
        _REGION,
    ]
)

STATISTICS = pa.schema(
    [
        *_scored("one dataset class; empty: over all classes", without=["target"]),
        _column("statistic", pa.string(), "mean, class_mean, max_accuracy..."),
        _column("value", pa.float64(), "the statistic; nan = undefined"),
        _column("low", pa.float64(), "lower end of the 95 % interval over images; nan: too few"),
        _column("high", pa.float64(), "upper end of the 95 % interval over images; nan: too few"),
        _column("n", pa.int64(), "scores that count"),
        _column("undefined", pa.int64(), "scores that were undefined and do not count"),
        _column("images", pa.int64(), "images that have a score that counts"),
        _column("std", pa.float64(), "sample standard deviation of what the mean is over"),
        _UPSAMPLING,
        _column("subset", pa.string(), "which scores: all, or difficult by the flag file"),
        _column("tied", pa.float64(), "share of n whose arg max is shared; nan: no arg max"),
        _column("depth", pa.int32(), "the layer's place in the network, from 0; -1: no layer"),
        _REGION,
    ]
)

COMPARISON = pa.schema(
    [
        _column("by", pa.string(), "what a and b differ by: method, layer, run, ..."),
        _column("a", pa.string(), "the first of the pair"),
        _column("b", pa.string(), "the second of the pair"),
        *(
            _column(name, pa.string(), "as in scores/; empty: what a and b differ by, or none")
            for name in ("metric", "variant", "method", "layer", "role", "upsampling", "region")
        ),
        _column("statistic", pa.string(), "mean, class_mean, max_accuracy..."),
        _column("n", pa.int64(), "pairs of scores: an image and class for which both are defined"),
        _column("images", pa.int64(), "images that these are of"),
        _column("undefined", pa.int64(), "pairs of scores that are left out: one is undefined"),
        _column("unmatched", pa.int64(), "scores that are left out: only one of a and b has one"),
        _column("value_a", pa.float64(), "the statistic of a over these pairs; nan = undefined"),
        _column("value_b", pa.float64(), "the statistic of b over these pairs; nan = undefined"),
        _column("difference", pa.float64(), "value_a - value_b"),
        _column(
            "low", pa.float64(), "lower end of its 95 % interval over images; nan: too few images"
        ),
        _column(
            "high", pa.float64(), "upper end of its 95 % interval over images; nan: too few images"
        ),
        _column("p", pa.float64(), "two-sided p of the paired test over images; nan = no test"),
        _column("p_holm", pa.float64(), "p corrected for the pairs that differ by a and b alone"),
        _column("test", pa.string(), "how p was found: binomial, enumeration, normal, bootstrap"),
        _column("better", pa.string(), "a or b where p_holm < 0.05; empty: not told apart"),
    ]
)
