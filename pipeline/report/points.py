"""Where the maps of an image point: what the dot on a map marks."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.plan import Plan
from pipeline.scores.image_scores import image_maps
from pipeline.store.records import ImageRecord, MapRecord
from transforms.geometry import Geometry
from transforms.largest_pixels import ArgMax, arg_max


def points_of(
    plan: Plan, image: ImageRecord, records: Sequence[MapRecord], upsampling: str
) -> list[ArgMax | None]:
    """Where each map points, as the pointing game of that upsampling sees it."""
    geometry = {k: v for k, v in plan.geometry.items() if isinstance(v, Geometry)}
    return arg_max(replace(image_maps(image, records), upsampling=upsampling, geometry=geometry))
