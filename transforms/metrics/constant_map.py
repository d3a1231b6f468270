"""Which maps are constant: they show nothing, and count as 0 in a layer combination.

Importing this module loads no torch.
"""

import math

from transforms.constant import is_constant
from transforms.image_maps import ImageMaps
from transforms.score import Score


def constant_map(image: ImageMaps) -> list[Score]:
    """1.0 where the map is constant up to rounding (`is_constant`), 0.0 elsewhere.

    nan where a value is not finite.
    """
    values: dict[int, float] = {}
    for stack in image.stacks(range(len(image.keys)), 1):
        constant = is_constant(stack.maps)
        found = constant.double().masked_fill(stack.undefined & ~constant, math.nan)
        values.update(zip(stack.members, found.tolist(), strict=True))
    return [
        Score("constant_map", key, image.upsampling, values[i]) for i, key in enumerate(image.keys)
    ]
