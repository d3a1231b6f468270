"""Processes that start at once: forked from one that has imported Torch, Beam and Backlight.

A fresh interpreter needs several seconds of a core for these imports, before it does anything of
its own. `ForkedProcess` takes the command of a fresh interpreter and runs it in a new process
without them. What only the first import of a library does (a warning, a thread) is not seen this
way: tests of the start itself need `subprocess`.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torchvision",
        "apache_beam.runners.portability.local_job_service",
        "apache_beam.runners.worker.sdk_worker",
        "pipeline.store",
        "pipeline.generate",
        "pipeline.evaluate",
    ]
)


class ForkedProcess:
    """A command in a process and a session of its own, with what tests need of `Popen`.

    Attributes:
        pid: of the process, its session and its group.
        args: the command, `[sys.executable, "-c" or "-m", code or module, ...]`.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        largest_file: int | None = None,
    ) -> None:
        """Start the command.

        Args:
            args: see the class.
            env: the whole environment; None: that of this process.
            log: the file for what the command prints; None: `communicate` returns it.
            largest_file: the limit on the size of a file, in bytes.
        """
        assert args[0] == sys.executable, args
        self.args = list(args)
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        out, err = (Path(self._folder.name, name) for name in ("out", "err"))
        self._printed = (log or out, log or err)
        for path in self._printed:
            path.touch()
        given = (self.args[1:], dict(os.environ if env is None else env))
        files = tuple(map(str, self._printed))
        # A daemon: what a test leaves behind ends with the tests.
        self._process = _CONTEXT.Process(
            target=_become, args=(*given, files, largest_file), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the command printed to stdout and stderr, once it has ended."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._printed)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def kill_group(self) -> None:
        """End the process, where it still runs, and all that it started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def run(args: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """The command, ended.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was killed.
    """
    process = ForkedProcess(args)
    try:
        stdout, stderr = process.communicate(timeout)
    finally:
        process.kill_group()
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


def _become(
    args: list[str], environment: dict[str, str], printed: tuple[str, str], largest: int | None
) -> None:
    os.setsid()
    for stream, path in zip((1, 2), printed, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # however the tests were started
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger().handlers.clear()  # Beam's import warns, which installs one
    random.seed()
    how, what, *rest = args
    sys.argv = [what if how == "-m" else how, *rest]
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
