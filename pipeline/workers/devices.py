"""What a process computes on: one GPU, or its share of the cores.

A worker is a process on any runner, and no runner tells it which GPU is its own: each claims one of
its host's. On a CPU machine the worker processes of a run share its cores in the same way.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from pipeline.errors import SettingsError
from pipeline.workers.execution import Execution
from pipeline.workers.process_lock import claim


@dataclass(frozen=True)
class Devices:
    """What the worker processes of a run may claim, one each.

    Attributes:
        device: auto, cpu, or cuda.
        gpus: the GPUs to choose from, by torch's index; None: all that a worker's host has.
        workers: the number of processes that share this machine's cores where no GPU is used.
        folder: where they lock the cores: on this machine, and of this run alone. Empty for one
            worker, which needs none.
    """

    device: str = "auto"
    gpus: tuple[int, ...] | None = None
    workers: int = 1
    folder: str = ""

    @contextmanager
    def claimed(self) -> Iterator["Claimed"]:
        """This process's device, for as long as the block lasts.

        A GPU is locked for all runs of this user on this host, by its own name: what
        `CUDA_VISIBLE_DEVICES` is in each process does not matter. All blocks of a process that
        choose among the same devices share one claim.

        Raises:
            SettingsError: a GPU was asked for and is absent.
            DeviceTakenError: other processes hold all of them.
        """
        if resolve_device(self.device).type == "cuda":
            indices = choose_gpus(self.gpus, torch.cuda.device_count())
            with claim([_gpu_name(i) for i in indices], _user_folder()) as which:
                device = torch.device("cuda", indices[which])
                yield Claimed(device, f"{device}, {torch.cuda.get_device_name(device)}")
        elif self.workers > 1 and hasattr(os, "sched_setaffinity"):
            slices = core_slices(sorted(os.sched_getaffinity(os.getpid())), self.workers)
            names = [f"slice {i}" for i in range(self.workers)]
            with claim(names, Path(self.folder)) as which, _pinned(slices[which]):
                cores = ",".join(map(str, slices[which]))
                yield Claimed(torch.device("cpu"), f"cpu, cores {cores}")
        else:
            yield Claimed(torch.device("cpu"), "cpu")


@dataclass(frozen=True)
class Claimed:
    """The device of a process, and its name for the commit records."""

    device: torch.device
    name: str


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        SettingsError: `cuda` was asked for and is absent; never a silent run on the CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(_NO_CUDA)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def parse_gpus(gpus: str) -> tuple[int, ...] | None:
    """`(0, 1)` for `0,1`; None for `all`.

    Raises:
        SettingsError: neither.
    """
    if gpus == "all":
        return None
    indices = [part.strip() for part in gpus.split(",")]
    if not all(map(str.isdecimal, indices)) or len(set(map(int, indices))) < len(indices):
        raise SettingsError(f"--gpus {gpus!r}: valid: all, or distinct indices such as 0,1")
    return tuple(map(int, indices))


def choose_gpus(gpus: Sequence[int] | None, available: int) -> tuple[int, ...]:
    """The indices to choose from, where there are `available` GPUs; None stands for all.

    Raises:
        SettingsError: there is no GPU, or an index is absent.
    """
    present = range(available)
    if not available:
        raise SettingsError(
            "GPUs were asked for and torch sees none here (CUDA_VISIBLE_DEVICES is "
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); leave --gpus out"
        )
    if absent := [i for i in gpus or () if i not in present]:
        raise SettingsError(
            f"--gpus: no GPU {', '.join(map(str, absent))} here; valid: all, or any of "
            f"{', '.join(map(str, present))}"
        )
    return tuple(present if gpus is None else gpus)


def plan_devices(device: str, execution: Execution, available: int | None) -> Devices:
    """What a run's workers may claim, and how many there are: with `gpus`, one process per GPU.

    `available` counts this machine's GPUs; None: the workers run elsewhere, and count their own.

    Raises:
        SettingsError: the settings do not fit each other, or this machine.
    """
    workers = 1 if execution.workers is None else execution.workers
    if device == "cuda" and available == 0:
        raise SettingsError(_NO_CUDA)
    if execution.gpus is None:
        if device != "cpu" and available and available < workers:
            raise SettingsError(
                f"--workers {workers} would share {available} GPU{'s' * (available > 1)}; valid: "
                f"--workers up to {available}, --gpus all, or --device cpu"
            )
        return Devices(device, workers=workers)
    if device == "cpu":
        raise SettingsError("--gpus does not go with --device cpu; leave one of them out")
    chosen = parse_gpus(execution.gpus)
    if available is None:
        return Devices("cuda", chosen, workers=workers)
    chosen = choose_gpus(chosen, available)
    if execution.workers not in (None, len(chosen)):
        raise SettingsError(
            f"--gpus {execution.gpus} is {len(chosen)} here, with one worker process each, not "
            f"--workers {workers}; leave --workers out"
        )
    return Devices("cuda", chosen, workers=len(chosen))


_NO_CUDA = "device cuda was asked for and is absent; valid here: auto, cpu"


def core_slices(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """`count` slices of the cores, as equal as possible; one core each where there are too few."""
    if count >= len(cores):
        return [(cores[i % len(cores)],) for i in range(count)]
    bounds = [len(cores) * i // count for i in range(count + 1)]
    return [tuple(cores[a:b]) for a, b in pairwise(bounds)]


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps all threads of this process, and those that they start, on these cores."""
    before = os.sched_getaffinity(os.getpid())
    try:
        _pin(cores)
        yield
    finally:
        _pin(before)


def _pin(cores: Sequence[int] | set[int]) -> None:
    # Affinity is a thread's own; a thread may have ended since it was listed.
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            continue


def _gpu_name(index: int) -> str:
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _user_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"backlight-{os.getuid()}"
