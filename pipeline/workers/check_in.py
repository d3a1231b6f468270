"""What a worker process does first: it checks that it can work, and leaves a record in OUT.

By these records `pipeline.workers.watchdog` knows whether a job has workers or still waits for
them. What is checked before the start, where the command runs, is in `pipeline.workers.job_checks`.
"""

import json
import os
import platform
from importlib.metadata import version

from pipeline import files
from pipeline.errors import SettingsError, WorkerSetupError
from pipeline.plan import Plan, read_plan
from pipeline.store import names


def check_in(out: str) -> Plan:
    """Check that this worker can work on the run in `out`, and record it; returns the plan.

    Raises:
        WorkerSetupError: this machine does not see OUT, or has other packages than the plan's.
    """
    host = platform.node()
    try:
        plan = read_plan(out)
    except (SettingsError, OSError) as error:
        raise WorkerSetupError(
            f"worker {host} finds no run in {out}: OUT must be on storage that the workers share "
            "with the machine that submits, under the same path"
        ) from error
    own = {name: version(name) for name in plan.versions}
    differing = [
        f"{name} {own[name]} there, {planned} here"
        for name, planned in plan.versions.items()
        if _release(own[name]) != _release(planned)
    ]
    if differing:
        raise WorkerSetupError(
            f"worker {host} has other packages than the plan: {'; '.join(differing)}. Install the "
            "same versions in the workers' environment"
        )
    record = {"host": host, "pid": os.getpid(), "python": platform.python_version()}
    name = f"{names.WORKERS}/{host}-{os.getpid()}.json"
    files.write_text(out, name, json.dumps({**record, "versions": own}))
    return plan


def check_photos(plan: Plan) -> None:
    """Check that this worker sees the folder of the photos; without it, every photo would fail.

    Raises:
        WorkerSetupError: it does not.
    """
    root = plan.root
    if not files.is_object_store(root) and not os.path.isdir(root):
        raise WorkerSetupError(
            f"worker {platform.node()} has no folder {root}: --root must be on storage that the "
            "workers share with the machine that submits, under the same path"
        )


def has_checked_in(out: str) -> bool:
    """Whether a worker of the job has started."""
    return bool(files.listing(out, names.WORKERS))


def forget_check_ins(out: str) -> None:
    """Delete the records of the workers of an earlier job."""
    files.delete(files.join(out, names.WORKERS))


def _release(package_version: str) -> str:
    """Without the local part: 2.13.0+cpu here and 2.13.0+cu130 on the workers are one release."""
    return package_version.partition("+")[0]
