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
    if differing := _other_packages(plan):
        raise WorkerSetupError(
            f"worker {host} has other packages than the plan: {differing}. Install the same "
            "versions in the workers' environment"
        )
    record = {"host": host, "pid": os.getpid(), "python": platform.python_version()}
    name = f"{names.WORKERS}/{host}-{os.getpid()}.json"
    versions = {name: version(name) for name in plan.versions}
    files.write_text(out, name, json.dumps({**record, "versions": versions}))
    return plan


def check_own_packages(out: str, plan: Plan) -> None:
    """Check that this process can work on the run in `out` itself.

    Raises:
        SettingsError: it has other packages than the plan's.
    """
    if differing := _other_packages(plan):
        raise SettingsError(
            f"{out} was made with other packages, which may give other bytes: {differing}. "
            "Install the same versions; nothing was changed"
        )


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


def _other_packages(plan: Plan) -> str:
    """Which packages of this process are not of the plan's release; empty: none."""
    return "; ".join(
        f"{name} {version(name)} instead of {planned}"
        for name, planned in plan.versions.items()
        if _release(version(name)) != _release(planned)
    )


def _release(package_version: str) -> str:
    """Without the local part: 2.13.0+cpu here and 2.13.0+cu130 on the workers are one release."""
    return package_version.partition("+")[0]
