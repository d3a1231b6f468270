"""Progress image by image: what the workers count, and how often it is looked at and shown."""

import io
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tiny_network import draw_set, run_config

from pipeline import progress
from pipeline.config import RunConfig
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import Plan
from pipeline.progress import RunProgress
from pipeline.store import names
from pipeline.workers.execution import Execution
from pipeline.workers.image_count import ImageCount, forget_counts, images_counted


@pytest.mark.parametrize(("look", "looks"), [(0.0, 200), (1.0, 5)])
def test_looking_takes_at_most_a_twentieth_of_the_time(
    look: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 100 seconds of a clock that each look sets forward."""
    now = 1000.0
    seen = 0

    def done() -> int:
        nonlocal now, seen
        now += look
        seen += 1
        return seen

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    run = RunProgress(Console(file=io.StringIO()), "generate", "images", done)
    run.start(10_000)
    while now < 1100:
        now += 0.125
        run.poll()
    assert looks - 2 <= seen <= looks + 2


class Clock:
    """Stands still until a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_the_first_line_comes_after_two_seconds_and_the_next_after_ten_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    run = RunProgress(Console(file=text), "evaluate", "images", lambda: int(clock.now - 1000))
    run.start(100, before=10)
    came_at, lines = [], 0
    while clock.now < 1030:
        clock.now += 0.25
        run.poll()
        if (seen := text.getvalue().count("\n")) > lines:
            came_at.append(clock.now - 1000)
            lines = seen
    first, second, third = came_at
    assert 2 <= first <= 2.5
    assert 10 <= second - first <= 10.5
    assert 10 <= third - second <= 10.5
    # It comes at 2.25 s: two images since the start, and 88 to do at 2/2.25 per second.
    assert text.getvalue().splitlines()[0] == "evaluate: 12/100 images, 0.89 images/s, 99 s left"


def test_progress_never_goes_back_and_ends_at_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are deleted before the command that reads them ends."""
    clock, text = Clock(monkeypatch), io.StringIO()
    counts = iter([30, 60, 0, 0])
    run = RunProgress(Console(file=text), "evaluate", "images", lambda: next(counts))
    with run:
        run.start(100, before=10)
        for _ in range(4):
            clock.now += 10
            run.poll()
        clock.now += 10
        run.finish()
    shown = [line.split()[1] for line in text.getvalue().splitlines()]
    assert shown == ["40/100", "70/100", "70/100", "70/100", "100/100"]


def test_in_a_pipe_each_phase_is_a_line_and_nothing_is_written_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    with RunProgress(Console(file=text), "generate", "images", lambda: 4) as run:
        for phase in ("loading", "loading", "reading the set", "starting the workers"):
            run.phase(phase)
        run.start(4)
        clock.now += 3
        run.poll()
        run.finish()
    assert text.getvalue().splitlines() == [
        "generate: loading",
        "generate: reading the set",
        "generate: starting the workers",
        "generate: 4/4 images, 1.3 images/s, 0 s left",
        "generate: finishing",
    ]
    assert not set(text.getvalue()) & set("\r\x1b")


def test_on_a_terminal_a_phase_is_shown_until_the_first_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    done = 0
    console = Console(file=text, force_terminal=True, width=120, color_system=None)

    def shown() -> str:
        text.truncate(text.seek(0))
        run._bar.refresh()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[━╸╺]", "", text.getvalue()).strip()

    with RunProgress(console, "evaluate", "images", lambda: done) as run:
        run.phase("loading the model")
        assert re.match(r"evaluate: loading the model +\d:\d\d:\d\d", shown())
        run.start(10)
        assert re.match(r"evaluate: loading the model +0/10 images", shown())
        done = 5
        clock.now += 10
        run.poll()
        assert re.match(r"evaluate +5/10 images +0.5 images/s +0:00:10 left", shown())
        done = 10
        clock.now += 10
        run.poll()
        assert re.match(r"evaluate: finishing +10/10 images", shown())
        run.finish()
        assert re.match(r"evaluate +10/10 images", shown())


def test_a_quiet_console_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    for is_terminal in (True, False):
        console = Console(file=text, quiet=True, force_terminal=is_terminal)
        with RunProgress(console, "generate", "images", lambda: 1) as run:
            run.phase("loading")
            run.start(2)
            clock.now += 20
            run.poll()
            run.finish()
    assert text.getvalue() == ""


def test_where_nothing_was_begun_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    with RunProgress(Console(file=text), "generate", "images", lambda: 0) as run:
        clock.now += 60
        run.poll()
        run.finish()
    assert text.getvalue() == ""


def test_a_worker_writes_its_count_at_once_and_then_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, out = Clock(monkeypatch), str(tmp_path)
    count = ImageCount(out, names.SCORED)
    seen = []
    for _ in range(5):
        count.add()
        seen.append(images_counted(out, names.SCORED))
        clock.now += 0.5
    assert seen == [1, 1, 3, 3, 5]
    other = ImageCount(out, names.SCORED)
    other.add(4)
    assert images_counted(out, names.SCORED) == 9
    assert images_counted(out, names.MADE) == 0
    forget_counts(out, names.MADE)
    assert images_counted(out, names.SCORED) == 9
    forget_counts(out, names.SCORED)
    assert images_counted(out, names.SCORED) == 0


def test_a_count_that_cannot_be_read_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the job deletes it, and a store may not answer: the work goes on."""
    out = str(tmp_path)
    ImageCount(out, names.MADE).add(2)
    assert images_counted(out, names.MADE) == 2

    def broken(*_: str) -> str:
        raise OSError("no answer")

    for what in ("read_text", "listing"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.files.{what}", broken)
            assert images_counted(out, names.MADE) == 0


IMAGES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("progress") / "set", IMAGES)


def config_of(root: Path, **changes: object) -> RunConfig:
    """Two shards of six images, one image in each batch."""
    given = {"model": "tiny_network:pausing", "shard_size": 6, "batch_size": 1, "limit": IMAGES}
    return run_config(root, **{**given, **changes})


class Watch:
    """What a command reports: its phases, the total, what was done before, and every count."""

    def __init__(self, out: Path, folder: str) -> None:
        self._out, self._folder = str(out), folder
        self.total = self.before = -1
        self.counts: list[int] = []
        self.phases: list[str] = []

    def start(self, what: Plan | int, before: int) -> None:
        self.total = what if isinstance(what, int) else what.examples
        self.before = before

    def poll(self) -> None:
        self.counts.append(images_counted(self._out, self._folder))


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_report_the_images_of_their_shards_one_by_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image takes half a second or more, and a shard three; counts are written every second."""
    monkeypatch.setenv("TINY_NETWORK_PAUSE", "0.5")
    out = tmp_path / "out"
    made = Watch(out, names.MADE)
    generate(config_of(root), str(out), Execution(workers=2), on_start=made.start,
             on_poll=made.poll)  # fmt: skip
    assert (made.total, made.before) == (IMAGES, 0)
    assert len({count for count in made.counts if 0 < count < IMAGES}) >= 2
    assert not (out / "_tmp").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_two_workers_report_the_images_that_they_score_one_by_one(
    root: Path, tmp_path: Path
) -> None:
    """The maps of an image take about half a second to rank at 896 x 896 pixels."""
    out = tmp_path / "out"
    generate(config_of(root, input_size=896), str(out))
    scored = Watch(out, names.SCORED)
    evaluate(
        str(out),
        Execution(workers=2),
        metrics=["class_correlation", "class_sensitivity", "class_sensitivity_native"],
        replicates=10,
        on_start=scored.start,
        on_poll=scored.poll,
    )
    assert (scored.total, scored.before) == (IMAGES, 0)
    assert len({count for count in scored.counts if 0 < count < IMAGES}) >= 2
    assert not (out / "_tmp").exists()


def test_a_resumed_run_starts_at_what_is_done(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(config_of(root), str(out))
    metrics = ["class_sensitivity"]
    evaluate(str(out), metrics=metrics, replicates=10)
    next((out / "scores").glob("*00001-of*")).unlink()
    scored = Watch(out, names.SCORED)
    evaluate(str(out), metrics=metrics, replicates=10, on_start=scored.start, on_poll=scored.poll)
    assert (scored.total, scored.before) == (IMAGES, 6)
    assert max(scored.counts, default=0) <= 6
    (out / "_meta" / "shards" / "00001.json").unlink()
    (out / "_SUCCESS").unlink()
    made = Watch(out, names.MADE)
    generate(config_of(root), str(out), on_phase=made.phases.append, on_start=made.start,
             on_poll=made.poll)  # fmt: skip
    assert (made.total, made.before) == (IMAGES, 6)
    assert made.phases == [
        "loading the model",
        "reading the set",
        "checking the model on the first photos",
        "looking at what is there",
        "checking the photos",
        "starting the workers",
    ]


def test_a_finished_run_that_is_to_be_scored_starts_at_its_errors(
    root: Path, tmp_path: Path
) -> None:
    """Nothing of the images is scored; of one that failed there is nothing to score."""
    broken = Path(shutil.copytree(root, tmp_path / "set"))
    next(broken.rglob("photo4.png")).write_bytes(b"broken")
    out = tmp_path / "out"
    generate(config_of(broken), str(out))
    made = Watch(out, names.MADE)
    scored = config_of(broken, evaluate=["class_sensitivity"])
    generate(scored, str(out), on_start=made.start, on_poll=made.poll)
    assert (made.total, made.before) == (IMAGES, 1)
    generate(scored, str(out), on_start=lambda plan, before: pytest.fail("nothing was to be done"))
