"""The plots of the page: Vega-Lite, made by Altair and drawn by the page from its own rows.

Colours are CSS variables of the page, so that a plot follows its dark mode and its print without
being drawn again.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt

from pipeline.report.page_data import PageData, Row
from pipeline.report.reported_run import Reported
from transforms.metrics import METRICS

COLOURS = 8
"""How many colours there are (`--series-0` and so on in page.css)."""

SHAPES = (
    *("circle", "square", "triangle-up", "diamond", "cross"),
    *("triangle-down", "triangle-right", "triangle-left"),
)
"""A method has a colour and a shape; with more methods than colours, other pairs of them."""

MOST_CLASSES = 40
"""Rows of the plot of classes."""

_INK, _FAINT, _GRID = "var(--ink)", "var(--faint)", "var(--rule)"
_SHOWN = "!isValid(datum.method) || indexof(shown, datum.method) >= 0"
"""The row is of a method that the legend has switched on, or of none."""

_FONT = "system-ui, sans-serif"
_HEIGHT = 300
_COLUMNS = 4


@dataclass(frozen=True)
class Control:
    """A choice above a plot.

    Attributes:
        signal: of the plot that it sets.
        label: what is chosen.
        options: the choices; where it depends on another control, by the choice there.
        depends: the signal of that other control; empty: on none.
    """

    signal: str
    label: str
    options: Sequence[str] | dict[str, list[str]]
    depends: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot, or why there is none.

    Attributes:
        name: in the page's address.
        title: over it.
        text: how to read it.
        rows: the name of its rows in `PageData`.
        spec: of Vega-Lite; None where there is nothing to draw.
        controls: the choices above it.
        notes: what is left out of it, or why there is none.
    """

    name: str
    title: str
    text: str
    rows: str
    spec: dict[str, Any] | None = None
    controls: Sequence[Control] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Series:
    """A method in every plot and in the legend.

    Attributes:
        name: of the method.
        colour: the number of its colour.
        shape: of its points, a name of `SHAPES`.
    """

    name: str
    colour: int
    shape: str


