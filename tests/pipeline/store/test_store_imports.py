"""Reading OUT is light: what it imports, and that nothing of it is imported in a circle."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    *("apache_beam", "torch", "torchvision", "PIL", "pycocotools"),
    *("pandas", "webdataset", "scipy"),
)
PACKAGES = ("pipeline", "transforms")


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


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.store",
        "pipeline.store.formats",
        "pipeline.store.shard",
        "pipeline.store.verify",
        "pipeline.store.outline",
        "pipeline.files",
        "pipeline.sources",
    ],
)
def test_importing_it_loads_neither_torch_nor_beam(module):
    assert loaded_by(f"import {module}") == set()


READ = """
import sys
from pipeline.store import MapDataset
from pipeline.store.verify import verify
dataset = MapDataset(sys.argv[1])
assert dataset.maps(method="normgrad", image_id="_third").num_rows == 8
assert dataset.images().num_rows == 5 and dataset.error("torn.png").kind == "truncated"
assert sum(len(maps) for _, maps in dataset.shard_images(1)) == 32
assert {problem.kind for problem in verify(sys.argv[1])} <= {"not_finite"}
"""


def test_reading_and_verifying_a_local_out_loads_neither_torch_nor_beam(run, tars_only):
    # pyarrow imports pandas, where it is installed, to see whether a value is one of its own
    assert loaded_by(READ, run) <= {"pandas"}
    assert loaded_by(READ, tars_only) <= {"pandas"}


COMMAND = """
import sys
from pipeline.cli import backlight
backlight(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.parametrize("command", ["status", "verify"])
def test_the_command_loads_neither_torch_nor_beam(finished, command):
    assert loaded_by(COMMAND, command, str(finished)) <= {"pandas"}  # see above


def test_only_a_url_needs_beam():
    code = "from pipeline import files\nfiles.exists({!r})"
    assert loaded_by(code.format("/nowhere")) == set()
    assert "apache_beam" in loaded_by(
        "from pipeline import files\nfrom pipeline.errors import SettingsError\n"
        "try:\n    files.exists('nowhere://bucket/run')\nexcept SettingsError:\n    pass"
    )


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_by(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that `name` imports anywhere, with the faces of their packages."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively, which this graph does not see"
            named |= {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            # the face itself, unless all that is taken from it are modules below it
            if any(f"{node.module}.{alias.name}" not in known for alias in node.names):
                named.add(node.module)
    faces = {".".join(n.split(".")[:i]) for n in named for i in range(1, n.count(".") + 1)}
    inside = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)}
    return ((named | faces) & known.keys()) - inside


def circle_in(graph: dict[str, set[str]], start: str) -> list[str]:
    """A way from `start` through what it imports that comes back to where it was, if any."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return walk(start, [])


def test_a_circle_is_seen():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}, "a") == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}, "a") == []


@pytest.mark.parametrize("start", ["pipeline.store", "pipeline.sources", "pipeline.store.clear"])
def test_nothing_below_is_imported_in_a_circle(start):
    known = modules()
    graph = {name: imported_by(name, path, known) for name, path in known.items()}
    assert "pipeline.store.dataset" in graph["pipeline.store"]
    assert circle_in(graph, start) == []
