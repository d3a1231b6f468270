"""A page of overlays as PNG. Each section of it has a photo and blocks of cells.

A cell is drawn at the size that it has on the page, in whole pixels, so it is never resampled. The
same page gives the same bytes.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.report.outlines import Outlines
from pipeline.report.overlay import Overlay, Pixels, colours, resized
from transforms.pixels import Size

LARGEST_SIDE = 6000
"""The most pixels that a page may have in width and in height."""

Cell = Callable[[Size], Overlay]
"""What a cell shows at a size (height, width) in pixels."""


@dataclass(frozen=True)
class Block:
    """A table of cells.

    Attributes:
        columns: the names above the columns.
        rows: the names beside the rows.
        cells: `cells[row][column]`.
        title: stands above the table; empty for none.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """One explained class.

    Attributes:
        title: stands above the section.
        photo: the photo.
        outlines: the objects that are drawn on the photo and named below it.
        captions: lines of text below those names.
        blocks: the tables of cells, beside the photo.
        across: how many blocks stand side by side.
    """

    title: str
    photo: Image.Image
    outlines: Sequence[Outlines]
    captions: Sequence[str]
    blocks: Sequence[Block]
    across: int = 1


@dataclass(frozen=True)
class Page:
    """A whole picture. All its photos have the same proportions.

    Attributes:
        title: stands at the top, in bold.
        subtitle: stands below the title.
        sections: from top to bottom.
    """

    title: str
    subtitle: str
    sections: Sequence[Section] = field(repr=False)


def draw(page: Page, cell_sides: Sequence[int]) -> bytes:
    """The page as PNG. The longer side of a cell is the largest of `cell_sides` (pixels) that fits.

    Raises:
        SettingsError: none of them fits.
    """
    for side in sorted(cell_sides, reverse=True):
        layout = _Layout(page, side)
        if max(layout.width, layout.height) <= LARGEST_SIDE:
            with matplotlib.style.context("default"):
                return _draw(page, layout)
    raise SettingsError(
        f"the picture would be {layout.width} × {layout.height} pixels, and a side may have at "
        f"most {LARGEST_SIDE}: choose fewer --methods or --layers, or another --role"
    )


_MARGIN = 24
_GAP = 4  # between cells
_SPACE = 20  # between blocks, and between the photo and the blocks
_LINE = 18  # of text
_HEAD = 58  # title and subtitle of the page
_SMALLEST_PHOTO = 220

_TITLE, _HEADING, _TEXT = 19, 14.5, 12.5  # pixels, since the page has 72 dots per inch
_INK, _FAINT, _PAPER = "#1c1c1e", "#6e6e73", "#ffffff"
_PALETTE = ("#35b6ff", "#ff6fae", "#b7e34b", "#b99bff", "#4de3c1", "#ff8a5c", "#f2e05a", "#c9c9c9")
_EXPLAINED = "#ffc02e"


class _Layout:
    """Where everything goes, in pixels from the page's upper left corner."""

    def __init__(self, page: Page, side: int) -> None:
        self.cell = _fitted(page.sections[0].photo, side)
        self.photo = _fitted(page.sections[0].photo, max(side, _SMALLEST_PHOTO))
        names = [name for s in page.sections for b in s.blocks for row in b.rows
                 for name in _wrapped(row)]  # fmt: skip
        self.gutter = max(_text_width(name, _TEXT) for name in names) + 10
        # A row must have room for a name of several lines, even if the photo is flat.
        lines = max(len(_wrapped(row)) for s in page.sections for b in s.blocks for row in b.rows)
        self.pitch = max(self.cell[0] + _GAP, lines * (_LINE - 3))
        self.blocks_left = _MARGIN + self.photo[1] + _SPACE
        self.heights = [self._section_height(section) for section in page.sections]
        self.tops = list(accumulate(self.heights, initial=_MARGIN + _HEAD))
        blocks = max(
            min(len(s.blocks), s.across) * (self.block_width(s.blocks[0]) + _SPACE)
            for s in page.sections
        )
        least = 720  # a page with one small column needs room for its titles, too
        self.width = max(self.blocks_left + blocks - _SPACE + _MARGIN, least)
        self.height = self.tops[-1] - _SPACE + _MARGIN

    def block_width(self, block: Block) -> int:
        return self.gutter + len(block.columns) * (self.cell[1] + _GAP) - _GAP

    def block_height(self, block: Block) -> int:
        return _heading_height(block) + len(block.rows) * self.pitch - _GAP

    def block_places(self, section: Section) -> Iterator[tuple[Block, int, int]]:
        """Each block of the section with its left edge, and its top below that of the first."""
        for i, block in enumerate(section.blocks):
            row, column = divmod(i, section.across)
            left = self.blocks_left + column * (self.block_width(block) + _SPACE)
            yield block, left, row * (self.block_height(block) + _SPACE)

    def _section_height(self, section: Section) -> int:
        bottoms = [top + self.block_height(block) for block, _, top in self.block_places(section)]
        legend = _LINE * (len(section.outlines) + len(section.captions))
        panel = _heading_height(section.blocks[0]) + self.photo[0] + 8 + legend
        return _LINE + 10 + max(*bottoms, panel) + _SPACE


