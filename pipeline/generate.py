"""The Beam pipeline that writes maps: shards in, commit records out.

`Create(shards) → Reshuffle → explain and commit each → finalise`. The element is a shard's index,
never an image or a map: every worker reads its examples from the manifest and writes its files
itself, so bytes do not depend on the number of workers and no map enters a shuffle. A run that
scores its maps does so while they are in memory, and ends with the statistics.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam
import torch

from pipeline import files
from pipeline.config import RunConfig
from pipeline.errors import SettingsError, TooManyErrorsError, memory_told, print_fault
from pipeline.explain import explain_shard
from pipeline.photo_hashes import check_photos_are_the_same, known_photos
from pipeline.plan import Plan, check_same_plan, check_weights, read_plan, write_plan
from pipeline.planning import make_plan
from pipeline.scores.image_scores import score_while_made
from pipeline.scores.score_files import (
    NO_ODD_OBJECTS,
    OddObjects,
    evaluation_of,
    has_scoring,
    is_scored,
    odd_objects,
    score_shard,
    shards_scored,
    start_scoring,
    write_scores,
)
from pipeline.scores.scoring import Scoring, planned_scoring
from pipeline.scores.statistics_files import read_statistics, write_statistics
from pipeline.store import MapDataset, names
from pipeline.store.clear import clear
from pipeline.store.commit import committed, is_committed
from pipeline.store.evaluation import statistics_problems
from pipeline.store.finalise import finalise, lost_since, remove_temporary
from pipeline.store.lock import Lock, sole_writer
from pipeline.store.manifest import Manifest
from pipeline.store.outline import plan_problems
from pipeline.store.problems import Problem
from pipeline.store.records import ImageRecord, MapRecord, PlannedExample
from pipeline.store.repair import give_up, give_up_failed
from pipeline.store.shard import ShardInfo, write_shard
from pipeline.store.verify import verify
from pipeline.workers.check_in import check_in, check_photos
from pipeline.workers.devices import Devices
from pipeline.workers.execution import HERE, STALL_SECONDS, Execution
from pipeline.workers.image_count import ImageCount
from pipeline.workers.isolation import ISOLATED_AFTER, guilty_images
from pipeline.workers.one_thread import on_one_thread
from pipeline.workers.runners import prepare, run
from pipeline.workers.shard_notes import ShardWork, noted
from transforms.engine import Explainer
from transforms.score import Score
from transforms.statistics.bootstrap import REPLICATES
from transforms.statistics.statistic import Statistic


@dataclass
class GenerateMaps(beam.PTransform[beam.Pipeline, beam.PCollection[int]]):
    """Explains and commits every shard of the plan in `out`, then finalises the run.

    A shard that is already committed, and scored if it has to be, is left alone.

    Attributes:
        out: the output, which has the plan.
        shards: how many shards the plan has.
        max_error_rate: if a larger share of the images fails, the shards stay and the run is not
            finalised.
        scoring: how the maps are scored while they are in memory; None: not at all.
        accelerator: the GPU that a runner with resource hints gives to the workers that explain.
        devices: what each worker process claims one of.
        stall_timeout: seconds that an image may take that is tried alone; 0: however long.
    """

    out: str
    shards: int
    max_error_rate: float
    scoring: Scoring | None = None
    accelerator: str | None = None
    devices: Devices = field(default_factory=Devices)
    stall_timeout: float = STALL_SECONDS

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[int]:
        """To one element, when everything is written."""
        hints = {"accelerator": self.accelerator} if self.accelerator else {}
        explain = beam.ParDo(
            _ExplainShard(self.out, self.scoring, self.devices, self.stall_timeout)
        )
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
        return written | "Statistics" >> beam.Map(_statistics, self.out, self.scoring)


@dataclass(frozen=True)
class RunSummary:
    """What `generate` found or left in `out`.

    Attributes:
        plan: the plan of the run.
        images: how many images have maps.
        maps: how many maps were made, kept or not.
        errors: how many images failed.
        bytes: of all files but those of the scores.
        already_complete: whether there was nothing to do.
        kept_maps: how many maps the output has.
        statistics: the statistics, if the run scores its maps.
        submitted: what was done instead of waiting for the end of the run, in words.
        odd_objects: as `pipeline.evaluate.Evaluation` has it.
        found: what was wrong with the output, and has been made again.
        retried: how many images that had failed were tried again.
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
    odd_objects: OddObjects = NO_ODD_OBJECTS
    found: tuple[Problem, ...] = ()
    retried: int = 0


