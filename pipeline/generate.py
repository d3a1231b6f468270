"""The Beam pipeline that writes maps: shards in, commit records out.

``Create(shards) → Reshuffle → explain and commit each → finalise``. The element is a shard's index,
never an image or a map: every worker reads its examples from the manifest and writes its files
itself, so bytes do not depend on the number of workers and no map enters a shuffle. A run that
scores its maps does so while they are in memory, and ends with the statistics.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import apache_beam as beam
import torch

from pipeline import dataflow, preflight, runners
from pipeline.config import RunConfig
from pipeline.devices import Devices, plan_devices
from pipeline.errors import SettingsError, TooManyErrorsError
from pipeline.explain import explain_shard
from pipeline.plan import Plan, check_same_plan, make_plan, read_plan, write_plan
from pipeline.preflight import START_SECONDS, check_photos, report_for_work
from pipeline.scoring import (
    Scoring,
    has_scoring,
    is_scored,
    planned_scoring,
    score_shard,
    score_while_made,
    scored_shards,
    start_scoring,
    write_scores,
)
from pipeline.statistics import read_statistics, write_statistics
from pipeline.store import MapDataset, files, names
from pipeline.store.commit import (
    ShardInfo,
    committed,
    finalise,
    is_committed,
    remove_temporary,
    write_shard,
)
from pipeline.store.encoding import MapDtype
from pipeline.store.parquet import Manifest
from pipeline.store.records import ImageRecord, MapRecord
from transforms.engine import Explainer
from transforms.metrics import Score
from transforms.metrics.statistics import Statistic


@dataclass
class GenerateMaps(beam.PTransform):
    """Explains and commits every shard of the plan in ``out``, then finalises the run.

    A shard that is already committed, and scored where there is a ``scoring``, is left alone. With
    more failed images than ``max_error_rate`` allows, the shards stay and the run is not finalised.
    With ``accelerator``, a runner that knows resource hints gives the workers that explain, and no
    others, that GPU.
    Each worker process claims one of ``devices``.
    """

    out: str
    shards: int
    max_error_rate: float
    scoring: Scoring | None = None
    accelerator: str | None = None
    devices: Devices = field(default_factory=Devices)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """To one element, when everything is written."""
        hints = {"accelerator": self.accelerator} if self.accelerator else {}
        devices = replace(self.devices, device="cuda") if self.accelerator else self.devices
        explain = beam.ParDo(_ExplainShard(self.out, self.scoring, devices))
        written = (
            pipeline
            | "Shards" >> beam.Create(range(self.shards))
            | "Spread" >> beam.Reshuffle()
            | "Explain" >> explain.with_resource_hints(**hints)
            | "Collect" >> beam.combiners.Count.Globally()
            | "Finalise" >> beam.Map(_finalise, self.out, self.max_error_rate)
        )
        if self.scoring is None:
            return written
        return written | "Statistics" >> beam.Map(_statistics, self.out)


@dataclass(frozen=True)
class RunSummary:
    """What ``generate`` found or left in ``out``; ``bytes`` without those of the scores.

    ``submitted``: what was done instead of waiting for the end of the run, in words.
    """

    plan: Plan
    images: int
    maps: int
    errors: int
    bytes: int
    already_complete: bool
    kept_maps: int
    statistics: list[Statistic] | None
    submitted: str | None = None


def generate(
    config: RunConfig,
    out: str,
    *,
    workers: int | None = None,
    gpus: str | None = None,
    beam_args: Sequence[str] = (),
    overwrite: bool = False,
    max_error_rate: float = 0.01,
    accelerator: str | None = None,
    start_timeout: float = START_SECONDS,
    on_start: Callable[[Plan], None] = lambda plan: None,
    on_poll: Callable[[], None] = lambda: None,
) -> RunSummary:
    """Write the maps that ``config`` asks for to ``out``, or go on with what is there.

    ``accelerator`` asks Dataflow for a GPU (``pipeline.dataflow``) and is no part of the plan.
    ``gpus``, ``all`` or indices such as ``0,1``, gives one worker process a GPU.

    Raises:
        SettingsError: a setting is wrong, or ``out`` holds another plan; nothing was written.
        TooManyErrorsError: images failed beyond ``max_error_rate`` (one is always allowed unless it
            is 0); everything else is kept.
        WorkerDiedError: see :func:`pipeline.runners.run`.
    """
    if not 0 <= max_error_rate <= 1:
        raise SettingsError(f"--max-error-rate is a share from 0 to 1, not {max_error_rate}")
    available = None if runners.chooses_runner(beam_args) else torch.cuda.device_count()
    devices = plan_devices(config.device, gpus, workers, available)
    options = runners.pipeline_options(devices.workers, beam_args)
    if accelerator:
        dataflow.check_accelerator(accelerator, config.device)
        dataflow.use_one_process(options)
    out = preflight.check(options, out, start_timeout)
    plan, planned = make_plan(config)
    paths = {"--root": plan.config.root, "--weights": plan.model.file, "OUT": out}
    dataflow.check_reachable(options, paths)
    scoring = planned_scoring(plan, out)
    same = not (overwrite and clear(out)) and check_same_plan(out, plan)
    complete = same and _is_complete(out, plan, scoring)
    if not complete:
        # Also over the same plan: the photos and the weights may have moved since.
        write_plan(out, plan, planned)
        del planned
        if scoring:
            start_scoring(out, plan, scoring)
        remove_temporary(out)
        on_start(plan)
        with tempfile.TemporaryDirectory(prefix="backlight-cores-") as folder:
            here = replace(devices, folder=folder)
            maps = GenerateMaps(out, plan.shards, max_error_rate, scoring, accelerator, here)
            runners.run(lambda pipeline: pipeline | maps, options, out, on_poll, start_timeout)
    submitted = None
    if not _is_complete(out, plan, scoring):
        submitted = dataflow.submitted(options) or preflight.submitted(options)
    records = committed(out)
    kept, unkept = (sum(getattr(r, name) for r in records) for name in ("maps", "unkept_maps"))
    summary = RunSummary(
        plan=plan,
        images=sum(record.images for record in records),
        maps=kept + unkept,
        errors=sum(record.errors for record in records),
        bytes=sum(entry.bytes for record in records for entry in record.files.values()),
        already_complete=complete,
        kept_maps=kept,
        statistics=read_statistics(out) if scoring and not submitted else None,
        submitted=submitted,
    )
    if summary.errors > _allowed_errors(plan.examples, max_error_rate):
        raise TooManyErrorsError(
            f"{summary.errors} of {plan.examples} images failed, more than --max-error-rate "
            f"{max_error_rate:g} allows. The {kept:,} maps of the others are kept and {out}"
            "/errors says what failed; to accept it, run again with a higher --max-error-rate"
        )
    return summary


def clear(out: str) -> bool:
    """Delete what a run and its evaluation wrote to ``out``, and nothing else; False: no run."""
    found = files.exists(files.join(out, names.PLAN))
    if found:
        for name in names.EVERYTHING:
            files.delete(files.join(out, name))
    return found


class _ExplainShard(beam.DoFn):
    def __init__(self, out: str, scoring: Scoring | None, devices: Devices) -> None:
        self.out = out
        self.scoring = scoring
        self.devices = devices

    def setup(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.plan = report_for_work(self.out)
        check_photos(self.plan)
        self.model: Explainer | None = None
        self.stored: MapDataset | None = None
        self.stack = ExitStack()
        self.claimed = self.stack.enter_context(self.devices.claimed())
        self.manifest = self.stack.enter_context(Manifest(self.out))

    def process(self, index: int) -> Iterator[int]:
        plan = self.plan
        written = is_committed(self.out, index, plan.run_id)
        scored = self.scoring is None or is_scored(self.out, plan, index)
        if written and self.scoring and not scored and plan.config.keep == "all":
            self.stored = self.stored or MapDataset(self.out)
            score_shard(self.stored, plan, index, self.scoring)
        elif not (written and scored):
            self._write(index)
        yield index

    def _write(self, index: int) -> None:
        plan, config = self.plan, self.plan.config
        scores: dict[str, list[tuple[Score, str]]] = {}

        def score(image: ImageRecord, maps: list[MapRecord]) -> None:
            if self.scoring:
                scores[image.image_id] = score_while_made(plan, self.scoring, image, maps)

        began = time.perf_counter()
        planned = self.manifest.shard(index)
        device = self.claimed.device
        # A model may ask for "cuda", the current device.
        with torch.accelerator.device_index(device.index):
            result = explain_shard(plan, planned, self._explainer(), device, score)
        if self.scoring:
            in_order = [(image.image_id, scores[image.image_id]) for image, _ in result.images]
            write_scores(self.out, plan, index, in_order)
        info = ShardInfo(
            index=index,
            count=plan.shards,
            run_id=plan.run_id,
            formats=() if config.keep == "none" else config.format,
            map_dtype=cast(MapDtype, config.map_dtype),
            versions=plan.versions,
        )
        extra: dict[str, Any] = {
            "device": self.claimed.name,
            "micro_batch": self._explainer().micro_batch,
            "seconds": {**result.seconds, "before_write": time.perf_counter() - began},
        }
        write_shard(self.out, info, result.images, result.errors, extra, result.unkept_maps)

    def teardown(self) -> None:
        self.stack.close()
        torch.set_num_threads(self.threads)

    def _explainer(self) -> Explainer:
        """Made for the first shard that needs it: a run taken up again may have none."""
        if self.model is None:
            config = self.plan.config
            network = self.plan.model.load().to(self.claimed.device)
            explainer = Explainer(network, config.layers, config.methods, config.seed)
            self.model = self.stack.enter_context(explainer)
        return self.model


def _finalise(shards: int, out: str, max_error_rate: float) -> int:
    plan = read_plan(out)
    records = committed(out)
    errors = sum(record.errors for record in records if record.run_id == plan.run_id)
    if errors <= _allowed_errors(plan.examples, max_error_rate):
        finalise(out, plan.run_id, plan.shards, plan.planned_maps, _about(plan))
    return shards


def _statistics(shards: int, out: str) -> int:
    write_statistics(out, [record.index for record in committed(out)])
    return shards


def _is_complete(out: str, plan: Plan, scoring: Scoring | None) -> bool:
    if not files.exists(files.join(out, names.SUCCESS)):
        return False
    if scoring is None:
        return True
    return (
        has_scoring(out, plan, scoring)
        and scored_shards(out) == plan.shards
        and files.exists(files.join(out, names.STATISTICS))
    )


def _about(plan: Plan) -> dict[str, str]:
    config = plan.config
    return {
        "Source": config.source + (f", split {config.split}" if config.split else ""),
        "Model": config.model,
        "Classes": ", ".join(config.targets),
        "Preprocessing": f"{config.preprocess}, {config.input_size} px",
        **({"Scored by": ", ".join(config.evaluate)} if config.evaluate else {}),
        **({"Maps kept": config.keep} if config.keep != "all" else {}),
    }


def _allowed_errors(examples: int, max_error_rate: float) -> int:
    """One bad image never fails a run, however small, unless the rate is 0."""
    return max(1, int(max_error_rate * examples)) if max_error_rate else 0
