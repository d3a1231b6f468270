"""The failures that a user can do something about, with the exit code of each.

Everything stands on this module: it imports nothing that is slow to load.
"""

from collections.abc import Iterable


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
    """A worker process of the local runner was killed; Beam itself would wait for it forever."""


class DeviceTakenError(BacklightError):
    """Other processes hold every device that a worker process may use."""


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
