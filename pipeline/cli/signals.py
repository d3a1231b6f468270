"""SIGTERM and SIGHUP end a command as Ctrl-C does: its workers first, and with what to do next."""

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

from pipeline.errors import Terminated

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 1.5  # no process is left after two


def end_on_signals() -> None:
    """Have the main thread raise `Terminated`, and end the process where it does not get to it.

    It does not while it waits for a disk that hangs. A signal that is ignored, as `nohup` has it,
    stays so.
    """
    numbers = [n for n in _ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    for number in numbers:
        signal.signal(number, _raise)
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    terminal = os.dup(2)  # what is at 2 may be put aside: pipeline.workers.stderr_aside
    arguments = (woken, wakes, set(map(int, numbers)), terminal)
    threading.Thread(target=_watch, args=arguments, name="signals", daemon=True).start()


def in_words(number: int) -> str:
    """What the user reads when the signal of that number has ended the command."""
    return (
        f"ended by {signal.Signals(number).name}; finished shards are kept: run the same command "
        "again to go on"
    )


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def _watch(woken: socket.socket, wakes: socket.socket, numbers: set[int], terminal: int) -> None:
    """Wait for the number of a signal, which the interpreter writes whatever the main thread does.

    `wakes` is held, so that it stays open.
    """
    while (number := woken.recv(1)[0]) not in numbers:
        pass
    time.sleep(_GRACE_SECONDS)
    if workers := sys.modules.get("pipeline.workers.local_workers"):
        workers.kill_all()
    os.write(terminal, f"backlight: error: {in_words(number)}\n".encode())
    os._exit(128 + number)
