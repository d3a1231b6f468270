"""A page of overlays as a picture. Each section of it has a photo and blocks of cells.

A cell is drawn at the size that it has on the page, in whole pixels, so it is never resampled. The
same page gives the same bytes.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.report.fonts import MISSING, drawn, families, lacking
from pipeline.report.outlines import Outlines
from pipeline.report.overlay import Overlay, Pixels, colours, resized
from transforms.pixels import Size

LARGEST_SIDE = 6000
"""The most pixels that a page may have in width and in height."""

HANDY_SIDE = 2400
"""The most pixels of a side of a page that is looked at as a whole."""


class Dot(NamedTuple):
    """Where a map points.

    Attributes:
        x, y: as shares of the photo's sides.
        is_tied: whether other pixels have the same value; then it is a ring.
    """

    x: float
    y: float
    is_tied: bool


@dataclass(frozen=True)
class Cell:
    """One cell of a block.

    Attributes:
        overlay: what it shows at a size (height, width) in pixels.
        polygons: outlines on it, as in `Outlines`.
        dot: where its map points; None: nowhere.
        captions: lines of text below it.
    """

    overlay: Callable[[Size], Overlay]
    polygons: Sequence[NDArray[np.floating]] = ()
    dot: Dot | None = None
    captions: Sequence[str] = ()


@dataclass(frozen=True)
class Block:
    """A table of cells.

    Attributes:
        columns: the names above the columns.
        rows: the names beside the rows.
        cells: `cells[row][column]`.
        title: stands above the table; empty for none.
        with_scales: whether each cell has a bar of its colours below it, with the values at its
            ends.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    title: str = ""
    with_scales: bool = False


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
        notes: lines of text below the subtitle.
    """

    title: str
    subtitle: str
    sections: Sequence[Section] = field(repr=False)
    notes: Sequence[str] = ()


def draw(page: Page, cell_sides: Sequence[int], suffix: str = "png") -> bytes:
    """The page as a file with that suffix, one of `PICTURE_SUFFIXES`.

    The longer side of a cell is the largest of `cell_sides` (pixels) with which the page is handy,
    and otherwise the smallest.

    Raises:
        SettingsError: the page would be too large.
    """
    if letters := {letter for text in _texts(page) for letter in lacking(text)}:
        what = f"{len(letters)} characters of names are in no font of this machine"
        page = replace(page, notes=(*page.notes, f"{what}, and stand as {MISSING}"))
    sides = sorted(cell_sides, reverse=True)
    layouts = [_Layout(page, side) for side in sides]
    handy = (layout for layout in layouts if layout.longest <= HANDY_SIDE)
    layout = next(handy, layouts[-1])
    if layout.longest > LARGEST_SIDE:
        raise SettingsError(
            f"the picture would be {layout.width} × {layout.height} pixels, and a side may have at "
            f"most {LARGEST_SIDE}: choose fewer --methods, --layers or --classes, or another --role"
        )
    # Without a salt and with no date, the same page gives the same bytes.
    with matplotlib.style.context("default"), matplotlib.rc_context({"svg.hashsalt": "backlight"}):
        return _PICTURES[suffix](_draw(page, layout))


def page_size(page: Page, cell_side: int) -> Size:
    """The (height, width) of the page in pixels with cells of that longer side."""
    layout = _Layout(page, cell_side)
    return layout.height, layout.width


def _raster(format_name: str, **options: Any) -> Callable[[Figure], bytes]:
    def save(figure: Figure) -> bytes:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        file = io.BytesIO()
        picture.save(file, format_name, **options)
        return file.getvalue()

    return save


def _vector(format_name: str, metadata: Mapping[str, None]) -> Callable[[Figure], bytes]:
    def save(figure: Figure) -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format=format_name, metadata=dict(metadata))
        return file.getvalue()

    return save


_JPEG = _raster("JPEG", quality=92, subsampling=0)
_PICTURES: dict[str, Callable[[Figure], bytes]] = {
    "png": _raster("PNG"),
    "jpg": _JPEG,
    "jpeg": _JPEG,
    "webp": _raster("WEBP", quality=92),
    "pdf": _vector("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
    "svg": _vector("svg", {"Date": None, "Creator": None}),
}

PICTURE_SUFFIXES = tuple(_PICTURES)
"""The kinds of files that a page can be drawn to."""

RASTER_SUFFIXES = ("png", "jpg", "jpeg", "webp")
"""Those of them that are pixels."""

_MARGIN = 24
_GAP = 4  # between cells
_SPACE = 20  # between blocks, and between the photo and the blocks
_LINE = 18  # of text
_CAPTION = 15  # of text below a cell
_SCALE = 22  # bar of colours below a cell, with its numbers
_HEAD = 58  # title and subtitle of the page
_SMALLEST_PHOTO = 220

_TITLE, _HEADING, _TEXT, _SMALL = 19, 14.5, 12.5, 11  # pixels, since the page has 72 dots per inch
_INK, _FAINT, _PAPER = "#1c1c1e", "#6e6e73", "#ffffff"
_PALETTE = ("#35b6ff", "#ff6fae", "#b7e34b", "#b99bff", "#4de3c1", "#ff8a5c", "#f2e05a", "#c9c9c9")
_EXPLAINED = "#ffc02e"
_DOT = "#e8112d"


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
        self.below = max(
            len(cell.captions) * _CAPTION + (_SCALE if b.with_scales else 0)
            for s in page.sections for b in s.blocks for row in b.cells for cell in row
        )  # fmt: skip
        self.pitch = max(self.cell[0] + self.below + _GAP, lines * (_LINE - 3))
        self.blocks_left = _MARGIN + self.photo[1] + _SPACE
        self.heights = [self._section_height(section) for section in page.sections]
        head = _HEAD + _LINE * len(page.notes)
        self.tops = list(accumulate(self.heights, initial=_MARGIN + head))
        blocks = max(
            min(len(s.blocks), s.across) * (self.block_width(s.blocks[0]) + _SPACE)
            for s in page.sections
        )
        least = 720  # a page with one small column needs room for its titles, too
        self.width = max(self.blocks_left + blocks - _SPACE + _MARGIN, least)
        self.height = self.tops[-1] - _SPACE + _MARGIN

    @property
    def longest(self) -> int:
        return max(self.width, self.height)

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


def _texts(page: Page) -> Iterator[str]:
    """The texts of a page, which may have names in them."""
    yield from (page.title, page.subtitle, *page.notes)
    for section in page.sections:
        yield from (
            section.title,
            *section.captions,
            *(each.class_name for each in section.outlines),
        )
        for block in section.blocks:
            yield from (block.title, *block.columns, *block.rows)
            yield from (text for row in block.cells for cell in row for text in cell.captions)


def _heading_height(block: Block) -> int:
    return _head_lines(block) * (_LINE - 3) + 5 + (_LINE + 2 if block.title else 0)


def _head_lines(block: Block) -> int:
    return max(len(_wrapped(name)) for name in block.columns)


def _draw(page: Page, layout: _Layout) -> Figure:
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
    for i, line in enumerate(page.notes):
        y = _MARGIN + 32 + (i + 1) * _LINE
        _write(axes, _MARGIN, y, line, _TEXT, room=layout.width - 2 * _MARGIN, color=_FAINT)
    figure.figimage(canvas, origin="upper")
    return figure


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
    lowest = _head_lines(block)
    for column, name in enumerate(block.columns):
        x = cells_left + column * (width + _GAP) + width / 2
        lines = _wrapped(name)
        for i, line in enumerate(lines):
            y = top + _LINE // 2 + (lowest - len(lines) + i) * (_LINE - 3)
            _write(axes, x, y, line, _TEXT, room=width, ha="center", color=_FAINT)
    top += lowest * (_LINE - 3) + 5
    scales = set()
    for row, (name, cells) in enumerate(zip(block.rows, block.cells, strict=True)):
        y = top + row * layout.pitch
        lines = _wrapped(name)
        for i, line in enumerate(lines):
            middle = y + height / 2 + (i - (len(lines) - 1) / 2) * (_LINE - 3)
            _write(axes, cells_left - 10, middle, line, _TEXT, ha="right")
        for column, cell in enumerate(cells):
            x = cells_left + column * (width + _GAP)
            shown = cell.overlay((height, width))
            canvas[y : y + height, x : x + width] = shown.pixels
            below = y + height
            if shown.note:
                _write_note(axes, x + width / 2, y + height / 2, shown.note, width)
            else:
                scales.add(shown.signed)
                _draw_outlines(axes, cell.polygons, _EXPLAINED, 1.3, (x, y, width, height))
                if cell.dot:
                    _draw_dot(axes, cell.dot, (x, y, width, height))
                if block.with_scales:
                    _draw_own_scale(axes, canvas, shown, x, below + 3, width)
                    below += _SCALE
            for i, caption in enumerate(cell.captions):
                middle = below + (i + 0.5) * _CAPTION + 1
                _write(axes, x + width / 2, middle, caption, _SMALL, room=width, ha="center")
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
        thick = 2.2 if outlines.explained else 1.4
        _draw_outlines(axes, outlines.polygons, colour, thick, (_MARGIN, top, width, height))


def _draw_outlines(
    axes: Axes,
    polygons: Sequence[NDArray[np.floating]],
    colour: str,
    thick: float,
    place: tuple[int, int, int, int],
) -> None:
    """Draw outlines with a dark halo in a rectangle (left, top, width, height) of the page."""
    left, top, width, height = place
    halo = withStroke(linewidth=thick + 1.6, foreground="#000000", alpha=0.55)
    for polygon in polygons:
        x, y = (polygon * (width, height) + (left, top)).T
        axes.add_line(Line2D(x, y, color=colour, lw=thick, path_effects=[halo]))


def _draw_dot(axes: Axes, dot: Dot, place: tuple[int, int, int, int]) -> None:
    """Draw a dot, or a ring, that is seen on any ground, inside of a rectangle of the page."""
    left, top, width, height = place
    reach = min(6, width / 2, height / 2)
    x = left + np.clip(dot.x * width, reach, width - reach)
    y = top + np.clip(dot.y * height, reach, height - reach)
    halo = withStroke(linewidth=4, foreground="#000000")
    axes.add_patch(
        Circle(
            (x, y),
            4,
            facecolor="none" if dot.is_tied else _DOT,
            edgecolor="#ffffff",
            lw=1.8,
            path_effects=[halo],
            zorder=4,  # above outlines
        )
    )


def _draw_own_scale(
    axes: Axes, canvas: Pixels, shown: Overlay, left: int, top: int, width: int
) -> None:
    """Draw the colours of one cell with the values at their ends."""
    low, high = shown.range
    start = -1.0 if shown.signed else 0.0
    bar = np.rint(colours(np.linspace(start, 1, width))).astype(np.uint8)
    canvas[top : top + 5, left : left + width] = bar
    y = top + 5 + 8
    room = width // 2 - 4
    _write(axes, left + 2, y, f"{low:.2g}", _SMALL, room=room, color=_FAINT)
    _write(axes, left + width - 2, y, f"{high:.2g}", _SMALL, room=room, color=_FAINT, ha="right")


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
    shown = drawn(text)
    while room is not None and len(shown) > 1 and _text_width(shown, size, weight) > room:
        shown = shown.removesuffix("…")[:-1] + "…"
    axes.text(
        *(x, y, shown),
        fontsize=size,
        fontfamily=families(),
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
    """A name in lines: one per part of `rule:extract:aggregate`, long ones cut at a `_` or `.`."""
    if ":" in name:
        return name.split(":")
    return [part for line in name.split("\n") for part in _halves(line)]


def _halves(line: str) -> list[str]:
    cuts = [i + 1 for i, letter in enumerate(line) if letter in "_."]
    if len(line) <= 16 or not cuts:
        return [line]
    cut = min(cuts, key=lambda i: abs(i - len(line) / 2))
    return [line[:cut], line[cut:]]


@cache
def _text_width(text: str, size: float, weight: str = "normal") -> int:
    font = FontProperties(family=families(), size=size, weight=weight)
    renderer = RendererAgg(1, 1, 72)
    width, _, _ = renderer.get_text_width_height_descent(drawn(text), font, ismath=False)
    return int(np.ceil(width))
