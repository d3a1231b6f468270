"""The failures that a user can do something about, with the exit code of each.

Everything stands on this module: it imports nothing that is slow to load.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class BacklightError(Exception):
    """Its message is the user's next step; the command prints it without a traceback."""

    exit_code = 1


class SettingsError(BacklightError, ValueError):
    """A setting is wrong: the message says which, and what is valid. Nothing was done."""

    exit_code = 2


class TooManyErrorsError(BacklightError):
    """More images failed than `--max-error-rate` allows; everything else is kept."""

    exit_code = 3


class ShardError(BacklightError):
    """A worker could not do its shard: the message is what it said, such as that a disk is full."""


class InputChangedError(BacklightError):
    """The weights or a photo are not those that the run was begun with."""


class JobFailedError(BacklightError):
    """A service or a cluster ended a job as failed: the message is what it said."""


class WorkerSetupError(BacklightError):
    """A worker cannot work where it is: it lacks the storage or the packages of the run."""


class UnreadableFileError(BacklightError, ValueError):
    """A file that Backlight wrote cannot be understood: the message says which, and what to do."""


class NoWorkersError(BacklightError):
    """No worker of a job on a cluster started in time, and the job was cancelled."""


class WorkerDiedError(BacklightError):
    """Worker processes ended, or hung, again and again: more often than they are started again."""


class StalledError(BacklightError):
    """The work of this process makes no progress, and nothing can end it but the process's end."""


class NoMemoryError(BacklightError):
    """There is too little memory: the message says what to make smaller."""


class OutTakenError(BacklightError):
    """Another command writes to OUT: the message says whose; nothing was done."""

    exit_code = 2


class OutLostError(BacklightError):
    """Another command took OUT over, because this one seemed to be dead."""


class DeviceTakenError(BacklightError):
    """Other processes hold every device that a worker process may use."""


class LockFolderError(BacklightError):
    """What is in the place of the folder of locks is not this user's own."""


class Terminated(BaseException):
    """A signal ends the command, which ends its workers first, as KeyboardInterrupt does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def print_fault(text: str) -> None:
    """Say on stderr that something went wrong and was put right, or is still going on."""
    print(f"backlight: {text}", file=sys.stderr, flush=True)


@contextmanager
def memory_told(smaller: str) -> Iterator[None]:
    """Turn the many exceptions of too little memory into one that says what to make smaller.

    Raises:
        NoMemoryError: in the place of such an exception.
    """
    # Here, so that this module loads where a module of the user hides `transforms`.
    from transforms.memory import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise NoMemoryError(
            f"there is too little memory{f' ({reason})' if reason else ''}: make {smaller}. "
            "Finished shards are kept: run the command again to go on"
        ) from error


def check_choice(setting: str, value: str, valid: Iterable[str]) -> None:
    """Check that `value` is one of `valid`.

    Raises:
        SettingsError: it is not; the message names the nearest valid value.
    """
    choices = tuple(valid)
    if value not in choices:
        # Here, so that this module loads where a module of the user hides `transforms`.
        from transforms.names import unknown_name

        raise SettingsError(unknown_name(setting, value, choices))
