"""Which images of a shard end the process that works on them, found in a process of their own.

    python -m pipeline.workers.isolation OUT DEVICE < requests > reports

The child process makes the maps of one image after the other and keeps none. It reports when it
begins an image and when it is done with it, so that its own end says which image it was. The worker
then does the shard in its usual way without the guilty images. So the maps of the others are, to
the byte, those of a run in which the guilty photos cannot be read.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pipeline.errors import ShardError
from pipeline.images import ImageError, ImageErrorKind
from pipeline.store.records import PlannedExample

ISOLATED_AFTER = 2
"""So many workers must have ended on a shard before its images are tried one by one."""

_ENDS = 2
_START_SECONDS = 300.0  # to import Torch and load the model, on a busy machine
_LOOK_SECONDS = 0.5


def guilty_images(
    out: str,
    index: int,
    planned: Sequence[PlannedExample],
    device: str,
    stall_timeout: float,
    on_wait: Callable[[], None] = lambda: None,
) -> dict[str, ImageError]:
    """The images of shard `index`, whose examples are `planned`, that end their process, by id.

    An image is guilty at which two processes have ended, or have hung for `stall_timeout` seconds
    (0: however long); in the second it was the first image. `on_wait` is called all the while.

    Raises:
        ShardError: every image is guilty, so it is not the images.
    """
    left = list(range(len(planned)))
    ends: Counter[int] = Counter()
    guilty: dict[str, ImageError] = {}
    while left and (end := _first_end(out, index, left, device, stall_timeout, on_wait)):
        ends[end.place] += 1
        left = left[left.index(end.place) :]  # so that it comes first in the next process
        if ends[end.place] == _ENDS:
            guilty[planned[end.place].example.image_id] = ImageError(end.kind, end.how, "isolate")
            del left[0]
    if len(guilty) == len(planned) > 1:
        how = next(iter(guilty.values())).message
        raise ShardError(
            f"each of the {len(planned)} images of shard {index} is to blame ({how}): so it is not "
            "the images. If memory is short, make --workers or --input-size smaller"
        )
    return guilty


@dataclass(frozen=True)
class _End:
    """The end of a process: at which image of the shard, and how."""

    place: int
    kind: ImageErrorKind
    how: str


def _first_end(
    out: str,
    index: int,
    places: Sequence[int],
    device: str,
    stall_timeout: float,
    on_wait: Callable[[], None],
) -> _End | None:
    """Work on these images of the shard in one process; None: it gets through them all."""
    begun: int | None = None
    kind: ImageErrorKind
    with _child(out, device) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"shard": index, "places": list(places)}).encode() + b"\n")
            child.stdin.flush()
        since, allowed = time.monotonic(), stall_timeout + _START_SECONDS
        while True:
            on_wait()
            if select.select([child.stdout], [], [], _LOOK_SECONDS)[0]:
                report = child.stdout.readline()
                if not report:
                    kind, how = "ends_process", f"was ended by {_signal_or_code(child.wait())}"
                    break
                found = json.loads(report)
                if found is None:
                    return None
                begun, since, allowed = found, time.monotonic(), stall_timeout
            elif stall_timeout and time.monotonic() - since > allowed:
                kind, how = "stalled", f"made no progress in {stall_timeout:g} s"
                break
    if begun is None:
        raise ShardError(
            f"the process that is to try the images of shard {index} one by one {how} before the "
            "first of them: it cannot load the model. If memory is short, make --workers smaller"
        )
    return _End(begun, kind, f"its process {how}, with no other image before it")


def _signal_or_code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"its own exit ({code})"


@contextmanager
def _child(out: str, device: str) -> Iterator[subprocess.Popen[bytes]]:
    # The modules of the user are found as this process finds them.
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.workers.isolation", out, device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # what is read ahead would not be seen by select
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def main() -> None:
    """The child: reads a request, and reports the place of each image as it begins; null: all."""
    out, device_name = sys.argv[1:]
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints

    import threading

    import torch

    from pipeline.explain import explain_shard
    from pipeline.plan import read_plan
    from pipeline.store.manifest import Manifest
    from pipeline.workers.one_thread import on_one_thread
    from transforms.engine import Explainer

    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_worker, name="end with worker", daemon=True).start()
    plan = read_plan(out)
    device = torch.device(device_name)
    with (
        on_one_thread(),
        Manifest(out) as manifest,
        torch.accelerator.device_index(device.index),
        Explainer(
            plan.model.load_on(device), plan.layers, plan.methods, plan.output_gradient
        ) as explainer,
    ):
        planned = manifest.shard(request["shard"])
        for place in request["places"]:
            print(json.dumps(place), file=reports, flush=True)
            # What is raised here is raised in the worker too, and told there.
            with suppress(Exception):
                explain_shard(plan, [planned[place]], explainer, device)
    print(json.dumps(None), file=reports, flush=True)


def _end_with_worker() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
