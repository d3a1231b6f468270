"""What a shard is written from and read back as: one record per map, image and failure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.example import Example, Region
from transforms.map_key import MapKey
from transforms.pixels import View


@dataclass(frozen=True)
class MapRecord:
    """One saliency map; a row of `maps/`.

    Attributes:
        key: which map of its image it is.
        target_name: the model's name of the target.
        logit: of the target, before the softmax.
        probability: of the target, after the softmax; of a single output, the sigmoid.
        relu_on_read: the map is stored signed, and its ReLU is applied when the map is read or
            scored; so it is for the CAM family.
        values: `[h, w]`, at the layer's own resolution.
    """

    key: MapKey
    target_name: str
    logit: float
    probability: float
    relu_on_read: bool
    values: NDArray[np.float32]


@dataclass(frozen=True)
class LabelRecord:
    """One dataset class present in an image, and what it is to the model.

    Attributes:
        class_name: the dataset's class name.
        model_classes: the model's class indices that stand for the class; empty where it knows
            none.
        chosen: the one of `model_classes` with the largest logit; None where there is none.
    """

    class_name: str
    model_classes: tuple[int, ...]
    chosen: int | None


@dataclass(frozen=True)
class ImageRecord:
    """One image that was explained; a row of `images/`.

    Attributes:
        image_id: unique in the set.
        path: relative to the source's root.
        width, height: of the original image, pixels, after EXIF rotation.
        input_width, input_height: of the network's input, pixels.
        view: the part of the original image that the network saw.
        labels: the classes that are present.
        regions: the annotated objects.
        top, top_name, top_logit, top_probability: the model's most likely class.
        least, least_name, least_logit, least_probability: the model's least likely class.
        spreads: layers, each with the mean absolute deviation of its activation from its spatial
            mean.
        photo_sha256: SHA-256 of the photo's bytes, in hexadecimal.
    """

    image_id: str
    path: str
    width: int
    height: int
    input_width: int
    input_height: int
    view: View
    labels: tuple[LabelRecord, ...]
    regions: tuple[Region, ...]
    top: int
    top_name: str
    top_logit: float
    top_probability: float
    least: int
    least_name: str
    least_logit: float
    least_probability: float
    spreads: tuple[tuple[str, float], ...] = ()
    photo_sha256: str = ""


@dataclass(frozen=True)
class ErrorRecord:
    """One image that failed; a row of `errors/`.

    Attributes:
        image_id: unique in the set.
        path: relative to the source's root.
        stage: what was being done, such as `decode`.
        kind: the kind of the failure, such as `truncated`.
        message: what went wrong, in words.
        planned_maps: the maps that this failure costs.
    """

    image_id: str
    path: str
    stage: str
    kind: str
    message: str
    planned_maps: int


@dataclass(frozen=True)
class PlannedExample:
    """One example as the plan lists it; a row of the manifest.

    Attributes:
        example: the image, its labels and its objects.
        model_classes: for each of `example.labels`, the model's class indices that stand for it.
    """

    example: Example
    model_classes: tuple[tuple[int, ...], ...]


ImageAndMaps = tuple[ImageRecord, Sequence[MapRecord]]
"""One image of a shard and its maps."""