def generate(
    config: RunConfig,
    out: str | os.PathLike[str],
    execution: Execution = HERE,
    *,
    overwrite: bool = False,
    repair: bool = False,
    retry_errors: bool = False,
    max_error_rate: float = 0.01,
    on_found: Callable[[Sequence[Problem]], None] = lambda problems: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_start: Callable[[Plan, int], None] = lambda plan, before: None,
    on_poll: Callable[[], None] = lambda: None,
    on_fault: Callable[[str], None] = print_fault,
) -> RunSummary:
    """Write the maps that `config` asks for to `out`, or go on with what is there.

    `execution` says how and where to run, and is no part of the plan. What a finished run has lost
    since is made again; that is seen by one listing per folder. With `repair` every file is read
    first (`pipeline.store.verify`), and the shards that are broken are made again. With
    `retry_errors` so are the shards with images that failed. `on_found` sees what was wrong, and
    `on_phase` what is done before the first image, in words.
    `on_fault` is told of workers that ended and were started again, and of a dead command whose
    place this one takes.

    Raises:
        OutTakenError: another command writes to `out`; nothing was done.
        SettingsError: a setting is wrong, or `out` holds another plan; nothing was written.
        TooManyErrorsError: images failed beyond `max_error_rate` (one is always allowed unless it
            is 0); everything else is kept.
        InputChangedError: the weights or a photo are not those that the run was begun with.
        WorkerDiedError, StalledError: see `pipeline.workers.runners.run`.
        NoMemoryError: there is too little memory.
    """
    out = os.fspath(out)
    if overwrite and (repair or retry_errors):
        raise SettingsError("--overwrite starts afresh: leave out --repair and --retry-errors")
    flags = {"--overwrite": overwrite, "--repair": repair, "--retry-errors": retry_errors}
    command = " ".join(["generate", *(flag for flag, is_set in flags.items() if is_set)])
    with memory_told(_SMALLER), sole_writer(out, command, on_fault) as lock:
        return _generate(
            config,
            out,
            execution,
            lock,
            overwrite=overwrite,
            repair=repair,
            retry_errors=retry_errors,
            max_error_rate=max_error_rate,
            on_found=on_found,
            on_phase=on_phase,
            on_start=on_start,
            on_poll=on_poll,
            on_fault=on_fault,
        )