def series(runs: Iterable[Reported]) -> list[Series]:
    """The methods of all runs, in the order of the settings."""
    names = dict.fromkeys(method for run in runs for method in run.settings["methods"])
    return [
        Series(name, i % COLOURS, SHAPES[(i + i // COLOURS) % len(SHAPES)])
        for i, name in enumerate(names)
    ]


def plots(runs: Sequence[Reported], data: PageData) -> list[Plot]:
    """All plots, in the order of the page."""
    draw = _Drawing(series(runs), several_runs=len(runs) > 1)
    return [
        _sensitivity_by_depth(draw, data),
        _localisation_by_depth(draw, data),
        _sensitivity_and_localisation(draw, data),
        _forest(draw, data),
        _classes(draw, data),
        _cascade(draw, data),
        _distribution(draw, data),
        _by_logit(draw, data),
        _others_by_depth(draw, data),
    ]


@dataclass(frozen=True)
class _Drawing:
    """What all plots have in common."""

    series: Sequence[Series]
    several_runs: bool

    @property
    def _names(self) -> list[str]:
        return [each.name for each in self.series]

    @property
    def colour(self) -> alt.Color:
        colours = [f"var(--series-{each.colour})" for each in self.series]
        return alt.Color(
            "method:N", scale=alt.Scale(domain=self._names, range=colours), legend=None
        )

    @property
    def shape(self) -> alt.Shape:
        shapes = [each.shape for each in self.series]
        return alt.Shape("method:N", scale=alt.Scale(domain=self._names, range=shapes), legend=None)

    @property
    def beside(self) -> alt.XOffset:
        """Methods stand side by side at each layer."""
        return alt.XOffset("method:N", scale=alt.Scale(domain=self._names, paddingOuter=0.3))

    @property
    def shown(self) -> alt.Parameter:
        """The methods that the legend has switched on."""
        return alt.param(name="shown", value=self._names)

    def drawn(
        self,
        plot: Plot,
        chart: Any,
        rows: Sequence[Row],
        controls: Sequence[Control],
        *,
        by: str = "",
        where: str = _SHOWN,
        **resolved: str,
    ) -> Plot:
        """The plot with its chart of `rows`, repeated for each value of `by` of those `where`."""
        chart = chart.properties(data=alt.NamedData(name=plot.rows))
        if by:
            header = alt.Header(
                title=None, labelColor=_INK, labelFontSize=12, labelFontWeight="bold"
            )
            values = self._names if by == "method" else _options(rows, by)
            facet = alt.Facet(f"{by}:N", header=header, sort=values)
            chart = chart.facet(facet=facet, columns=min(_COLUMNS, len(values)))
            chart = chart.transform_filter(where).resolve_scale(**resolved)
        chosen = [alt.param(name=control.signal, value="") for control in controls]
        spec = _configured(chart.add_params(self.shown, *chosen))
        return replace(plot, spec=spec, controls=controls)


def _configured(chart: Any) -> dict[str, Any]:
    configured = chart.configure(
        background="transparent",
        font=_FONT,
        axis={
            **{"labelColor": _INK, "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12},
            **{"domainColor": _FAINT, "tickColor": _FAINT, "gridColor": _GRID, "labelLimit": 160},
            "titleFontWeight": 500,
        },
        view={"stroke": None},
        legend={"labelColor": _INK, "titleColor": _INK},
        text={"color": _INK},
        aria=False,  # the page says what the plot is, and tables have its numbers
    )
    found: dict[str, Any] = configured.to_dict()
    return found


def _base(*filters: str) -> Any:
    """A layer with the rows that pass; the rows are those of the whole chart."""
    chart = alt.Chart()
    for text in filters:
        chart = chart.transform_filter(text)
    return chart


def _interval(base: Any, **encodings: Any) -> Any:
    return (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.5)
        .encode(y=alt.Y("low:Q"), y2="high:Q", **encodings)
    )


def _tooltip(*fields: str) -> list[alt.Tooltip]:
    """Hovering names the cell and shows n."""
    named = [alt.Tooltip(field) for field in ("run:N", "method:N", "layer:N", *fields)]
    figures = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high")]
    counts = [alt.Tooltip(f"{name}:Q", format=",") for name in ("n", "images")]
    return [*named, *figures, *counts]


def _options(rows: Iterable[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _dependent(rows: Iterable[Row], field: str, depends: str) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row[depends], {})[row[field]] = None
    return {value: list(options) for value, options in found.items()}


def _controls(rows: Sequence[Row], *given: tuple[str, str, str]) -> list[Control]:
    """Controls by field, label, and the field that each depends on."""
    return [
        Control(name, label, _dependent(rows, name, depends), depends)
        if depends
        else Control(name, label, _options(rows, name))
        for name, label, depends in given
    ]


def _by_depth(
    draw: _Drawing,
    data: PageData,
    name: str,
    title: str,
    text: str,
    is_of: Callable[[str], bool],
    why: str,
) -> Plot:
    rows = [row for row in data.statistics if row["headline"] and is_of(row["metric"])]
    plot = Plot(name, title, text, "statistics")
    if not rows:
        return replace(plot, notes=[why])
    base = _base(
        "datum.headline && datum.scores == scores && datum.variant == variant",
        _SHOWN,
    ).encode(
        x=alt.X(
            "layer:N",
            sort=alt.EncodingSortField("depth", op="min"),
            title="layer, from early to late",
            axis=alt.Axis(labelAngle=-30),
        )
    )
    maps = base.transform_filter("datum.layer != ''")
    value = alt.Y("value:Q", title="value, with its 95 % interval", scale=alt.Scale(zero=False))
    layers = maps.transform_filter("!datum.combined")
    lines = layers.mark_line(strokeWidth=1, opacity=0.45).encode(
        y=value, color=draw.colour, xOffset=draw.beside
    )
    points = maps.mark_point(filled=True, size=55, opacity=1).encode(
        y=value,
        color=draw.colour,
        shape=draw.shape,
        xOffset=draw.beside,
        tooltip=_tooltip("scores:N", "variant:N"),
    )
    baselines = _base("datum.headline && datum.scores == scores && datum.layer == ''")
    rule = baselines.mark_rule(color=_INK, strokeDash=[5, 4]).encode(
        y="value:Q", tooltip=_tooltip("scores:N")
    )
    label = baselines.mark_text(align="left", dx=4, dy=-6, color=_INK).encode(
        x=alt.value(0), y="value:Q", text="method:N"
    )
    chart = alt.layer(
        lines,
        _interval(maps, color=draw.colour, xOffset=draw.beside),
        points,
        rule,
        label,
    ).properties(height=_HEIGHT)
    controls = _controls(rows, ("scores", "Scores", ""), ("variant", "Variant", "scores"))
    if not draw.several_runs:
        return draw.drawn(plot, chart, rows, controls)
    # Runs have layers of their own.
    own = {"x": "independent", "xOffset": "independent"}
    return draw.drawn(plot, chart, rows, controls, by="run", **own)


_SENSITIVITY = ("class_sensitivity", "class_sensitivity_native", "class_correlation")


def _sensitivity_by_depth(draw: _Drawing, data: PageData) -> Plot:
    return _by_depth(
        draw,
        data,
        "sensitivity-by-depth",
        "Class sensitivity by depth",
        "Rank correlation of the maps of different classes of one image. A lower value means that "
        "the map changes more with the class.",
        lambda metric: metric in _SENSITIVITY,
        "Class sensitivity was not evaluated: it needs maps of the roles top and least, and "
        "backlight evaluate --metrics class_sensitivity.",
    )


def _localisation_by_depth(draw: _Drawing, data: PageData) -> Plot:
    return _by_depth(
        draw,
        data,
        "localisation-by-depth",
        "Pointing and other localisation by depth",
        "How well the maps point at the objects of their class; higher is better. A dashed line is "
        "a baseline that needs no map. Roles other than label are controls: classes that need not "
        "be in the image.",
        lambda metric: "label" in METRICS[metric].roles,
        "No metric of localisation was evaluated: it needs maps of the role label, and a dataset "
        "with boxes or masks.",
    )


def _others_by_depth(draw: _Drawing, data: PageData) -> Plot:
    return _by_depth(
        draw,
        data,
        "others-by-depth",
        "Other scores by depth",
        "What is neither class sensitivity nor localisation, such as the similarity of a variant's "
        "maps to those of the base model, or the share of constant maps.",
        lambda metric: metric not in _SENSITIVITY and "label" not in METRICS[metric].roles,
        "No other metric was evaluated; backlight metrics lists them.",
    )


def _sensitivity_and_localisation(draw: _Drawing, data: PageData) -> Plot:
    name, title = "sensitivity-and-localisation", "Sensitivity against localisation"
    text = (
        "A point is one method at one layer, with both 95 % intervals; the line goes from early to "
        "late layers, and the other methods are grey. Further left, the maps change more with the "
        "class; further up, they localise it better."
    )
    rows = data.localisation
    if not rows:
        why = "This needs class sensitivity and a metric of localisation of the same maps."
        return Plot(name, title, text, "localisation", notes=[why])
    base = _base(
        "datum.scores == scores && datum.variant == variant && datum.run == run"
    ).transform_filter(_SHOWN)
    x = alt.X("sensitivity_value:Q", title="class sensitivity", scale=alt.Scale(zero=False))
    y = alt.Y("value:Q", title="localisation", scale=alt.Scale(zero=False))
    tooltip = [
        *("method:N", "layer:N", "scores:N"),
        *(alt.Tooltip(f"{field}:Q", format=".3f") for field in ("value", "low", "high")),
        alt.Tooltip("n:Q", format=","),
        *(
            alt.Tooltip(f"sensitivity_{field}:Q", title=f"sensitivity {field}", format=".3f")
            for field in ("value", "low", "high")
        ),
        alt.Tooltip("sensitivity_n:Q", title="sensitivity n", format=","),
    ]
    prefix = _common_prefix(_options(rows, "layer"))
    if prefix:
        text += f" The names of the layers leave out “{prefix}”."
    base = base.transform_calculate(short=f"slice(datum.layer, {len(prefix)})")
    others = base.properties(data=alt.NamedData(name="localisation"))  # in each of the panels
    chart = alt.layer(
        others.mark_point(filled=True, size=18, color=_FAINT, opacity=0.45).encode(x=x, y=y),
        base.mark_line(strokeWidth=1, opacity=0.5).encode(
            x=x, y=y, color=draw.colour, order="depth:Q"
        ),
        _interval(base, x=x, color=draw.colour),
        base.transform_filter("isValid(datum.sensitivity_low)")
        .mark_rule(strokeWidth=1.5)
        .encode(x="sensitivity_low:Q", x2="sensitivity_high:Q", y=y, color=draw.colour),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            x=x, y=y, color=draw.colour, shape=draw.shape, tooltip=tooltip
        ),
        base.mark_text(align="left", dx=6, dy=-6, fontSize=10).encode(x=x, y=y, text="short:N"),
    ).properties(width=220, height=200)
    controls = _controls(
        rows, ("run", "Run", ""), ("scores", "Localisation", "run"), ("variant", "Variant", "run")
    )
    plot = Plot(name, title, text, "localisation")
    return draw.drawn(plot, chart, rows, controls, by="method")


def _common_prefix(names: Sequence[str]) -> str:
    """The modules that all names begin with, and a point; empty where there are none."""
    prefix = ""
    for part in names[0].split(".")[:-1]:
        if not all(name.startswith(f"{prefix}{part}.") for name in names):
            break
        prefix += f"{part}."
    return prefix


def _forest(draw: _Drawing, data: PageData) -> Plot:
    name, title = "differences", "Paired differences"
    text = (
        "The difference to the one that is chosen, over the same images and classes, with its 95 % "
        "interval. A filled point can be told from it (p < .05 by the paired test, with Holm's "
        "correction over all pairs); a hollow one cannot."
    )
    rows = data.forest
    if not rows:
        why = "There is no pair to compare: see the findings."
        return Plot(name, title, text, "forest", notes=[why])
    base = _base("datum.by == by && datum.panel == panel && datum.against == against")
    y = alt.Y("name:N", title=None, sort=alt.EncodingSortField("difference", order="descending"))
    counts = [
        alt.Tooltip(f"{field}:Q", format=",") for field in ("n", "images", "undefined", "unmatched")
    ]
    tooltip = [
        *("name:N", "against:N", "panel:N"),
        *(alt.Tooltip(f"{field}:Q", format="+.3f") for field in ("difference", "low", "high")),
        alt.Tooltip("p_holm:Q", title="p, Holm", format=".3f"),
        "verdict:N",
        *counts,
    ]
    chart = alt.layer(
        alt.Chart(alt.InlineData([{}]))
        .mark_rule(color=_FAINT, strokeDash=[5, 4])
        .encode(x=alt.datum(0)),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2, color=_INK)
        .encode(x=alt.X("low:Q", title="difference", axis=alt.Axis(tickCount=8)), x2="high:Q", y=y),
        base.mark_point(size=80, strokeWidth=2, opacity=1, stroke=_INK).encode(
            x="difference:Q",
            y=y,
            fill=alt.Fill(
                "verdict:N",
                scale=alt.Scale(
                    domain=["told apart", "cannot be told apart"],
                    range=["var(--accent)", "var(--paper)"],
                ),
                legend=None,
            ),
            tooltip=tooltip,
        ),
    ).properties(height=alt.Step(26))
    controls = _controls(
        rows, ("by", "Compared by", ""), ("panel", "Scores", "by"), ("against", "Against", "panel")
    )
    return draw.drawn(Plot(name, title, text, "forest"), chart, rows, controls)


def _classes(draw: _Drawing, data: PageData) -> Plot:
    name, title = "classes", "Accuracy by class"
    text = (
        "The mean score of each class of the dataset; classes with the highest mean come first. "
        "Few images per class make wide intervals: hovering shows them."
    )
    rows = data.classes
    if not rows:
        why = "No metric with statistics by class was evaluated, or the dataset has no classes."
        return Plot(name, title, text, "classes", notes=[why])
    largest: dict[str, int] = {}
    for row in rows:
        largest[row["class"]] = max(largest.get(row["class"], 0), row["n"])
    kept = sorted(largest, key=lambda each: (-largest[each], each))[:MOST_CLASSES]
    notes = []
    if len(largest) == 1:
        notes.append("The dataset has one class alone.")
    if len(kept) < len(largest):
        notes.append(
            f"The {len(kept)} classes with most scores, of {len(largest):,}; the table has the "
            "others."
        )
    base = _base(
        "datum.scores == scores && datum.variant == variant && datum.layer == layer "
        "&& datum.run == run",
        f"indexof({json.dumps(kept)}, datum['class']) >= 0",
        _SHOWN,
    )
    chart = (
        base.mark_rect(stroke="var(--paper)")
        .encode(
            x=alt.X(
                "method:N",
                sort=[each.name for each in draw.series],
                title=None,
                axis=alt.Axis(labelAngle=-40, orient="top"),
            ),
            y=alt.Y(
                "class:N", title=None, sort=alt.EncodingSortField("value", "mean", "descending")
            ),
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(scheme="cividis", domain=[0, 1]),
                legend=alt.Legend(
                    title="mean score", orient="bottom", direction="horizontal", gradientLength=120
                ),
            ),
            tooltip=_tooltip("class:N", "scores:N"),
        )
        .properties(height=alt.Step(16))
    )
    maps = [row for row in rows if row["layer"]]
    controls = _controls(
        maps,
        *(("run", "Run", ""), ("scores", "Scores", "run"), ("layer", "Layer", "run")),
        ("variant", "Variant", "run"),
    )
    return draw.drawn(Plot(name, title, text, "classes", notes=notes), chart, rows, controls)


def _cascade(draw: _Drawing, data: PageData) -> Plot:
    name, title = "cascade", "Cascade of random weights"
    text = (
        "From left to right more of the network has random weights, from the head down to the "
        "layer that is named. The maps of a method that explains the network change: the "
        "correlation with the base model's maps falls."
    )
    rows = [
        row
        for row in data.statistics
        if row["variant"].startswith("cascade") and row["metric"].startswith("variant_")
    ]
    if not rows:
        why = (
            "The run has no cascade: backlight generate --variants base,cascade, and backlight "
            "evaluate, make one."
        )
        return Plot(name, title, text, "statistics", notes=[why])
    base = _base(_SHOWN).encode(
        x=alt.X(
            "variant:N",
            sort=_options(rows, "variant"),
            title="random down to",
            axis=alt.Axis(labelAngle=-30, labelExpr="replace(datum.label, 'cascade', '')"),
        )
    )
    y = alt.Y("value:Q", title="value, with its 95 % interval")
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, color=draw.colour),
        _interval(base, color=draw.colour),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, color=draw.colour, shape=draw.shape, tooltip=_tooltip("variant:N", "scores:N")
        ),
    ).properties(width=220, height=200)
    controls = _controls(rows, ("run", "Run", ""), ("scores", "Scores", "run"))
    plot = Plot(name, title, text, "statistics")
    where = (
        "datum.headline && datum.scores == scores && datum.run == run "
        "&& slice(datum.variant, 0, 7) == 'cascade'"
    )
    return draw.drawn(plot, chart, rows, controls, by="layer", where=where)