def _heading_height(block: Block) -> int:
    return _LINE + 2 + (_LINE + 2 if block.title else 0)


def _draw(page: Page, layout: _Layout) -> bytes:
    canvas = np.full((layout.height, layout.width, 3), 255, dtype=np.uint8)
    figure = Figure((layout.width / 72, layout.height / 72), dpi=72, facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1), zorder=1)  # above the canvas
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
    axes.set_axis_off()
    scales = set()
    for section, top in zip(page.sections, layout.tops, strict=False):
        wide = layout.width - 2 * _MARGIN
        _write(axes, _MARGIN, top + _LINE // 2, section.title, _HEADING, room=wide, weight="bold")
        axes.plot([_MARGIN, layout.width - _MARGIN], [top - 6, top - 6], color="#e3e3e6", lw=1)
        top += _LINE + 10
        _draw_photo(axes, canvas, section, layout, top + _heading_height(section.blocks[0]))
        for block, left, below in layout.block_places(section):
            scales |= _draw_block(axes, canvas, block, layout, left, top + below)
    bars = _draw_scales(axes, canvas, scales)
    room = layout.width - 2 * _MARGIN - bars - _SPACE
    _write(axes, _MARGIN, _MARGIN + 8, page.title, _TITLE, room=room, weight="bold")
    _write(axes, _MARGIN, _MARGIN + 32, page.subtitle, _TEXT, room=room, color=_FAINT)
    figure.figimage(canvas, origin="upper")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def _draw_block(
    axes: Axes, canvas: Pixels, block: Block, layout: _Layout, left: int, top: int
) -> set[bool]:
    """Draw one block, and return which scales its cells use: signed, not signed, or both."""
    height, width = layout.cell
    cells_left = left + layout.gutter
    if block.title:
        room = layout.block_width(block) - layout.gutter
        _write(axes, cells_left, top + _LINE // 2, block.title, _HEADING, room=room)
        top += _LINE + 2
    for column, name in enumerate(block.columns):
        x = cells_left + column * (width + _GAP) + width / 2
        _write(axes, x, top + _LINE // 2, name, _TEXT, room=width, ha="center", color=_FAINT)
    top += _LINE + 2
    scales = set()
    for row, (name, cells) in enumerate(zip(block.rows, block.cells, strict=True)):
        y = top + row * layout.pitch
        lines = _wrapped(name)
        for i, line in enumerate(lines):
            middle = y + height / 2 + (i - (len(lines) - 1) / 2) * (_LINE - 3)
            _write(axes, cells_left - 10, middle, line, _TEXT, ha="right")
        for column, cell in enumerate(cells):
            x = cells_left + column * (width + _GAP)
            shown = cell((height, width))
            canvas[y : y + height, x : x + width] = shown.pixels
            if shown.note:
                _write_note(axes, x + width / 2, y + height / 2, shown.note, width)
            else:
                scales.add(shown.signed)
    return scales


def _draw_photo(axes: Axes, canvas: Pixels, section: Section, layout: _Layout, top: int) -> None:
    height, width = layout.photo
    canvas[top : top + height, _MARGIN : _MARGIN + width] = resized(section.photo, layout.photo)
    y = top + height + 8 + _LINE // 2
    handles = [
        (outlines, _EXPLAINED if outlines.explained else _PALETTE[min(i, len(_PALETTE) - 1)])
        for i, outlines in enumerate(section.outlines)
    ]
    for outlines, colour in handles:
        axes.plot([_MARGIN + 2, _MARGIN + 16], [y, y], color=colour, lw=4, solid_capstyle="butt")
        name = outlines.class_name + (f" × {outlines.count}" if outlines.count > 1 else "")
        _write(axes, _MARGIN + 24, y, name, _TEXT, room=width - 24)
        y += _LINE
    for caption in section.captions:
        _write(axes, _MARGIN, y, caption, _TEXT, room=width, color=_FAINT)
        y += _LINE
    # The explained class comes last, so nothing covers it.
    for outlines, colour in sorted(handles, key=lambda handle: handle[0].explained):
        for polygon in outlines.polygons:
            x, y_ = (polygon * (width, height) + (_MARGIN, top)).T
            thick = 2.2 if outlines.explained else 1.4
            halo = withStroke(linewidth=thick + 1.6, foreground="#000000", alpha=0.55)
            axes.add_line(Line2D(x, y_, color=colour, lw=thick, path_effects=[halo]))


def _draw_scales(axes: Axes, canvas: Pixels, scales: set[bool]) -> int:
    """Draw a colour bar for each scale in use, from the right, and return the width they take."""
    right = canvas.shape[1] - _MARGIN
    length, thickness, top = 150, 12, _MARGIN + 2
    ends = {False: ("lowest", "highest", 0.0), True: ("negative", "positive", -1.0)}
    taken = 0
    for signed in sorted(scales):
        low, high, start = ends[signed]
        left = right - taken - length
        bar = np.rint(colours(np.linspace(start, 1, length))).astype(np.uint8)
        canvas[top : top + thickness, left : left + length] = bar
        y = top + thickness + 12
        _write(axes, left, y, low, _TEXT, color=_FAINT)
        _write(axes, left + length, y, high, _TEXT, color=_FAINT, ha="right")
        taken += length + _SPACE
    return taken


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    size: float,
    *,
    room: int | None = None,
    color: str = _INK,
    weight: str = "normal",
    ha: str = "left",
) -> None:
    """Write one line of text with its middle at `y`, cut off at the end to fit `room` pixels."""
    shown = text
    while room is not None and len(shown) > 1 and _text_width(shown, size, weight) > room:
        shown = shown.removesuffix("…")[:-1] + "…"
    axes.text(
        *(x, y, shown),
        fontsize=size,
        color=color,
        weight=weight,
        ha=ha,
        va="center_baseline",
        parse_math=False,
    )


def _write_note(axes: Axes, x: float, y: float, note: str, width: int) -> None:
    """Write a note in the middle of a cell; in two lines if the cell is too narrow for one."""
    lines = [note] if _text_width(note, _TEXT) < width - 8 else note.split(": ")
    for i, line in enumerate(lines):
        middle = y + (i - (len(lines) - 1) / 2) * (_LINE - 3)
        _write(axes, x, middle, line, _TEXT, room=width, ha="center")


def _fitted(photo: Image.Image, side: int) -> Size:
    scale = side / max(photo.size)
    return max(1, round(photo.height * scale)), max(1, round(photo.width * scale))


def _wrapped(name: str) -> list[str]:
    """A method's name in lines: one per part of `rule:extract:aggregate`, or two, cut at a `_`."""
    if ":" in name:
        return name.split(":")
    if len(name) <= 16 or "_" not in name:
        return [name]
    cuts = [i + 1 for i, letter in enumerate(name) if letter == "_"]
    cut = min(cuts, key=lambda i: abs(i - len(name) / 2))
    return [name[:cut], name[cut:]]


@cache
def _text_width(text: str, size: float, weight: str = "normal") -> int:
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = RendererAgg(1, 1, 72).get_text_width_height_descent(text, font, ismath=False)
    return int(np.ceil(width))