def _generate(
    config: RunConfig,
    out: str,
    execution: Execution,
    lock: Lock,
    *,
    overwrite: bool,
    repair: bool,
    retry_errors: bool,
    max_error_rate: float,
    on_found: Callable[[Sequence[Problem]], None],
    on_phase: Callable[[str], None],
    on_start: Callable[[Plan, int], None],
    on_poll: Callable[[], None],
    on_fault: Callable[[str], None],
) -> RunSummary:
    if not 0 <= max_error_rate <= 1:
        raise SettingsError(f"--max-error-rate is a share from 0 to 1, not {max_error_rate}")
    job = prepare(execution, config.device, out)
    out = job.out
    plan, planned = _plan(config, out, on_phase, on_fault)
    job.check_reachable({"--root": plan.root, "--weights": plan.model.file})
    on_phase("looking at what is there")
    scoring = planned_scoring(plan, out)
    same = not (overwrite and clear(out)) and check_same_plan(out, plan)
    found: list[Problem] = []
    retried = 0
    if repair or retry_errors:
        if not same:
            raise SettingsError(f"{out} holds no run yet; leave out --repair and --retry-errors")
        if repair:
            on_phase("reading every file of OUT")
        found = [problem for problem in verify(out) if problem.is_fault] if repair else []
        give_up(out, found)
        retried = give_up_failed(out) if retry_errors else 0
    elif same and files.exists(files.join(out, names.SUCCESS)):
        found = [*plan_problems(out), *lost_since(out, plan.run_id, plan.shards)]
        if found:
            files.delete_for_good(files.join(out, names.SUCCESS))
    if found:
        on_found(found)
    complete = same and not plan_problems(out) and _is_complete(out, plan, scoring)
    if not complete:
        on_phase("checking the photos")
        check_photos_are_the_same(out, plan)
        # Also over the same plan: the photos and the weights may have moved since.
        write_plan(out, plan, planned)
        del planned
        if scoring:
            settings = evaluation_of(plan, scoring, REPLICATES, ())
            start_scoring(out, settings, again=True)
        # The notes say which shards have ended their workers before.
        remove_temporary(out, names.EXPLAINING)
        on_phase("starting the workers")
        on_start(plan, _done_before(out, plan, scoring))
        maps = partial(
            GenerateMaps,
            out,
            plan.shards,
            max_error_rate,
            scoring,
            execution.accelerator,
            job.devices,
            job.stall_timeout,
        )

        def poll() -> None:
            lock.check()
            on_poll()

        run(lambda pipeline: pipeline | maps(), job, names.EXPLAINING, poll, on_fault)
    submitted = None if _is_complete(out, plan, scoring) else job.submitted
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
        odd_objects=(
            odd_objects(MapDataset(out), scoring) if scoring and not submitted else NO_ODD_OBJECTS
        ),
        found=tuple(found),
        retried=retried,
    )
    if summary.errors > _allowed_errors(plan.examples, max_error_rate):
        raise TooManyErrorsError(
            f"{summary.errors} of {plan.examples} images failed, more than --max-error-rate "
            f"{max_error_rate:g} allows. The {kept:,} maps of the others are kept and {out}"
            "/errors says what failed; to accept it, run again with a higher --max-error-rate"
        )
    return summary


def _plan(
    config: RunConfig,
    out: str,
    on_phase: Callable[[str], None],
    on_fault: Callable[[str], None],
) -> tuple[Plan, Sequence[PlannedExample]]:
    """Make the plan; where a photo has ended the process that did, without a look at the photos."""
    try:
        with noted(out, names.PLANNING, 0) as work:
            if work.ends:
                on_fault(
                    "planning has ended this command before: the model is not tried on the first "
                    "photos this time"
                )
            return make_plan(config, checks_photos=not work.ends, on_phase=on_phase)
    finally:
        files.remove_if_empty(out, names.PLANNING)


_SMALLER = "--batch-size, --shard-size or --workers smaller, or ask for fewer layers or methods"


