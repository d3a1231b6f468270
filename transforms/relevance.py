"""How much of a map's relevance lies inside a region; for energy and mass accuracy."""

from collections.abc import Callable

import torch
from torch import Tensor

from transforms.image_maps import ImageMaps, classes_to_find, is_undefined, same_shape_chunks
from transforms.resize import place
from transforms.score import Score


def share_inside(
    metric: str, image: ImageMaps, relevance: Callable[[Tensor], Tensor]
) -> list[Score]:
    """The share of a map's relevance that lies inside a class's region.

    `relevance` makes a map's values, at its own resolution, non-negative; the result is placed in
    the original image, where pixels outside of the network's view have none. nan where the
    relevance is constant (most often zero) or not finite. Exact up to float64 rounding.
    """
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    shares: dict[int, dict[str, float]] = {}
    weights: dict[tuple[str, torch.Size], Tensor] = {}
    scored = [i for i, names in enumerate(classes) if names]
    for chunk in same_shape_chunks(image, scored, image.input_height * image.input_width):
        cells = relevance(torch.stack([image.maps[i] for i in chunk]).double())
        origin = image.keys[chunk[0]].layer, cells.shape[1:]
        if origin not in weights:
            weights[origin] = _cell_weights(image, *origin)
        sums = cells.flatten(1) @ weights[origin].T
        inside = (sums[:, 1:] / sums[:, :1]).masked_fill(is_undefined(cells)[:, None], torch.nan)
        for i, values in zip(chunk, inside.tolist(), strict=True):
            shares[i] = dict(zip(image.regions, values, strict=True))
    return [
        Score(
            metric,
            image.keys[i]._replace(class_name=name),
            image.upsampling,
            shares[i][name],
            region=image.region,
        )
        for i in scored
        for name in classes[i]
    ]


def _cell_weights(image: ImageMaps, layer: str, shape: torch.Size) -> Tensor:
    """What each cell of a map [h, w] adds to the image's sum, then to each region's: [1 + R, h w].

    Placing a map is linear, so the sum of a placed map over a region is the map times what the
    transpose of placing makes of the region. One transpose per region serves every map of the
    layer.
    """
    everywhere = torch.ones(image.height, image.width, dtype=torch.bool)
    with torch.enable_grad():
        cells = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        upsample = image.upsample(layer)
        placed = place(cells, image.view, image.height, image.width, 0.0, upsample)
    weights = [
        torch.autograd.grad(placed, cells, region[None].double(), retain_graph=True)[0]
        for region in (everywhere, *image.regions.values())
    ]
    return torch.cat(weights).flatten(1)