def _distribution(draw: _Drawing, data: PageData) -> Plot:
    name, title = "distribution", "Distribution of scores"
    text = "How often each score occurs among the maps of the base model, in bins of 0.05."
    rows, notes = data.bins, data.left_out.get("bins", [])
    if not rows:
        return Plot(name, title, text, "bins", notes=notes or ["There are no scores."])
    chart = (
        _base("datum.scores == scores && datum.layer == layer && datum.run == run", _SHOWN)
        .transform_calculate(end="datum.start + 0.05", none="0")
        .mark_rect(stroke="var(--paper)", strokeWidth=0.5)
        .encode(
            x=alt.X("start:Q", title="score"),
            x2="end:Q",
            y=alt.Y("none:Q", title="share of scores", axis=alt.Axis(format="%")),
            y2="share:Q",
            color=draw.colour,
            tooltip=[
                *("method:N", "layer:N", "scores:N"),
                alt.Tooltip("start:Q", title="from", format=".2f"),
                alt.Tooltip("end:Q", title="to", format=".2f"),
                alt.Tooltip("share:Q", format=".1%"),
                alt.Tooltip("count:Q", title="n", format=","),
            ],
        )
        .properties(width=220, height=140)
    )
    controls = _controls(
        rows, ("run", "Run", ""), ("scores", "Scores", "run"), ("layer", "Layer", "run")
    )
    plot = Plot(name, title, text, "bins", notes=notes)
    return draw.drawn(plot, chart, rows, controls, by="method", y="independent")


