"""What every test shares, and how the tests are run.

    uv run pytest                      everything, by as many processes as there are cores, up to 4
    uv run pytest -m "not slow"        the quick loop
    uv run pytest tests/x.py           one file, in this process, as is `-n 0`
    uv run pytest tests/deploy/test_spark.py --spark     on a Spark cluster that it brings up here

A test file runs in one process from its first test to its last (`--dist loadfile`), so that what
its tests share is made once. The files with slow tests come first.

`slow` marks a test that takes more than `SLOW` seconds of one core. A test without the mark fails
when it takes far longer, `CPU_FACTOR` times that in seconds of CPU of its process, since machines
differ and are busy. Fixtures that it is the first to use count, too.

Every process computes on one thread. Where Python is told not to write bytecode, each of the many
processes would compile Torch and Beam again; here it is written all the same, into the environment
and not beside the sources.
"""

import os
import sys
import time
from collections.abc import Generator
from pathlib import Path

# Before Torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(sys.prefix) / "pycache-of-tests")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import pytest

SLOW = 3.0
CPU_FACTOR = 5
MOST_PROCESSES = 4  # each holds Torch and Beam, about a gigabyte

_BEGAN = pytest.StashKey[float]()  # CPU seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spark",
        nargs="?",
        const="one",
        choices=("one", "all"),
        help="bring up a Spark cluster here: one road to it, or all roads and the kills (minutes)",
    )
    parser.addoption(
        "--fiftyone",
        help="a Python that has fiftyone and a database for it, to load what is exported for it",
    )
    parser.addoption("--demo", help="a folder that `backlight demo` wrote, to measure its findings")


def pytest_configure(config: pytest.Config) -> None:
    distributes = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not distributes:
        import torch  # not in the process that only hands out tests

        torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` is: a core each, or none beside this one."""
    files = {argument.partition("::")[0] for argument in config.args}
    is_one_file = len(files) == 1 and files.pop().endswith(".py")
    has_gpus = Path("/dev/nvidiactl").exists()  # which one process claims for itself
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = min(cores or 1, MOST_PROCESSES)
    return 0 if is_one_file or has_gpus or processes == 1 else processes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with most slow tests first, so that none of them is left for the end."""
    slow: dict[Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_BEGAN] = time.process_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that is slow and not marked so."""
    report = yield
    cpu = time.process_time() - item.stash[_BEGAN]
    is_marked = item.get_closest_marker("slow") is not None
    if report.when == "call" and report.passed and cpu > CPU_FACTOR * SLOW and not is_marked:
        report.outcome = "failed"
        report.longrepr = (
            f"took {cpu:.0f} s of CPU with what it was the first to make: mark it slow (more than "
            f"{SLOW:g} s of one core), or make it faster"
        )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables that tests recorded by `record_property("table", text)`."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "table":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, annotations and ImageNet weights; the test is skipped where they are absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BACKLIGHT_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real photos and weights at {path}; set BACKLIGHT_DATA to their folder")
    return path
