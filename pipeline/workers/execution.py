"""How and where a command runs: the one answer that `generate`, `evaluate` and `reproduce` take.

No part of the plan: it decides no byte of the output. `pipeline.workers.runners.prepare` turns it
into a job that is ready to run. This module loads neither Beam nor torch.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

from pipeline.errors import SettingsError
from pipeline.settings import WHERE, setting

START_SECONDS: float = 300
"""Until the first worker of a job must have started; a cluster brings up machines meanwhile."""

STALL_SECONDS: float = 900
"""How long a shard may make no progress: not one image. A batch of a slow model takes minutes."""


@dataclass(frozen=True)
class Execution:
    """How and where to run; what does not fit is refused when it is made.

    Attributes:
        workers: local worker processes; None: one, or one per GPU of `gpus`.
        gpus: `all`, or indices such as `0,1`: one worker process on each of these GPUs.
        beam_args: options that Beam gets as they are, such as `--runner=PortableRunner`.
        start_timeout: seconds until a job at a job endpoint is cancelled because no worker has
            started. 0: wait forever, and do not check from here whether workers can be reached.
        stall_timeout: seconds without an image of a shard done until its worker is ended. 0: never.
        accelerator: a GPU of Dataflow for each worker that explains, as a resource hint.
    """

    workers: int | None = setting(
        WHERE,
        "local worker processes",
        None,
        metavar="N",
        otherwise="1, or one per GPU of --gpus",
    )
    gpus: str | None = setting(
        WHERE, "GPUs to use, with one local process on each", None, metavar="all|0,1"
    )
    beam_args: tuple[str, ...] = ()
    start_timeout: float = setting(
        WHERE,
        "for a job server: cancel a job that has no worker after this time; 0: wait forever, and "
        "do not check from here whether the workers can be reached",
        START_SECONDS,
        metavar="SECONDS",
    )
    stall_timeout: float = setting(
        WHERE,
        "end a worker whose shard has no image done in this time, and start it again; 0: never",
        STALL_SECONDS,
        metavar="SECONDS",
    )
    accelerator: str | None = setting(
        WHERE,
        "a GPU of Dataflow for each worker that explains, such as "
        "'type:nvidia-l4;count:1;install-nvidia-driver'",
        None,
        metavar="HINT",
    )

    @classmethod
    def given(cls, **settings: Any) -> Self:
        """From flags: a value of None is one that was not given.

        Raises:
            SettingsError: as for the class.
        """
        return cls(**{name: value for name, value in settings.items() if value is not None})

    def __post_init__(self) -> None:
        """Check what can be checked without Beam.

        Raises:
            SettingsError: a number is out of range, or two settings contradict each other.
        """
        if self.beam_args and not self.beam_args[0].startswith("-"):
            raise SettingsError(
                f"unexpected argument {self.beam_args[0]!r}; valid: one OUT, then -- and options "
                "of Beam"
            )
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"--workers must be at least 1, not {self.workers}")
        if self.workers is not None and self.workers > 1 and self.chooses_runner:
            raise SettingsError("--workers is for the local runner; give --runner its own option")
        for name, seconds in (("start", self.start_timeout), ("stall", self.stall_timeout)):
            if not seconds >= 0:
                raise SettingsError(f"--{name}-timeout must be at least 0 seconds, not {seconds:g}")

    @property
    def chooses_runner(self) -> bool:
        """Whether `beam_args` name a runner, which then has workers of its own."""
        return any(arg == "--runner" or arg.startswith("--runner=") for arg in self.beam_args)

    def without_gpus(self) -> Self:
        """The same for work that needs no GPU."""
        return replace(self, gpus=None, accelerator=None)


HERE = Execution()
"""On this machine, in one process."""