def _by_logit(draw: _Drawing, data: PageData) -> Plot:
    name, title = "logit", "Localisation by logit"
    text = (
        "The classes of the images are sorted by their logit into bins of equal size. Where a map "
        "shows what the network uses, it points better at classes that the network is sure of. "
        "A point is the mean score of a bin, over its images and classes, with its 95 % interval."
    )
    rows, notes = data.by_logit, data.left_out.get("by_logit", [])
    if not rows:
        return Plot(name, title, text, "by_logit", notes=notes or ["There are no scores."])
    base = _base("datum.scores == scores && datum.layer == layer && datum.run == run", _SHOWN)
    x = alt.X("logit:Q", title="logit of the class", scale=alt.Scale(zero=False))
    y = alt.Y("value:Q", title="mean score", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("from:Q", title="logit from", format=".2f"),
        alt.Tooltip("to:Q", title="logit to", format=".2f"),
    ]
    chart = alt.layer(
        base.mark_line(strokeWidth=1, opacity=0.5).encode(x=x, y=y, color=draw.colour),
        _interval(base, x=x, color=draw.colour),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            x=x,
            y=y,
            color=draw.colour,
            shape=draw.shape,
            tooltip=[*_tooltip("scores:N"), *tooltip],
        ),
    ).properties(width=220, height=160)
    controls = _controls(
        rows, ("run", "Run", ""), ("scores", "Scores", "run"), ("layer", "Layer", "run")
    )
    plot = Plot(name, title, text, "by_logit", notes=notes)
    return draw.drawn(plot, chart, rows, controls, by="method")
