"""Where the largest pixels of a map are, and how many of them are near a class's region.

For the pointing games (`transforms.metrics.pointing_game`), and for pictures, which mark where a
map points.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.image_maps import ImageMaps, scores_to_find
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


class ArgMax(NamedTuple):
    """Where a map points.

    Attributes:
        row: the middle of the first of the largest pixels, in pixels from the top of the original
            image.
        column: likewise, from its left edge.
        ties: how many pixels share the largest value.
    """

    row: float
    column: float
    ties: int


def arg_max(image: ImageMaps) -> list[ArgMax | None]:
    """Where each map of the image points, as the pointing game sees it.

    None for a map that is constant or not finite.
    """
    found: list[ArgMax | None] = [None] * len(image.keys)
    for at_largest in _largest(image, range(len(image.keys))):
        tied, rows, columns = at_largest.tied, at_largest.rows, at_largest.columns
        number = len(at_largest.members)
        ties = _share_of_tied(image, (), number, tied, rows, columns)[:, 0].tolist()
        counts = tied.of_map.bincount(minlength=number)
        first = counts.cumsum(0) - counts
        places = zip(
            (rows.starts[tied.row[first]] + 0.5).tolist(),
            (columns.starts[tied.column[first]] + 0.5).tolist(),
            ties,
            strict=True,
        )
        for member, (y, x, count) in zip(at_largest.members, places, strict=True):
            found[member] = ArgMax(y, x, int(count))
    return found


def pointing_scores(metric: str, image: ImageMaps, *, first_alone: bool) -> list[Score]:
    """Which pixels are near a class's region: the image's centre, then the largest of each map.

    A map's score is the share of its largest pixels that are near; where `first_alone`, only the
    first of them in raster order counts. What is scored on which class is said at
    `transforms.metrics.pointing_game.pointing_game`.
    """
    game = _first_of_tied if first_alone else _share_of_tied
    to_find = scores_to_find(image, image.regions)
    names = list(image.regions)
    results: dict[int, list[float]] = {}
    for at_largest in _largest(image, to_find):
        tied, rows, columns = at_largest.tied, at_largest.rows, at_largest.columns
        found = game(image, names, len(at_largest.members), tied, rows, columns).tolist()
        results.update(zip(at_largest.members, found, strict=True))
    undefined = [0.0, *[math.nan] * len(names)]
    place = {name: 1 + number for number, name in enumerate(names)}
    scores = _center_scores(metric, image)
    for i, keys in to_find.items():
        result = results.get(i, undefined)
        for name, key in keys.items():
            value, ties = result[place[name]], int(result[0])
            scores.append(Score(metric, key, image.upsampling, value, ties, region=image.region))
    return scores


@dataclass(frozen=True)
class _Axis:
    """The pixels of one axis as blocks: those that can hold a maximum, then those between them.

    Between two neighbouring cells a map is linear along the axis, so its largest value there is at
    the first or the last pixel. Pixels beyond the outermost cells repeat one value.

    Attributes:
        at: where the `n` corner blocks lie between the cells.
        starts: the first pixel of each block, int64 `[2 n - 1]`: of the corner blocks, then of the
            blocks after each one but the last.
        stops: the end of each block; a block may be empty.
        joined: whether all pixels between a corner block and the next one lie between the same two
            cells, bool `[n - 1]`.
        of_cell: the corner blocks next to each cell, some of them twice, int64 `[cells, 4]`.
    """

    at: Interpolation
    starts: Tensor
    stops: Tensor
    joined: Tensor
    of_cell: Tensor


@dataclass(frozen=True)
class _Tied:
    """The corner blocks that hold the largest value of their map.

    Attributes:
        of_map: which map, int64 `[k]`, ascending.
        row: which row of blocks, int64 `[k]`, ascending within a map.
        column: which column of blocks, int64 `[k]`, ascending within a row.
    """

    of_map: Tensor
    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class _Largest:
    """The largest pixels of some maps of one layer and shape.

    Attributes:
        members: which maps of the image they are; undefined ones are left out.
        tied: the corner blocks with the largest value of each.
        rows, columns: the blocks of the two axes.
    """

    members: Sequence[int]
    tied: _Tied
    rows: _Axis
    columns: _Axis


@dataclass(frozen=True)
class _Near:
    """The pixels less than 15 pixels from a region, all within one rectangle.

    Attributes:
        top: the first row of the rectangle.
        left: its first column.
        before: how many of the pixels lie above and to the left of each corner of the rectangle's
            pixels, int32 `[height + 1, width + 1]`.
    """

    top: int
    left: int
    before: Tensor

    def count(self, y0: Tensor, y1: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        """How many of them lie in blocks, whose sides are half-open: as many as blocks."""
        height, width = self.before.shape
        y0, y1 = ((y - self.top).clamp(0, height - 1) for y in (y0, y1))
        x0, x1 = ((x - self.left).clamp(0, width - 1) for x in (x0, x1))
        before = self.before
        return before[y1, x1] - before[y0, x1] - before[y1, x0] + before[y0, x0]


def _largest(image: ImageMaps, indices: Iterable[int]) -> Iterator[_Largest]:
    """The largest pixels of the maps of those indices, in the original image."""
    for stack in image.stacks(indices, 1):
        kept = ~stack.undefined
        maps = stack.maps[kept]
        if stack.layer == INPUT:
            maps = smooth(maps, SMOOTHING * max(maps.shape[1:]))
        rows = _axis(image, image.rows(stack.layer, maps.shape[1]), image.view_pixels[0])
        columns = _axis(image, image.columns(stack.layer, maps.shape[2]), image.view_pixels[2])
        members = [i for i, keep in zip(stack.members, kept.tolist(), strict=True) if keep]
        yield _Largest(members, _tied_blocks(maps, rows, columns), rows, columns)


def _center_scores(metric: str, image: ImageMaps) -> list[Score]:
    row, column = (torch.tensor(side // 2) for side in (image.height, image.width))
    return [
        Score(
            metric,
            MapKey(BASE, CENTER, "", role, NO_TARGET, name),
            image.upsampling,
            float(_near(image, name).count(row, row + 1, column, column + 1)),
            region=image.region,
        )
        for name in image.regions
        for role in image.explained.get(name, ())
    ]


def _near(image: ImageMaps, name: str) -> _Near:
    """The pixels less than 15 pixels from a class's region."""
    key = _near, name
    if key not in image.shared:
        region = image.regions[name].cpu().numpy()
        rows, columns = _reach(np.any(region, axis=1)), _reach(np.any(region, axis=0))
        near = _widened(region[rows, columns])
        before = np.zeros((near.shape[0] + 1, near.shape[1] + 1), dtype=np.int32)
        np.cumsum(near.cumsum(axis=1, dtype=np.int32), axis=0, out=before[1:, 1:])
        counts = torch.from_numpy(before).to(image.device)
        image.shared[key] = _Near(rows.start, columns.start, counts)
    found: _Near = image.shared[key]
    return found


