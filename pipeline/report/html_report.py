"""The body of `report`: runs as one HTML file that needs nothing else.

    report("out").path                    # out/report.html

The page is a Jinja2 template. It has the rows of `pipeline.report.page_data`, Vega-Lite, which
draws the plots of `pipeline.report.plots` from them, and a script that filters and sorts tables.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert
from altair import SCHEMA_VERSION
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline import files
from pipeline.compare import in_words
from pipeline.notes import Note
from pipeline.report.findings import findings_of
from pipeline.report.gallery import LIMIT_BYTES, GallerySection, gallery_section
from pipeline.report.matrices import matrices
from pipeline.report.page_data import PageData, columns_of, page_data
from pipeline.report.page_tables import page_tables
from pipeline.report.plots import plots, series
from pipeline.report.reported_run import Compared, Reported, comparisons, read_runs
from pipeline.report.run_summary import run_summary
from pipeline.store import names


@dataclass(frozen=True)
class WrittenReport:
    """What was written.

    Attributes:
        path: of the file.
        bytes: its size.
        notes: what was left out of the page, or could not be shown, in words.
    """

    path: str
    bytes: int
    notes: tuple[str, ...]


def report(
    out: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]] = (),
    *,
    output: str | os.PathLike[str] | None = None,
    gallery_bytes: int = LIMIT_BYTES,
    on_step: Callable[[str], None] = lambda step: None,
    on_start: Callable[[int], None] = lambda images: None,
    on_image: Callable[[], None] = lambda: None,
) -> WrittenReport:
    """Write the report of the run in `out`, or of this run and `others` side by side.

    It goes to `output`, by default to report.html in `out`.

    Each run has a gallery; together they take at most `gallery_bytes`, and 0 leaves them out.
    `on_step` is told what is being done, `on_start` how many images a gallery has, and `on_image`
    is called after each.

    Raises:
        SettingsError: one is not an output of `backlight generate`, or has no committed shard.
        OSError: the file cannot be written.
    """
    out = os.fspath(out)
    output = None if output is None else os.fspath(output)
    on_step("reading the runs")
    runs = read_runs([out, *map(str, others)])
    on_step("comparing")
    compared = comparisons(runs)
    on_step("reading the scores")
    data = page_data(runs, compared)
    galleries = []
    if gallery_bytes:
        on_step("making the gallery")
        galleries = _galleries(runs, gallery_bytes, on_start, on_image)
    on_step("writing")
    page = _page(runs, compared, data, galleries).encode()
    path = output or files.join(out, names.REPORT)
    if output is None or files.is_object_store(output):
        folder, _, name = path.rpartition("/")
        with files.replacing(folder, name) as file:
            file.write(page)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(page)
    notes = [note for told in data.left_out.values() for note in told]
    notes += [f"gallery: {gallery.note}" for gallery in galleries if gallery.note]
    return WrittenReport(path, len(page), tuple(notes))


def _galleries(
    runs: Sequence[Reported],
    limit_bytes: int,
    on_start: Callable[[int], None],
    on_image: Callable[[], None],
) -> list[GallerySection]:
    return [
        gallery_section(
            run.dataset,
            limit_bytes=limit_bytes // len(runs),
            anchor=f"gallery-{i}" if i else "gallery",
            heading="Gallery" if len(runs) == 1 else f"Gallery: {run.name}",
            on_start=on_start,
            on_image=on_image,
        )
        for i, run in enumerate(runs)
    ]


def _page(
    runs: Sequence[Reported],
    compared: Sequence[Compared],
    data: PageData,
    galleries: Sequence[GallerySection],
) -> str:
    drawn, tables = plots(runs, data), page_tables(data)
    shared = {plot.rows for plot in drawn if plot.spec} | {table.rows for table in tables}
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=in_words([run.name for run in runs]),
            version=version("backlight"),
            runs=[(run, run_summary(run), _notes(run)) for run in runs],
            findings=[findings_of(each, runs) for each in compared],
            plots=drawn,
            series=series(runs),
            matrices=list(matrices(data.statistics)),
            tables=tables,
            left_out=data.left_out,
            of_script={
                "rows": {name: columns_of(getattr(data, name)) for name in sorted(shared)},
                "plots": [asdict(plot) for plot in drawn if plot.spec],
                "tables": [asdict(table) for table in tables],
            },
            vega=_vega(),
            galleries=galleries,
        )
    )


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": False}
    return found


@cache
def _vega() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as a script that sets `window.vegaEmbed`."""
    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    return Markup(code.replace("</script", r"<\/script"))


_VEGA_LITE = ".".join(SCHEMA_VERSION.split(".")[:2])


def _notes(run: Reported) -> list[str]:
    return [str(Note(**{**note, "names": tuple(note["names"])})) for note in run.notes]
