"""Reading OUT is light: what it imports."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    *("apache_beam", "torch", "torchvision", "PIL", "pycocotools"),
    *("pandas", "webdataset", "scipy"),
)


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    ending = f"import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_the_probe_sees_what_is_loaded():
    assert loaded_by("import PIL.Image") == {"PIL"}


LIGHT = (
    "pipeline.errors",
    "pipeline.files",
    "pipeline.progress",
    "pipeline.shadowing",
    "pipeline.sources",
    "pipeline.store.formats",
    "pipeline.store.shard",
    "pipeline.store.verify",
    "pipeline.store.outline",
    "pipeline.estimate.costs",
    "pipeline.estimate.gpus",
    "pipeline.report.amounts",
    "pipeline.report.cost_tables",
    "pipeline.report.figure_table",
    "pipeline.workers.execution",
    "pipeline.workers.process_lock",
    "pipeline.workers.stderr_aside",
)


def test_importing_them_loads_neither_torch_nor_beam():
    """One after the other, so that the first that does is named."""
    code = (
        "import importlib, sys\n"
        f"for module in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        f"    found = [name for name in {HEAVY} if name in sys.modules]\n"
        "    assert not found, (module, found)"
    )
    assert loaded_by(code) == set()


READ = """
import sys
from pipeline.store import MapDataset
from pipeline.store.verify import verify
for out in sys.argv[1:]:
    dataset = MapDataset(out)
    assert dataset.maps(method="normgrad", image_id="_third").num_rows == 8
    assert dataset.images().num_rows == 5 and dataset.error("torn.png").kind == "truncated"
    assert sum(len(maps) for _, maps in dataset.shard_images(1)) == 32
    assert {problem.kind for problem in verify(out)} <= {"not_finite"}
"""


def test_reading_and_verifying_a_local_out_loads_neither_torch_nor_beam(run, tars_only):
    # pyarrow imports pandas, where it is installed, to see whether a value is one of its own
    assert loaded_by(READ, run, tars_only) <= {"pandas"}


def test_only_a_url_needs_beam():
    code = "from pipeline import files\nfiles.exists({!r})"
    assert loaded_by(code.format("/nowhere")) == set()
    assert "apache_beam" in loaded_by(
        "from pipeline import files\nfrom pipeline.errors import SettingsError\n"
        "try:\n    files.exists('nowhere://bucket/run')\nexcept SettingsError:\n    pass"
    )
