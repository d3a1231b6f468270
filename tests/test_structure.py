"""The house: who imports whom, what a look at an output loads, and the public face."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "transforms")
HEAVY = (
    *("torch", "torchvision", "PIL", "apache_beam", "pycocotools", "scipy", "matplotlib"),
    *("altair", "vl_convert"),
)
ALLOWED_IN_TRANSFORMS = {"torch", "torchvision", "numpy", "scipy", "transforms"}


def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name; a package stands for its face."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Collection[str] = ()) -> Iterator[str]:
    """The modules that a file imports, also inside functions and for types alone.

    `from a import b` imports `a.b` where that is one of the known modules, otherwise `a`.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → the modules that Python runs for its imports: those, and the faces on the way.

    The faces of the packages that a module is itself in are being imported already.
    """
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for target in imported(path, files):
            parts = target.split(".")
            faces = (".".join(parts[:i]) for i in range(1, len(parts)))
            needed = {target, *(face for face in faces if not name.startswith(f"{face}."))}
            graph[name] |= needed & files.keys() - {name}
    return graph


def circle(graph: Mapping[str, set[str]]) -> str:
    """A circle of the graph in words; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " ← ".join(error.args[1])
    return ""


def room(module: str) -> str:
    """The file or folder of `pipeline/` that a module is in; `transforms` is one room."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def test_no_module_imports_in_a_circle() -> None:
    assert not circle(import_graph(modules()))


def test_no_room_imports_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in import_graph(modules()).items():
        rooms.setdefault(room(module), set()).update(map(room, targets))
    for name, targets in rooms.items():
        targets.discard(name)
    assert not circle(rooms)


def test_a_circle_is_found(tmp_path: Path) -> None:
    """The check itself: a circle that runs through the face of a package, and a plain chain."""
    sources = {
        "a.face": "from a.face.inner import f",
        "a.face.inner": "import b",
        "b": "def g():\n    from a.face import f",
        "c": "import b",
    }
    files = {}
    for name, text in sources.items():
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
    assert "b" in circle(import_graph(files))
    del files["b"]
    assert not circle(import_graph(files))


def test_transforms_import_torch_numpy_and_scipy_alone() -> None:
    foreign = {
        (name, target.partition(".")[0])
        for name, path in modules().items()
        if name.partition(".")[0] == "transforms"
        for target in imported(path)
        if target.partition(".")[0] not in ALLOWED_IN_TRANSFORMS | sys.stdlib_module_names
    }
    assert not foreign


LOADED = f"""
import sys
import tomllib
for code in {{codes!r}}:
    exec(code)
    if found := sorted(set({HEAVY!r}) & sys.modules.keys()):
        break
print(*found, *[f"by {{{{code!r}}}}"] * bool(found))
"""


def loaded_by(*codes: str) -> str:
    """Which heavy packages a fresh process has loaded by the first of the codes that loads any."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(codes=codes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.splitlines()[-1]


def command(*arguments: str) -> str:
    """Code that runs the command and goes on after its end."""
    return (
        f"sys.argv = ['backlight', *{arguments!r}]\n"
        "from pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert not error.code, error.code"
    )


def test_a_module_that_says_so_loads_no_torch() -> None:
    says_so = re.compile(r"module\s+loads\s+no\s+torch")
    light = [name for name, path in modules().items() if says_so.search(path.read_text())]
    assert {"transforms.methods", "transforms.metrics", "transforms.layout"} <= set(light)
    assert loaded_by(*(f"import {name}" for name in light)) == ""


def test_a_name_and_a_help_text_load_nothing_heavy() -> None:
    codes = [
        "import backlight",
        "import pipeline.store",
        "from backlight import MapDataset, RunConfig, Execution",
        command("--help"),
        command("--version"),
        command("generate", "--help"),
        command("evaluate", "--help"),
        command("show", "--help"),
        command("report", "--help"),
    ]
    assert loaded_by(*codes) == ""
    assert loaded_by("1", "import PIL.Image").startswith("PIL by 'import PIL.Image'")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run: two photos, one layer, one method."""
    from PIL import Image

    import backlight
    from pipeline.demo import cnn

    folder = tmp_path_factory.mktemp("structure")
    (folder / "photos").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.radial_gradient("L").convert("RGB").save(folder / "photos" / f"{name}-{colour}.png")
    config = backlight.RunConfig(
        source="imagefolder",
        root=str(folder / "photos"),
        model="pipeline.demo.cnn:small_cnn",
        weights="random:0",
        layers=(cnn.STAGES[-1],),
        methods=("normgrad",),
        roles=("top",),
        input_size=64,
    )
    assert backlight.generate(config, str(folder / "out")).maps == 2
    return folder / "out"


def test_looking_at_an_output_loads_nothing_heavy(finished: Path) -> None:
    reading = f"from backlight import MapDataset\nprint(len(MapDataset({str(finished)!r}).maps()))"
    commands = (command(what, str(finished)) for what in ("status", "verify"))
    assert loaded_by(*commands, reading) == ""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("methods",), ""),
        (("metrics",), ""),
        # torchvision is for its own models alone; the demo's module imports PIL.
        pytest.param(
            ("layers", "pipeline.demo.cnn:small_cnn", "--weights", "random:0"),
            "PIL torch",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("show", "OUT", "a-red"),
            "PIL matplotlib pycocotools torch",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["methods", "metrics", "layers", "show"],
)
def test_a_command_loads_what_it_uses_and_no_more(
    finished: Path, arguments: tuple[str, ...], needed: str
) -> None:
    given = [str(finished) if argument == "OUT" else argument for argument in arguments]
    assert loaded_by(command(*given)).partition(" by ")[0] == needed


def test_the_public_face_has_every_name_that_type_checkers_see() -> None:
    import backlight

    tree = ast.parse((ROOT / "pipeline" / "public" / "__init__.py").read_text())
    for_types = {
        (str(alias.asname), str(node.module))
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_types == {(name, backlight._HOME[name]) for name in backlight.__all__}
    assert all(getattr(backlight, name) is not None for name in backlight.__all__)
    with pytest.raises(AttributeError, match="backlight has no 'Explaner'"):
        _ = backlight.Explaner


def test_a_name_of_the_public_face_comes_without_warnings_of_its_parts() -> None:
    code = "import backlight; backlight.generate; import logging; logging.warning('of the user')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:root:of the user\n"


def test_the_public_face_is_the_file_of_the_package() -> None:
    spec = find_spec("backlight")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin)
    assert installed.read_text() == (ROOT / "pipeline" / "public" / "__init__.py").read_text()
    assert (installed.parent / "py.typed").is_file()


def test_the_public_face_takes_no_file_out_of_the_wheel() -> None:
    # hatchling leaves a file that is included under another name out of its own package.
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    assert included
    assert all((ROOT / source).is_dir() for source in included)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_that_hides_a_package_is_named(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise AssertionError('imported')")
    (tmp_path / "script.py").write_text("import backlight")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"needs its own package '{package}'" in done.stderr
    assert str(tmp_path / f"{package}.py") in done.stderr
    assert "rename that module" in done.stderr
