"""The failures that a user can do something about, with the exit code of each."""


class BacklightError(Exception):
    """Its message is the user's next step; the command prints it without a traceback."""

    exit_code = 1


class SettingsError(BacklightError, ValueError):
    """A setting is wrong: the message says which, and what is valid. Nothing was done."""

    exit_code = 2


class TooManyErrorsError(BacklightError):
    """More images failed than ``--max-error-rate`` allows; everything else is kept."""

    exit_code = 3


class ShardError(BacklightError):
    """A worker could not do its shard: the message is what it said, such as that a disk is full."""


class JobFailedError(BacklightError):
    """A service or a cluster ended a job as failed: the message is what it said."""


class WorkerSetupError(BacklightError):
    """A worker cannot work where it is: it lacks the storage or the packages of the run."""


class NoWorkersError(BacklightError):
    """A job on a cluster waited for workers in vain, and was cancelled."""


class WorkerDiedError(BacklightError):
    """A worker process of the local runner was killed; Beam itself would wait for it for ever."""


class DeviceTakenError(BacklightError):
    """Every device that a worker process may use is another process's."""
