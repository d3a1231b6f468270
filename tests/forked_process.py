"""Processes that start at once: forked from one that has imported Torch, Beam and Backlight.

A fresh interpreter needs several seconds of a core for these imports, before it does anything of
its own. `ForkedProcess` takes the command of a fresh interpreter and runs it in a new process
without them. What only the first import of a library does (a warning, a thread) is not seen this
way: tests of the start itself need `subprocess`.

A forked command forks its workers too, and they those in which they try images one by one.
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
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import IO

from pipeline.workers import isolation, local_workers

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torchvision",
        "apache_beam.runners.portability.local_job_service",
        "apache_beam.runners.worker.sdk_worker",
        "pipeline.store",
        "pipeline.generate",
        "pipeline.evaluate",
        "forked_process",
    ]
)


@dataclass(frozen=True)
class _Start:
    """What a new process becomes.

    Attributes:
        args: after the interpreter.
        environment: all of it.
        folder: the current one.
        printed: the files of its stdout and stderr.
        pipes: what takes the place of such a stream, by its number.
        group: the process group; 0: one of its own.
        largest_file: the limit on the size of a file, in bytes.
        forks_workers: or they are fresh interpreters.
    """

    args: list[str]
    environment: dict[str, str]
    folder: str
    printed: tuple[str, str]
    pipes: dict[int, connection.Connection]
    group: int
    largest_file: int | None
    forks_workers: bool


_own: _Start | None = None
"""How this process was forked; None in that of the tests."""


class ForkedProcess:
    """A command in a process and a group of its own, with what tests and workers need of `Popen`.

    Where a forked process starts one, that is in its group and prints where it prints.

    Attributes:
        pid: of the process and its group.
        args: the command, `[sys.executable, "-c" or "-m", code or module, ...]`.
        stdin, stdout: this process's ends of the pipes that were asked for.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        largest_file: int | None = None,
        forks_workers: bool = True,
        stdin: int | None = None,
        stdout: int | None = None,
        bufsize: int = -1,
    ) -> None:
        """Start the command.

        Args:
            args: see the class.
            env: the whole environment; None: that of this process.
            log: the file for what the command prints; None: `communicate` returns it.
            largest_file: the limit on the size of a file, in bytes.
            forks_workers: or the worker processes of the command are fresh interpreters.
            stdin: `subprocess.PIPE`, or nothing.
            stdout: `subprocess.PIPE`, or a file.
            bufsize: of these pipes, as for `open`.
        """
        assert args[0] == sys.executable, args
        self.args = list(args)
        self._reading = threading.Lock()  # of the exit code, which can be read once
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        if _own:
            self._printed = _own.printed
        else:
            out, err = (log or Path(self._folder.name, name) for name in ("out", "err"))
            self._printed = (str(out), str(err))
        for path in self._printed:
            Path(path).touch()
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        theirs: dict[int, connection.Connection] = {}
        if stdin == subprocess.PIPE:
            theirs[0], ours = _CONTEXT.Pipe(duplex=False)
            self.stdin = _file(ours, "wb", bufsize)
        if stdout == subprocess.PIPE:
            ours, theirs[1] = _CONTEXT.Pipe(duplex=False)
            self.stdout = _file(ours, "rb", bufsize)
        start = _Start(
            args=self.args[1:],
            environment=dict(os.environ if env is None else env),
            folder=os.getcwd(),
            printed=self._printed,
            pipes=theirs,
            group=os.getpgrp() if _own else 0,
            largest_file=largest_file,
            forks_workers=forks_workers,
        )
        # A daemon: what a test leaves behind ends with the tests.
        self._process = _CONTEXT.Process(target=_become, args=(start,), daemon=True)
        self._process.start()
        for end in theirs.values():
            end.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._reading:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the command printed to the files of stdout and stderr, once it has ended."""
        for pipe in (self.stdin, self.stdout):
            if pipe is not None:
                pipe.close()
        self.wait(timeout)
        out, err = (Path(path).read_text() for path in self._printed)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """End the process, where it still runs, and all that it started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        self.wait()


def _file(end: connection.Connection, mode: str, buffering: int) -> IO[bytes]:
    """The end of a pipe as a file."""
    file = os.fdopen(os.dup(end.fileno()), mode, buffering)
    end.close()
    return file


def fork_workers(patch: Callable[[object, str, object], None]) -> None:
    """Have this process fork the workers of the local runner, and those that try images singly."""
    forking = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedProcess})
    for module in (local_workers, isolation):
        patch(module, "subprocess", forking)


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


def _become(start: _Start) -> None:
    global _own
    _own = start
    os.setpgid(0, start.group)
    os.chdir(start.folder)
    for stream, path in zip((1, 2), start.printed, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    for stream, end in start.pipes.items():
        os.dup2(end.fileno(), stream)
        end.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if start.largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (start.largest_file, start.largest_file))
    # However the tests were started: by nohup, for one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(start.environment)
    logging.getLogger().handlers.clear()  # Beam's import warns, which installs one
    random.seed()
    if start.forks_workers:
        # It forks from the server that it comes from, though Python would start another.
        multiprocessing.current_process().daemon = False
        forkserver._forkserver.ensure_running = lambda: None
        fork_workers(setattr)
    how, what, *rest = start.args
    sys.argv = [what if how == "-m" else how, *rest]
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
