"""The pointing game: does the map's arg max lie on, or near, the object?

Source: Zhang et al., ECCV 2016, as in TorchRay's `torchray/benchmark/pointing_game.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from transforms.image_maps import ImageMaps, Stack, classes_to_find
from transforms.map_key import NO_TARGET, MapKey
from transforms.resize import Interpolation, smooth
from transforms.score import Score
from transforms.taps import INPUT
from transforms.variants import BASE

CENTER = "center"
TOLERANCE = 15
SMOOTHING = 0.02

TIE = 1e-6
"""Values that differ by at most this share of the map's largest magnitude tie."""


def pointing_game(image: ImageMaps) -> list[Score]:
    """1.0 where the arg max is less than 15 pixels from the class's region, 0.0 elsewhere.

    The map is placed in the original image, and distances are in its pixels, between pixel centres.
    Where `ties` pixels share the largest value (up to `TIE`), the score is the share of them that
    hit. A map that is constant or not finite scores nan. Maps of layer `input` are smoothed first,
    sigma = 0.02 max(h, w) of the map.

    A map that explains a class of the dataset is scored against the region of that class, and not
    at all where the class has none. Any other map is a control: it is scored against each class
    that has both a region and a map of its own. The image's centre, pixel (height // 2,
    width // 2), is a baseline: it is scored once per such class and role, as method `center` with
    variant `base`, no layer and no target.
    """
    return _scores("pointing_game", image, _share_of_tied)


def pointing_game_first(image: ImageMaps) -> list[Score]:
    """As `pointing_game`, but of tied pixels the one of the lowest linear index counts.

    This is the rule of the paper and of TorchRay.
    """
    return _scores("pointing_game_first", image, _first_of_tied)


@dataclass(frozen=True)
class _Axis:
    """The pixels of one axis as blocks: those that can hold a maximum, then those between them.

    Between two neighbouring cells a map is linear along the axis, so its largest value there is at
    the first or the last pixel. Pixels beyond the outermost cells repeat one value.

    Attributes:
        at: where the corner blocks lie between the cells, one value for each of `n`.
        starts: the first pixel of each block, int64 `[2 n - 1]`: of the `n` corner blocks, then
            of the blocks after each one but the last.
        stops: the end of each block; a block may be empty.
        joined: whether all pixels between a corner block and the next one lie between the same two
            cells, bool `[n - 1]`.
    """

    at: Interpolation
    starts: Tensor
    stops: Tensor
    joined: Tensor


_Game = Callable[[ImageMaps, Sequence[str], Tensor, _Axis, _Axis], Tensor]
"""From the tied corner blocks `[n, R, C]` to ties and hits, float64 `[n, 1 + K]`."""


def _scores(metric: str, image: ImageMaps, game: _Game) -> list[Score]:
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    names = list(image.regions)
    scored = [i for i, own in enumerate(classes) if own]
    results: dict[int, tuple[int, dict[str, float]]] = {}
    for stack in image.stacks(scored, 1):
        rows = _axis(image.rows(stack.layer, stack.maps.shape[1]), image.view_pixels[0])
        columns = _axis(image.columns(stack.layer, stack.maps.shape[2]), image.view_pixels[2])
        for part in _parts(stack, len(rows.at.before) * len(columns.at.before)):
            tied = _tied_corners(part, rows.at, columns.at)
            found = game(image, names, tied, rows, columns)
            found[part.undefined] = torch.nan
            for i, (ties, *hits) in zip(part.members, found.tolist(), strict=True):
                results[i] = 0 if ties != ties else int(ties), dict(zip(names, hits, strict=True))
    return [
        *_center_scores(metric, image),
        *(
            Score(
                metric,
                image.keys[i]._replace(class_name=name),
                image.upsampling,
                results[i][1][name],
                results[i][0],
                region=image.region,
            )
            for i in scored
            for name in classes[i]
        ),
    ]


def _center_scores(metric: str, image: ImageMaps) -> list[Score]:
    row, column = image.height // 2, image.width // 2
    return [
        Score(
            metric,
            MapKey(BASE, CENTER, "", role, NO_TARGET, name),
            image.upsampling,
            float(_near(image, name)[row, column]),
            region=image.region,
        )
        for name in image.regions
        for role in image.explained.get(name, ())
    ]


def _near(image: ImageMaps, name: str) -> Tensor:
    """The pixels less than 15 pixels from a class's region: bool `[H, W]`."""
    key = _near, name
    if key not in image.shared:
        region = image.regions[name].cpu().numpy()
        near = distance_transform_edt(~region) < TOLERANCE if region.any() else region
        image.shared[key] = torch.from_numpy(near).to(image.device)
    near_region: Tensor = image.shared[key]
    return near_region