def _reach(flags: NDArray[np.bool_]) -> slice:
    """The places less than `TOLERANCE` from the first, the last or any True between them."""
    places = np.flatnonzero(flags)
    if not len(places):
        return slice(0, 0)
    return slice(max(0, int(places[0]) + 1 - TOLERANCE), int(places[-1]) + TOLERANCE)


def _widened(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels less than `TOLERANCE` from a True pixel of region `[H, W]`.

    The distance along the row is known for every pixel, so one comparison per row offset is enough:
    ten times as fast as a distance transform.
    """
    height, width = region.shape
    columns = np.arange(width, dtype=np.int32)
    before = np.maximum.accumulate(np.where(region, columns, -TOLERANCE), axis=1)
    after = np.where(region, columns, width - 1 + TOLERANCE)[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    along = np.minimum(np.minimum(columns - before, after - columns), TOLERANCE).astype(np.uint8)
    near = np.zeros_like(region)
    for down in range(TOLERANCE):
        reach = math.isqrt(TOLERANCE**2 - 1 - down**2)
        hits = along <= reach
        near[down:] |= hits[: max(0, height - down)]
        near[: max(0, height - down)] |= hits[down:]
    return near


def _axis(image: ImageMaps, pixels: Interpolation, offset: int) -> _Axis:
    """The blocks of an axis whose first pixel is `offset` in the original image."""
    before, share = pixels.before.numpy(), pixels.share.numpy()
    # Equal neighbours are one position.
    new = np.flatnonzero(np.r_[True, (np.diff(before) != 0) | (np.diff(share) != 0)])
    ends = np.r_[new[1:], len(before)]
    cell = before[new]
    first = np.r_[True, cell[1:] != cell[:-1]]
    last = np.r_[first[1:], True]
    corners = np.flatnonzero(first | last)
    start, stop, cell = new[corners], ends[corners], cell[corners]
    # A corner block between cells i and i + 1 is next to both.
    cells = np.arange(pixels.cells)[:, None]
    lowest, highest = (
        np.searchsorted(cell, cells - 1),
        np.searchsorted(cell, cells, side="right") - 1,
    )
    of_cell = np.minimum(lowest + np.arange(4), np.maximum(lowest, highest))

    def here(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(image.device)

    return _Axis(
        Interpolation(pixels.cells, here(cell), here(share[start])),
        here(np.r_[start, stop[:-1]] + offset),
        here(np.r_[stop, start[1:]] + offset),
        here(cell[1:] == cell[:-1]),
        here(np.minimum(of_cell, len(cell) - 1)),
    )


def _tied_blocks(maps: Tensor, rows: _Axis, columns: _Axis) -> _Tied:
    """The corner blocks with the largest value of each of maps `[n, h, w]`, none constant."""
    number, _, width = maps.shape
    cells = maps.flatten(1)
    magnitude = cells.amax(1).maximum(-cells.amin(1)).double()
    # No pixel is larger than the cells around it, so only cells matter that reach what the blocks
    # around the largest cell have.
    cell = _largest_cell(cells)
    _, _, around = _around(maps, torch.arange(number, device=maps.device), cell, rows, columns)
    least = around.amax(1) - TIE * magnitude
    of_map, cell = _cells_from(cells, least.float())
    row, column, values = _around(maps, of_map, cell, rows, columns)
    largest = torch.full_like(magnitude, -math.inf).scatter_reduce(
        0, of_map, values.amax(1), "amax"
    )
    tied = values >= (largest - TIE * magnitude)[of_map][:, None]
    height, width = len(rows.at.before), len(columns.at.before)
    blocks = (of_map[:, None] * height + row) * width + column
    block = blocks[tied].unique()
    return _Tied(block // (height * width), block // width % height, block % width)


def _largest_cell(cells: Tensor) -> Tensor:
    """The place of a largest value of each row of `[n, L]`: int64 `[n]`."""
    if cells.device.type == "cpu":  # a tenth of the time that torch takes
        return torch.from_numpy(cells.numpy().argmax(axis=1))
    return cells.argmax(1)


def _cells_from(cells: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The row and the place of each value of `[n, L]` that is at least `least` `[n]`."""
    if cells.device.type == "cpu":  # a tenth of the time that torch takes
        places = np.flatnonzero(cells.numpy() >= least.numpy()[:, None])
        of_map, cell = np.divmod(places, cells.shape[1])
        return torch.from_numpy(of_map), torch.from_numpy(cell)
    of_map_and_cell = (cells >= least[:, None]).nonzero()
    return of_map_and_cell[:, 0], of_map_and_cell[:, 1]


def _around(
    maps: Tensor, of_map: Tensor, cell: Tensor, rows: _Axis, columns: _Axis
) -> tuple[Tensor, Tensor, Tensor]:
    """The corner blocks next to cells (linear indices) of maps: rows, columns, values `[k, 16]`."""
    width = maps.shape[2]
    row = rows.of_cell[cell // width].repeat_interleave(4, 1)
    column = columns.of_cell[cell % width].repeat(1, 4)
    down, right = rows.at.share[row], columns.at.share[column]
    one = of_map[:, None]
    upper, lower = rows.at.before[row], rows.at.after[row]
    left, other = columns.at.before[column], columns.at.after[column]
    above = maps[one, upper, left] * (1 - right) + maps[one, upper, other] * right
    below = maps[one, lower, left] * (1 - right) + maps[one, lower, other] * right
    return row, column, above * (1 - down) + below * down


def _share_of_tied(
    image: ImageMaps, names: Sequence[str], number: int, tied: _Tied, rows: _Axis, columns: _Axis
) -> Tensor:
    """The ties of each map, and the share of them near each class: float64 `[number, 1 + K]`."""
    counts = tied.of_map.bincount(minlength=number)
    found = torch.zeros(number, 1 + len(names), dtype=torch.float64, device=image.device)
    alone = counts[tied.of_map] == 1
    blocks = tied.of_map, tied.row, tied.column
    parts = [tuple(t[alone] for t in blocks)]
    several = (t[~alone].split(counts[counts > 1].tolist()) for t in blocks)
    for of_map, row, column in zip(*several, strict=True):
        row, column = _with_between(row, column, rows, columns)
        parts.append((of_map[0].expand(len(row)), row, column))
    of_map, row, column = (torch.cat(part) for part in zip(*parts, strict=True))
    found.index_add_(0, of_map, _pixels(image, names, rows, columns, row, column))
    found[:, 1:] /= found[:, :1]
    return found


def _first_of_tied(
    image: ImageMaps, names: Sequence[str], number: int, tied: _Tied, rows: _Axis, columns: _Axis
) -> Tensor:
    """The ties of each map, and whether the first in raster order is near: as `_share_of_tied`."""
    ties = _share_of_tied(image, (), number, tied, rows, columns)
    counts = tied.of_map.bincount(minlength=number)
    first = counts.cumsum(0) - counts
    row, column = rows.starts[tied.row[first]], columns.starts[tied.column[first]]
    hits = (_near(image, n).count(row, row + 1, column, column + 1)[:, None] for n in names)
    return torch.cat([ties, *hits], 1)


def _with_between(
    row: Tensor, column: Tensor, rows: _Axis, columns: _Axis
) -> tuple[Tensor, Tensor]:
    """The tied corner blocks of one map, and the blocks between them.

    Between two tied corners of the same cells all pixels are tied, and otherwise none is.
    """
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) + 1 - top, int(column.max()) + 1 - left
    tied = torch.zeros(height, width, dtype=torch.bool, device=row.device)
    tied[row - top, column - left] = True
    joined = rows.joined[top : top + height - 1], columns.joined[left : left + width - 1]
    tied = torch.cat([tied, tied[:-1] & tied[1:] & joined[0][:, None]])
    tied = torch.cat([tied, tied[:, :-1] & tied[:, 1:] & joined[1]], dim=1)
    # The blocks between corners follow all corners.
    row, column = tied.nonzero().unbind(1)
    return (
        torch.where(row < height, top + row, len(rows.at.before) + top + row - height),
        torch.where(column < width, left + column, len(columns.at.before) + left + column - width),
    )


def _pixels(
    image: ImageMaps,
    names: Sequence[str],
    rows: _Axis,
    columns: _Axis,
    row: Tensor,
    column: Tensor,
) -> Tensor:
    """How many pixels blocks have, and how many of them are near each class: `[k, 1 + K]`."""
    y0, y1, x0, x1 = (
        rows.starts[row],
        rows.stops[row],
        columns.starts[column],
        columns.stops[column],
    )
    near = [_near(image, name).count(y0, y1, x0, x1) for name in names]
    return torch.stack([(y1 - y0) * (x1 - x0), *near], dim=1).double()
