"""A user's module with a name of Backlight's is found out, and the message says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import forked_process
import pytest
from tiny_network import run_config

import pipeline
from pipeline.errors import SettingsError
from pipeline.shadowing import check_not_hidden, check_not_shadowed

# Forked, so the current folder is not first on its own path, as with a fresh `python -c`.
BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SECONDS = 120  # for a process to do its work, on a busy machine
NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)


def found_by_python(name: str) -> str:
    """What a new `python -m`, as a worker is, imports under the name."""
    code = f"import runpy, sys; sys.argv = ['x']; import {name}; print({name}.__file__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return result.stdout.strip()


@pytest.mark.parametrize("file", ["transforms.py", "pipeline.py", "transforms/__init__.py"])
def test_a_module_in_the_current_folder_hides_ours(file):
    path = put(Path.cwd() / file)
    assert found_by_python(Path(file).parts[0].removesuffix(".py")) == str(path)
    named = path if path.name != "__init__.py" else path.parent
    with pytest.raises(SettingsError) as raised:
        check_not_shadowed()
    assert str(raised.value).startswith(f"{named} hides Backlight's own package")
    assert str(raised.value).endswith("rename it, or run from another folder")


def test_a_module_on_the_python_path_hides_ours(tmp_path, monkeypatch):
    path = put(tmp_path / "mine" / "transforms.py")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'other'}{os.pathsep}{path.parent}")
    assert found_by_python("transforms") == str(path)
    with pytest.raises(SettingsError, match=rf"^{path} .*take {path.parent} out of PYTHONPATH$"):
        check_not_shadowed()


def test_a_folder_of_that_name_that_is_no_package_hides_nothing():
    put(Path.cwd() / "transforms" / "crop.json")
    put(Path.cwd() / "pipeline.yaml")
    ours = Path(pipeline.__file__).parents[1] / "transforms" / "__init__.py"
    assert Path(found_by_python("transforms")).resolve() == ours
    check_not_shadowed()


def test_a_checkout_of_backlight_is_no_stranger(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(pipeline.__file__).parents[1])
    check_not_shadowed()
    check_not_hidden("transforms.engine")
    # Nor is one on the path that comes before a stranger.
    put(tmp_path / "transforms.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_not_shadowed()


def test_python_that_leaves_the_current_folder_out_is_believed(monkeypatch):
    put(Path.cwd() / "transforms.py")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    check_not_shadowed()


@pytest.mark.parametrize("module", ["transforms", "transforms.nets"])
def test_a_model_that_our_package_hides_is_named(module):
    path = put(Path.cwd() / f"{module.replace('.', '/')}.py")
    named = path if module == "transforms" else path.parent
    with pytest.raises(SettingsError) as raised:
        check_not_hidden(module)
    assert f"hides {named}: rename the latter, such as to my_transforms" in str(raised.value)
    check_not_hidden("torchvision.transforms")


def backlight(photos: Path, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    config = run_config(photos)
    command = ["generate", "--source", config.source, "--root", config.root, "--model", model]
    more = ["--layers", "0", "--methods", "gradient", "--input-size", "32", "--limit", "4"]
    return forked_process.run(
        [*BACKLIGHT, *command, *more, "--roles", "top", "--shard-size", "1", *options, "out"],
        timeout=SECONDS,
    )


def test_several_workers_are_refused_beside_a_module_that_hides_ours(photos):
    put(Path.cwd() / "net.py", NETWORK)
    path = put(Path.cwd() / "transforms.py")
    refused = backlight(photos, "net:net", "--workers", "2")
    assert refused.returncode == 2
    assert f"\nbacklight: error: {path} hides Backlight's own package" in refused.stderr
    assert not Path("out").exists()
    path.rename("augmentations.py")
    check_not_shadowed()


def test_a_model_in_a_module_of_our_name_is_refused_with_its_file(photos):
    path = put(Path.cwd() / "transforms.py", NETWORK)
    refused = backlight(photos, "transforms:net")
    assert refused.returncode == 2
    assert f"transforms means Backlight's own package transforms, which hides {path}" in (
        refused.stderr
    )
    assert not Path("out").exists()