def _near_before(image: ImageMaps, name: str) -> Tensor:
    """How many near pixels lie above and to the left of each corner: `[H + 1, W + 1]`."""
    key = _near_before, name
    if key not in image.shared:
        near = _near(image, name)
        counts = torch.zeros(near.shape[0] + 1, near.shape[1] + 1, device=near.device).double()
        counts[1:, 1:] = near.cumsum(0, dtype=torch.float64).cumsum(1)
        image.shared[key] = counts
    counts_before: Tensor = image.shared[key]
    return counts_before


def _axis(pixels: Interpolation, offset: int) -> _Axis:
    """The blocks of an axis whose first pixel is `offset` in the original image."""
    before, share = pixels.before.numpy(), pixels.share.numpy()
    length = len(before)
    # Equal neighbours are one position.
    new = np.flatnonzero(np.r_[True, (np.diff(before) != 0) | (np.diff(share) != 0)])
    ends = np.r_[new[1:], length]
    cell = before[new]
    first = np.r_[True, cell[1:] != cell[:-1]]
    last = np.r_[first[1:], True]
    corners = np.flatnonzero(first | last)
    start, stop = new[corners], ends[corners]
    return _Axis(
        Interpolation(
            pixels.cells, torch.from_numpy(cell[corners]), torch.from_numpy(share[start])
        ),
        torch.from_numpy(np.r_[start, stop[:-1]] + offset),
        torch.from_numpy(np.r_[stop, start[1:]] + offset),
        torch.from_numpy(cell[corners][1:] == cell[corners][:-1]),
    )


def _parts(stack: Stack, pixels_per_map: int) -> Iterator[Stack]:
    """The stack in parts that take little memory at `pixels_per_map` float64 each."""
    step = max(1, 2**20 // pixels_per_map)
    for start in range(0, len(stack.members), step):
        part = slice(start, start + step)
        yield Stack(stack.layer, stack.members[part], stack.maps[part], stack.undefined[part])


def _tied_corners(stack: Stack, rows: Interpolation, columns: Interpolation) -> Tensor:
    """Which corner blocks have the largest value of each map: bool `[n, R, C]`."""
    maps = torch.where(stack.undefined[:, None, None], 0.0, stack.maps)
    if stack.layer == INPUT:
        maps = smooth(maps, SMOOTHING * max(maps.shape[1:]))
    maps = maps.double()
    device = maps.device
    down, right = rows.share.to(device)[:, None], columns.share.to(device)
    values = maps[:, rows.before] * (1 - down) + maps[:, rows.after] * down
    values = values[:, :, columns.before] * (1 - right) + values[:, :, columns.after] * right
    largest = values.amax((1, 2), keepdim=True)
    return values >= largest - TIE * maps.abs().amax((1, 2), keepdim=True)


def _share_of_tied(
    image: ImageMaps, names: Sequence[str], tied: Tensor, rows: _Axis, columns: _Axis
) -> Tensor:
    blocks = _with_between(_with_between(tied, rows.joined).mT, columns.joined).mT
    starts, stops = (
        torch.meshgrid(down, right, indexing="ij")
        for down, right in ((rows.starts, columns.starts), (rows.stops, columns.stops))
    )
    areas = (stops[0] - starts[0]) * (stops[1] - starts[1])
    near = []
    for name in names:
        counts = _near_before(image, name)
        near.append(
            counts[stops] - counts[starts[0], stops[1]] - counts[stops[0], starts[1]]
            + counts[starts]
        )  # fmt: skip
    sizes = torch.stack([areas.double().to(tied.device), *near]).flatten(1)
    found = blocks.flatten(1).double() @ sizes.T
    return torch.cat([found[:, :1], found[:, 1:] / found[:, :1]], dim=1)


def _with_between(tied: Tensor, joined: Tensor) -> Tensor:
    """Corner blocks `[n, R, C]` and, below them, those between each two: `[n, 2 R - 1, C]`.

    Between two tied corners of the same cells all pixels are tied, and otherwise none is.
    """
    between = tied[:, :-1] & tied[:, 1:] & joined.to(tied.device)[:, None]
    return torch.cat([tied, between], dim=1)


def _first_of_tied(
    image: ImageMaps, names: Sequence[str], tied: Tensor, rows: _Axis, columns: _Axis
) -> Tensor:
    ties = _share_of_tied(image, (), tied, rows, columns)
    first = tied.flatten(1).double().argmax(1).cpu()  # of several ones the first
    row = rows.starts[first // tied.shape[2]].to(tied.device)
    column = columns.starts[first % tied.shape[2]].to(tied.device)
    return torch.cat([ties, *(_near(image, n)[row, column].double()[:, None] for n in names)], 1)
