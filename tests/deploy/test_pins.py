"""What is pinned twice agrees: pyproject.toml, the images under deploy/, and their READMEs."""

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
PINS = dict(pin.split("==") for pin in PYPROJECT["tool"]["uv"]["constraint-dependencies"])
PYTHON = PYPROJECT["project"]["requires-python"].removeprefix(">=")

DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile*"))
TEXTS = sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".md", ".sh"))
POMS = sorted(DEPLOY.rglob("pom.xml"))
by_name = {"ids": lambda path: path.relative_to(PROJECT).as_posix()}

PYTHON_IMAGE = r"(?:^|[\s/])python:(\d+\.\d+)|beam_python(\d+\.\d+)_sdk|python(3)(\d\d)-template"
BEAM_IMAGE = r"beam_python[\d.]+_sdk:([\w.]+)"
PACKAGE = r"(apache-beam|torch|torchvision)(?:\[[\w,]+\])?==([\w.]+)"


def resolved(dockerfile: Path) -> str:
    """The text with the defaults of its ARGs filled in, without comments."""
    text = re.sub(r"^#.*$", "", dockerfile.read_text(), flags=re.MULTILINE)
    for name, default in re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE):
        text = re.sub(rf"\$\{{?{name}\b\}}?", default, text)
    return text


def pythons(text: str) -> set[str]:
    return {".".join(filter(None, found)) for found in re.findall(PYTHON_IMAGE, text, re.MULTILINE)}


def test_there_are_images_to_check() -> None:
    assert DEPLOY / "dataflow" / "Dockerfile" in DOCKERFILES


@pytest.mark.parametrize("dockerfile", DOCKERFILES, **by_name)
def test_an_image_has_the_projects_python_and_beam(dockerfile: Path) -> None:
    text = resolved(dockerfile)
    assert pythons(text) == {PYTHON}
    assert set(re.findall(BEAM_IMAGE, text)) <= {PINS["apache-beam"]}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, **by_name)
def test_an_image_installs_what_pyproject_pins(dockerfile: Path) -> None:
    """By uv from pyproject.toml, which keeps to its constraints, or by the same versions."""
    text = resolved(dockerfile)
    named = re.findall(PACKAGE, text)
    assert [(name, version) for name, version in named if PINS[name] != version] == []
    from_pyproject = "uv pip install" in text and re.search(r"^COPY.*pyproject\.toml", text, re.M)
    assert from_pyproject or {"apache-beam", "torch", "torchvision"} <= {name for name, _ in named}


@pytest.mark.parametrize("path", TEXTS, **by_name)
def test_what_a_text_says_of_versions_is_pinned(path: Path) -> None:
    text = path.read_text()
    assert [(n, v) for n, v in re.findall(PACKAGE, text) if PINS[n] != v] == []
    assert set(re.findall(BEAM_IMAGE, text)) <= {PINS["apache-beam"]}
    assert {v for v in pythons(text) if v} <= {PYTHON}


def test_there_is_one_job_server_and_a_readme_names_its_beam_beside_the_sdks() -> None:
    found = {v for pom in POMS for v in re.findall(r"<beam\.version>([\w.]+)<", pom.read_text())}
    assert len(found) <= 1
    readmes = [path.read_text() for path in TEXTS if path.suffix == ".md"]
    for version in found:
        assert any(version in text and PINS["apache-beam"] in text for text in readmes)
