"""What the report reads of one run: its settings, counts, statistics and paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.compare import MOST_MAPS, in_words
from pipeline.errors import SettingsError
from pipeline.roles import parse_role
from pipeline.store import MapDataset, schemas
from pipeline.store.comparison import AXES, Comparison, Question, run_names
from pipeline.store.evaluation import evaluation_settings
from pipeline.store.outline import read_outline, stored_plan
from transforms.metrics import METRICS
from transforms.variants import BASE


@dataclass(frozen=True)
class Reported:
    """One run.

    Attributes:
        name: how the page calls it.
        dataset: to read more of it.
        settings: of `generate`, with every default spelled out.
        notes: what planning left out of the dataset or took for something else, as stored.
        input_rules: whose rules the input's preparation follows where nothing was set.
        planned: images of the whole run.
        scoring: the settings of the last evaluation; empty: none.
        statistics: the rows of statistics/; none where it is not evaluated.
        missing: why there are no statistics; empty: there are.
    """

    name: str
    dataset: MapDataset
    settings: Mapping[str, Any]
    notes: Sequence[Mapping[str, Any]]
    input_rules: str
    planned: int
    scoring: Mapping[str, Any]
    statistics: pa.Table
    missing: str

    def count(self, what: str) -> int:
        """The sum over the commit records: `images`, `maps`, `errors`, `lost_maps`, ..."""
        return sum(getattr(record, what) for record in self.dataset.commits)

    @property
    def bytes(self) -> int:
        """The bytes of all files of the shards."""
        return sum(e.bytes for record in self.dataset.commits for e in record.files.values())

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers from early to late, then the combinations of the last evaluation."""
        return (*self.settings["layers"], *self.scoring.get("combinations", ()))

    @property
    def localisation(self) -> list[str]:
        """The metrics of the last evaluation that compared maps with objects."""
        scored = set(self.statistics["metric"].unique().to_pylist())
        return [name for name in METRICS if METRICS[name].roles == ("label",) and name in scored]

    @property
    def controls(self) -> list[str]:
        """The roles whose classes need not be in the image."""
        return [role for role in self.settings["roles"] if parse_role(role).entry.is_control]


def read_runs(outs: Sequence[str]) -> list[Reported]:
    """The runs in `outs`, evaluated or not.

    Raises:
        SettingsError: one is not an output of `backlight generate`, or has no committed shard.
    """
    return [_read(out, name) for out, name in zip(outs, run_names(outs), strict=True)]


@dataclass(frozen=True)
class Compared:
    """The paired comparisons by one axis.

    Attributes:
        by: a name of `AXES`.
        run: the run's name; empty: of all runs with each other.
        found: what came of it; None: nothing.
        missing: why nothing came of it.
    """

    by: str
    run: str
    found: Comparison | None
    missing: str = ""


def comparisons(runs: Sequence[Reported]) -> list[Compared]:
    """Each evaluated run by what it has several of, such as methods, and the runs by each other.

    By method and layer the maps of the base model are compared; a variant with the base model. A
    run of more than `MOST_MAPS` maps is not compared, since it takes a while.
    """
    evaluated = [run for run in runs if not run.missing]
    found = [_compared(run, question, []) for run in evaluated for question in _questions(run)]
    if len(evaluated) > 1:
        found.append(_compared(evaluated[0], Question(by="run"), evaluated[1:]))
    return found


def _questions(run: Reported) -> list[Question]:
    settings = run.settings
    questions = [Question(by="method", variants=[BASE]), Question(by="layer", variants=[BASE])]
    if len(settings["variants"]) > 1:
        questions.append(Question(by="variant", against=BASE))
    if len(run.scoring.get("upsamplings", ())) > 1:
        questions.append(Question(by="upsampling", variants=[BASE]))
    if run.localisation and run.controls and "label" in settings["roles"]:
        roles = ["label", *run.controls]
        questions.append(
            Question(
                by="role", against="label", metrics=run.localisation, variants=[BASE], roles=roles
            )
        )
    return questions


def _compared(run: Reported, question: Question, others: Sequence[Reported]) -> Compared:
    by = str(question.by)
    name = "" if AXES[by].across_runs else run.name
    maps = max(each.count("maps") + each.count("unkept_maps") for each in (run, *others))
    if maps > MOST_MAPS:
        why = f"{maps:,} maps are more than a report compares; backlight compare --by {by} does"
        return Compared(by, name, None, why)
    try:
        found = run.dataset.comparison(question, [other.dataset.out for other in others])
    except SettingsError as error:
        return Compared(by, name, None, str(error))
    return Compared(by, name, found)


def _read(out: str, name: str) -> Reported:
    stored = stored_plan(out)
    dataset = MapDataset(out)
    scoring: Mapping[str, Any] = {}
    missing = ""
    try:
        statistics = dataset.statistics()
        scoring = evaluation_settings(out) or {}
        if not statistics.num_rows:
            missing = f"{in_words(scoring['metrics'])} found no maps to score"
    except SettingsError as error:
        statistics, missing = schemas.STATISTICS.empty_table(), str(error)
    return Reported(
        name,
        dataset,
        stored["settings"],
        stored["notes"],
        stored["input_rules"],
        read_outline(out).examples,
        scoring,
        statistics,
        missing,
    )


def over_all_classes(statistics: pa.Table) -> pa.Table:
    """The statistics that are not of one class alone."""
    return statistics.filter(pc.equal(statistics["class_name"], ""))


def of_single_classes(statistics: pa.Table) -> pa.Table:
    """The statistics that are of one class alone."""
    return statistics.filter(pc.not_equal(statistics["class_name"], ""))
