"""Progress of long work, from its first second: the phases before it, then image by image.

Images are counted by the records in OUT, so that it works with every runner.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

LOADING = "loading PyTorch and Beam"
"""The first phase of most commands: their imports."""

_LINE_SECONDS = 10.0
_FIRST_LINE_SECONDS = 2.0
_PAUSE = 20  # times as long as the last look took


class _Time(TimeElapsedColumn):
    """How long a phase takes already; of images, how long they still take."""

    def render(self, task: Task) -> Text:
        """`0:00:07`, or `0:01:20 left`."""
        return super().render(task) if task.total is None else Text(task.fields["left"])


class RunProgress:
    """A bar with rate and time left on a terminal; elsewhere a line every ten seconds.

    A phase is a bar without an end, or a line. The first line of images comes after two seconds.

    Args:
        console: where to write; a quiet one shows nothing.
        what: the work, in a word.
        unit: what is counted.
        done: returns how many are done since the start; called at most twice per second, and so
            rarely that it takes at most a twentieth of the time. None: those that `add` counts.
    """

    def __init__(
        self, console: Console, what: str, unit: str, done: Callable[[], int] | None = None
    ) -> None:
        self._console = console
        self._added = 0
        self._done = done or (lambda: self._added)
        self._what, self._unit = what, unit
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            _Time(),
            console=console,
            disable=not console.is_terminal,
            # What others print there is not for the terminal: see pipeline.workers.stderr_aside.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(what, total=None, visible=False, count="", rate="", left="")
        self._phase = ""
        self._due = self._printed = 0.0
        self._started, self._first, self._seen, self._total = 0.0, 0, 0, 0

    def phase(self, name: str) -> None:
        """Say what is being done, where it is no work on images; it ends with the next phase."""
        if name == self._phase:
            return
        self._phase = name
        self._bar.update(self._task, description=f"{self._what}: {name}", visible=True)
        if not self._console.is_terminal:
            self._console.print(f"{self._what}: {name}", highlight=False, markup=False)

    def start(self, total: int, before: int = 0) -> None:
        """Begin: there are `total` to do, and `before` of them were done earlier.

        The last phase is shown until the first is done.
        """
        self._total, self._added = total, 0
        self._started = time.monotonic()
        self._printed = self._started + _FIRST_LINE_SECONDS - _LINE_SECONDS
        self._first = self._seen = min(before, total)
        self._bar.reset(self._task, total=total, completed=self._first, visible=True)
        self._bar.update(self._task, count=self._count())

    def add(self, more: int = 1) -> None:
        """Count `more` that are done, and show how far it is."""
        self._added += more
        self.poll()

    def poll(self) -> None:
        """Show how far it is; cheap enough to call in a loop."""
        now = time.monotonic()
        if not self._total or now < self._due:
            return
        # The records may be gone before the work is.
        self._seen = max(self._seen, min(self._first + self._done(), self._total))
        self._due = now + max(0.5, _PAUSE * (time.monotonic() - now))
        self._show(now)
        if self._seen == self._total:
            self.phase("finishing")

    def finish(self) -> None:
        """Show that all is done; nothing where nothing was begun."""
        if self._total:
            if self._seen < self._total:
                self._seen = self._total
                self._show(time.monotonic())
            self._bar.update(self._task, description=self._what)

    def _count(self) -> str:
        return f"{self._seen:,}/{self._total:,} {self._unit}"

    def _show(self, now: float) -> None:
        done = self._seen
        rate = (done - self._first) / max(now - self._started, 1e-9)
        number = f"{rate:.2g}" if rate < 10 else f"{rate:,.0f}"
        text = f"{number} {self._unit}/s" if rate else ""
        seconds = (self._total - done) / rate if rate else 0.0
        left = f"{timedelta(seconds=round(seconds))} left" if rate else ""
        self._bar.update(self._task, completed=done, rate=text, left=left, count=self._count())
        if self._phase and self._first < done < self._total:
            self._phase = ""
            self._bar.update(self._task, description=self._what)
        if not self._console.is_terminal and now - self._printed >= _LINE_SECONDS:
            self._printed = now
            rest = f", {text}, {seconds:,.0f} s left" if rate else ""
            self._console.print(
                f"{self._what}: {self._count()}{rest}",
                highlight=False,
            )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
