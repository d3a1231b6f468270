"""Do commands end with the exit code that they say, also after everything is written?

    uv run python tests/benchmarks/clean_exits.py [--count 200] [--only evaluate,maps]

Runs `generate`, `evaluate`, `show`, `verify` and a script that reads with MapDataset so many times
each, on a small run of the tests' network, and prints every exit code with how often it came. A
thread of a library that outlives its work may abort the process while the interpreter ends, so what
counts is the end of a process. Each try is a process of its own, forked from one that has imported
the packages and has started no thread: it ends as any interpreter does, and saves the imports.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pipeline")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
LONGEST = 300  # seconds of one try

Try = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="tries of each")
    parser.add_argument("--only", help="comma-separated names of what to try")
    parser.add_argument("--out", help="an OUT to read and evaluate, instead of the one made here")
    options = parser.parse_args()
    import_all()
    if threading.active_count() > 1:
        sys.exit(f"threads before the first fork: {threading.enumerate()}")
    # no context manager: a forked process would leave it, too, and delete the folder
    folder = tempfile.mkdtemp(prefix="backlight-exits-")
    tries = make_tries(Path(folder), options.out)
    failed = False
    for name in options.only.split(",") if options.only else tries:
        began = time.monotonic()
        codes = Counter(exit_code(*tries[name]) for _ in range(options.count))
        seconds = (time.monotonic() - began) / options.count
        print(f"{name:10} {seconds:5.1f} s each; exit codes: {dict(codes)}", flush=True)
        failed |= set(codes) != {0}
    shutil.rmtree(folder)
    sys.exit(1 if failed else 0)


def import_all() -> None:
    import pipeline.evaluate
    import pipeline.generate
    import pipeline.report.pictures
    import pipeline.store.verify  # noqa: F401

    with suppress(ImportError):
        import pandas  # noqa: F401, where it is installed, pyarrow imports it


def make_tries(folder: Path, given: str | None) -> dict[str, tuple[Try, Try]]:
    """Name -> what to do before a try, and the try."""
    out, copy, new = str(folder / "out"), str(folder / "copy"), str(folder / "new")
    photos = folder / "photos"
    if exit_code(nothing, lambda: draw(photos)) or (
        not given and exit_code(nothing, lambda: command(*generating(photos, out)))
    ):
        sys.exit("could not make the run to try on")
    source = given or out
    image_id = first_image(folder, source)
    if exit_code(nothing, lambda: command("evaluate", "--quiet", source)):
        sys.exit("could not evaluate the run to try on")

    def afresh() -> None:
        shutil.rmtree(new, ignore_errors=True)

    def copied() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        shutil.rmtree(f"{copy}/scores", ignore_errors=True)
        Path(copy, "_meta", "evaluation.json").unlink(missing_ok=True)

    return {
        "generate": (afresh, lambda: command(*generating(photos, new))),
        "evaluate": (copied, lambda: command("evaluate", "--quiet", copy)),
        "show": (nothing, lambda: command("show", source, image_id)),
        "verify": (nothing, lambda: command("verify", source)),
        "maps": (nothing, lambda: read_maps(source, image_id)),
    }


def exit_code(before: Try, attempt: Try) -> int:
    """How a process ends that runs `attempt`; minus a signal's number where one killed it."""
    before()
    child = os.fork()
    if child:
        until = time.monotonic() + LONGEST
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        return -9
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    # A `SystemExit` that reaches the top of a forked process ends it as it would a fresh one:
    # threads are joined, atexit runs, and the interpreter is taken down.
    attempt()
    sys.exit(0)


def nothing() -> None:
    pass


def draw(photos: Path) -> None:
    from tiny_network import draw_set

    draw_set(photos)


def generating(photos: Path, out: str) -> tuple[str, ...]:
    settings = {
        "source": "imagefolder",
        "root": str(photos),
        "model": "tiny_network:tiny",
        "methods": "gradient,normgrad,grad_cam",
        "format": "parquet,webdataset",
        "input-size": "32",
        "shard-size": "2",
    }
    return "generate", "--quiet", *(f"--{name}={value}" for name, value in settings.items()), out


def command(*arguments: str) -> None:
    """As the `backlight` command, which ends the process."""
    from pipeline.cli import main as backlight

    sys.argv = ["backlight", *arguments]
    backlight()


def first_image(folder: Path, out: str) -> str:
    """Read in a process of its own, since pyarrow starts threads."""
    note = folder / "image_id"

    def read() -> None:
        from pipeline.store import MapDataset

        note.write_text(MapDataset(out).images()["image_id"][0].as_py())

    if exit_code(nothing, read):
        sys.exit(f"could not read {out}")
    return note.read_text()


def read_maps(out: str, image_id: str) -> None:
    """What a user's script does: filters, and the end of the script right after."""
    from pipeline.store import MapDataset

    dataset = MapDataset(out)
    methods = dataset.commits[0].names["method"]
    dataset.maps(method=methods[0])
    dataset.scores(metric="class_sensitivity", method=methods[0])
    dataset.maps(image_id=image_id)


if __name__ == "__main__":
    main()