class _ExplainShard(beam.DoFn):
    def __init__(
        self, out: str, scoring: Scoring | None, devices: Devices, stall_timeout: float
    ) -> None:
        self.out = out
        self.scoring = scoring
        self.devices = devices
        self.stall_timeout = stall_timeout

    def setup(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(on_one_thread())
        self.plan = check_in(self.out)
        check_photos(self.plan)
        self.model: Explainer | None = None
        self.stored: MapDataset | None = None
        self.count = ImageCount(self.out, names.MADE)
        self.claimed = self.stack.enter_context(self.devices.claimed())
        self.manifest = self.stack.enter_context(Manifest(self.out))

    def process(self, index: int) -> Iterator[int]:
        with memory_told(_SMALLER):
            self._process(index)
        yield index

    def _process(self, index: int) -> None:
        plan = self.plan
        written = is_committed(self.out, index, plan.run_id)
        scored = self.scoring is None or is_scored(self.out, plan, index, self.scoring)
        if written and self.scoring and not scored and plan.keeps_all:
            self.stored = self.stored or MapDataset(self.out)
            device = self.claimed.device
            with noted(self.out, names.EXPLAINING, index) as work:

                def scored_one() -> None:
                    self.count.add()
                    work.step()

                score_shard(self.stored, plan, index, self.scoring, device, scored_one)
        elif not (written and scored):
            with noted(self.out, names.EXPLAINING, index) as work:
                self._write(index, work)
        self.count.write()

    def _write(self, index: int, work: ShardWork) -> None:
        plan = self.plan
        scores: dict[str, list[Score]] = {}

        def score(image: ImageRecord, maps: list[MapRecord]) -> None:
            if self.scoring:
                scores[image.image_id] = score_while_made(plan, self.scoring, image, maps, device)
            self.count.add()
            work.step()

        began = time.perf_counter()
        planned = self.manifest.shard(index)
        device = self.claimed.device
        failed = {}
        if work.ends >= ISOLATED_AFTER:
            work.isolate()
            stall, name = self.stall_timeout, str(device)
            failed = guilty_images(self.out, index, planned, name, stall, work.step)
        # A model may ask for "cuda", the current device.
        with torch.accelerator.device_index(device.index):
            known = known_photos(self.out, plan, index)
            result = explain_shard(plan, planned, self._explainer(), device, score, known, failed)
        if self.scoring is None:  # scores of what was there before
            scores_file = names.shard_file(names.SCORES, index, plan.shards)
            files.delete(files.join(self.out, scores_file))
        else:
            in_order = [(image.image_id, scores[image.image_id]) for image, _ in result.images]
            write_scores(self.out, plan, index, self.scoring, in_order)
        info = ShardInfo(
            index=index,
            count=plan.shards,
            run_id=plan.run_id,
            formats=plan.stored_formats,
            map_dtype=plan.map_dtype,
            versions=plan.versions,
        )
        extra: dict[str, Any] = {
            "device": self.claimed.name,
            "micro_batch": self._explainer().micro_batch,
            "seconds": {**result.seconds, "before_write": time.perf_counter() - began},
        }
        write_shard(self.out, info, result.images, result.errors, extra, result.unkept_maps)
        self.count.add(len(result.errors))

    def teardown(self) -> None:
        self.stack.close()

    def _explainer(self) -> Explainer:
        """The engine, made for the first shard that needs it: a resumed run may have none."""
        if self.model is None:
            plan = self.plan
            network = plan.model.load_on(self.claimed.device)
            check_weights(plan)
            explainer = Explainer(
                network, plan.layers, plan.methods, plan.output_gradient, plan.layouts
            )
            self.model = self.stack.enter_context(explainer)
        return self.model


def _done_before(out: str, plan: Plan, scoring: Scoring | None) -> int:
    """How many images need nothing; of one that failed there is nothing to score."""
    records = committed(out)
    indexes = {record.index for record in records}
    scored = shards_scored(out, plan, indexes, scoring) if scoring else indexes
    return sum(
        (record.images if record.index in scored else 0)
        + (record.errors if record.index in scored or plan.keeps_all else 0)
        for record in records
    )


def _finalise(shards: int, out: str, max_error_rate: float) -> int:
    plan = read_plan(out)
    records = committed(out)
    errors = sum(record.errors for record in records if record.run_id == plan.run_id)
    if errors <= _allowed_errors(plan.examples, max_error_rate):
        finalise(out, plan.run_id, plan.shards, plan.planned_maps, _about(plan))
    return shards


def _statistics(shards: int, out: str, scoring: Scoring) -> int:
    write_statistics(out, [record.index for record in committed(out)], scoring)
    return shards


def _is_complete(out: str, plan: Plan, scoring: Scoring | None) -> bool:
    if not files.exists(files.join(out, names.SUCCESS)):
        return False
    if scoring is None:
        return True
    return (
        has_scoring(out, plan, scoring)
        and len(shards_scored(out, plan, range(plan.shards), scoring)) == plan.shards
        and not statistics_problems(out, by_hash=False)
    )


def _about(plan: Plan) -> dict[str, str]:
    """What the dataset card says of the run."""
    settings = plan.settings
    split = f", split {settings['split']}" if settings["split"] else ""
    noted = "; ".join(map(str, plan.notes))
    scored = {"Scored by": ", ".join(plan.metrics)} if plan.metrics else {}
    return {
        "Source": settings["source"] + split,
        "Model": plan.model.name,
        "Classes": ", ".join(role.name for role in plan.roles),
        "Preprocessing": plan.input_in_words,
        **({"Layouts": ", ".join(settings["layout"])} if settings["layout"] else {}),
        **scored,
        **({"Noted": noted} if noted else {}),
        **({} if plan.keeps_all else {"Maps kept": plan.keep}),
    }


def _allowed_errors(examples: int, max_error_rate: float) -> int:
    """One bad image never fails a run, however small, unless the rate is 0."""
    return max(1, int(max_error_rate * examples)) if max_error_rate else 0
