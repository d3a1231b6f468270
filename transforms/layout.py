"""How the output of a layer is laid out: where the rows, columns and channels of its map are.

Everything that explains a layer works on `[B, C, h, w]`. A layout brings an output, and the
gradient there, into that form. `transforms.layout_probe` finds it from the network. Importing this
module loads no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.names import unknown_name
from transforms.pixels import Size

if TYPE_CHECKING:
    from torch import Tensor


class LayoutError(ValueError):
    """Not a layout, or an output that does not have the layout that its layer was said to have."""


@dataclass(frozen=True)
class ChannelsFirst:
    """`[B, C, h, w]`."""

    def __str__(self) -> str:
        return "channels_first"

    @property
    def shape(self) -> str:
        """The shape of such an output, in words."""
        return "[B, C, h, w]"

    @property
    def dimensions(self) -> int:
        """How many dimensions such an output has."""
        return 4

    @property
    def left_out(self) -> int:
        """How many tokens are no part of the map."""
        return 0

    def to_map(self, output: Tensor, input_size: Size) -> Tensor:
        """The output as `[B, C, h, w]`, given the size of the network's input.

        Raises:
            LayoutError: it has another number of dimensions.
        """
        _check_dimensions(output, self)
        return output


@dataclass(frozen=True)
class ChannelsLast:
    """`[B, h, w, C]`."""

    def __str__(self) -> str:
        return "channels_last"

    @property
    def shape(self) -> str:
        """The shape of such an output, in words."""
        return "[B, h, w, C]"

    @property
    def dimensions(self) -> int:
        """How many dimensions such an output has."""
        return 4

    @property
    def left_out(self) -> int:
        """How many tokens are no part of the map."""
        return 0

    def to_map(self, output: Tensor, input_size: Size) -> Tensor:
        """The output as `[B, C, h, w]`, given the size of the network's input.

        Raises:
            LayoutError: it has another number of dimensions.
        """
        _check_dimensions(output, self)
        return output.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Tokens:
    """`[B, tokens, C]`: the cells of a grid row by row, with other tokens before or after them.

    Attributes:
        patch: pixels of the network's input from one token to the next (down, across).
        leading: how many tokens before the grid are no cells of it, such as class and register
            tokens. They are left out of the map.
        trailing: how many tokens after the grid are left out likewise.
    """

    patch: tuple[float, float]
    leading: int = 0
    trailing: int = 0

    def __str__(self) -> str:
        down, across = self.patch
        patch = f"{down:.12g}" if down == across else f"{down:.12g}x{across:.12g}"
        leading = f",leading={self.leading}" if self.leading else ""
        trailing = f",trailing={self.trailing}" if self.trailing else ""
        return f"tokens(patch={patch}{leading}{trailing})"

    @property
    def shape(self) -> str:
        """The shape of such an output, in words."""
        return "[B, tokens, C]"

    @property
    def dimensions(self) -> int:
        """How many dimensions such an output has."""
        return 3

    @property
    def left_out(self) -> int:
        """How many tokens are no part of the map."""
        return self.leading + self.trailing

    def grid(self, tokens: int, input_size: Size) -> Size:
        """Rows and columns of the grid in so many tokens, for an input of this size.

        A patch that reaches over the border either counts on both axes, or on none.

        Raises:
            LayoutError: the number of tokens does not fit the size.
        """
        rows, columns = (side / patch for side, patch in zip(input_size, self.patch, strict=True))
        near = 1e-6
        floor = math.floor(rows + near), math.floor(columns + near)
        ceiling = math.ceil(rows - near), math.ceil(columns - near)
        for grid in (floor, ceiling):
            if grid[0] * grid[1] + self.left_out == tokens:
                return grid
        height, width = input_size
        raise LayoutError(
            f"its {tokens} tokens are not {self.left_out} and a grid of {floor[0]} × {floor[1]}, "
            f"as {self} says for an input of {height} × {width} pixels"
        )

    def to_map(self, output: Tensor, input_size: Size) -> Tensor:
        """The tokens of the grid as `[B, C, h, w]`, given the size of the network's input.

        Raises:
            LayoutError: it has another number of dimensions or of tokens.
        """
        _check_dimensions(output, self)
        tokens = output.shape[1]
        grid = self.grid(tokens, input_size)
        cells = output[:, self.leading : tokens - self.trailing]
        return cells.transpose(1, 2).unflatten(2, grid)


Layout = ChannelsFirst | ChannelsLast | Tokens

VALID = ("channels_first", "channels_last", "tokens(patch=16,leading=1,trailing=0)")
"""How layouts are written."""


def parse_layout(text: str) -> Layout:
    """The layout that `str` of it gives.

    Raises:
        LayoutError: it is none.
    """
    for plain in (ChannelsFirst(), ChannelsLast()):
        if text == str(plain):
            return plain
    if match := re.fullmatch(_TOKENS, text.replace(" ", "")):
        down = float(match[1])
        across = float(match[2] or down)
        if down > 0 and across > 0:
            return Tokens((down, across), int(match[3] or 0), int(match[4] or 0))
    raise LayoutError(unknown_name("layout", text, VALID))


def parse_layouts(entries: Iterable[str]) -> dict[str, Layout]:
    """The layouts of `LAYER=LAYOUT` entries, by layer.

    Raises:
        LayoutError: an entry is not of that form, or a layer is given twice.
    """
    layouts: dict[str, Layout] = {}
    for entry in entries:
        layer, equals, text = entry.partition("=")
        if not equals or not layer:
            raise LayoutError(f"layout {entry!r} is not LAYER=LAYOUT; layouts: {', '.join(VALID)}")
        if layer in layouts:
            raise LayoutError(f"layout of layer {layer!r} given twice")
        layouts[layer] = parse_layout(text)
    return layouts


_NUMBER = r"(\d+(?:\.\d+)?)"
_TOKENS = rf"tokens\(patch={_NUMBER}(?:x{_NUMBER})?(?:,leading=(\d+))?(?:,trailing=(\d+))?\)"


def _check_dimensions(output: Tensor, layout: Layout) -> None:
    if output.dim() != layout.dimensions:
        raise LayoutError(f"it gives {list(output.shape)}, not {layout.shape} as {layout} says")
