"""What a shard is written from and read back as: one record a map, an image, a failure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.example import Example, Region


@dataclass(frozen=True)
class MapRecord:
    """One saliency map; a row of `maps/`."""

    variant: str
    method: str
    layer: str
    role: str
    target: int
    """The model's class index whose score is explained."""
    target_name: str
    class_name: str
    """The dataset class that role `label` stands for; "" for other roles."""
    logit: float
    probability: float
    relu_on_read: bool
    """CAM family: stored signed; the ReLU is applied when the map is read or scored."""
    values: NDArray[np.float32]
    """`[h, w]`, at the layer's own resolution."""


@dataclass(frozen=True)
class LabelRecord:
    """One dataset class present in an image, and what it is to the model."""

    class_name: str
    targets: tuple[int, ...]
    """The model's class indices that stand for the class; empty where it knows none."""
    chosen: int | None
    """The one of `targets` with the largest logit; None where there is none."""


@dataclass(frozen=True)
class ImageRecord:
    """One image that was explained; a row of `images/`."""

    image_id: str
    path: str
    width: int
    """Of the original image, pixels, after EXIF rotation; so is `height`."""
    height: int
    input_width: int
    """Of the network's input, pixels; so is `input_height`."""
    input_height: int
    view: tuple[float, float, float, float]
    """Left, top, width, height: the part of the original image (pixels) that the network saw."""
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
    """Layer and the mean absolute deviation of its activation from its spatial mean."""


@dataclass(frozen=True)
class ErrorRecord:
    """One image that failed; a row of `errors/`."""

    image_id: str
    path: str
    stage: str
    kind: str
    message: str
    planned_maps: int
    """The maps that this failure costs."""


@dataclass(frozen=True)
class PlannedExample:
    """One example as the plan lists it; a row of the manifest."""

    example: Example
    targets: tuple[tuple[int, ...], ...]
    """For each of `example.labels`, the model's class indices that stand for it."""
