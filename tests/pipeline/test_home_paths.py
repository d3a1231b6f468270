"""`~` is the home folder in every path, in a flag, in YAML, and in Python; `$NAME` its value."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_network import draw_set

from pipeline.cli import backlight
from pipeline.config import RunConfig, read_settings
from pipeline.files import expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_setting_that_may_be_a_path_is_brought_home(home: Path) -> None:
    yaml = home / "run.yaml"
    yaml.write_text(
        "{source: table, root: ~/a, model: 'x:y', annotations: ~/b.csv, weights: ~/w.pth, "
        "class-index: ~/names.txt, class-map: ~/map.json, combine: 'sum:~/w.json,sum:uniform'}"
    )
    config = RunConfig.from_settings(read_settings(yaml))
    paths = (config.root, config.annotations, config.weights, config.class_index, config.class_map)
    assert paths == tuple(
        f"{home}/{name}" for name in ("a", "b.csv", "w.pth", "names.txt", "map.json")
    )
    assert config.combine == (f"sum:{home}/w.json", "sum:uniform")


@pytest.mark.parametrize("path", ["gs://bucket/~", "a~b", "random:1", "./~", "IMAGENET1K_V1"])
def test_a_path_without_it_at_its_beginning_stays(home: Path, path: str) -> None:
    assert expanded(path) == path


def test_variables_of_the_environment_have_their_values(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOTOS", "~/photos")
    (home / "$PHOTOS").mkdir()
    assert expanded("$PHOTOS/a") == expanded("${PHOTOS}/a") == f"{home}/photos/a"
    assert expanded(f"{home}/$PHOTOS") == f"{home}/$PHOTOS"
    assert expanded("$UNKNOWN/a") == "$UNKNOWN/a"


def test_a_run_is_at_home_in_every_flag(home: Path) -> None:
    draw_set(home / "photos", 2)
    (home / "run.yaml").write_text("model: tiny_network:tiny\nroles: top\nroot: ~/photos\n")
    small = ["--layers", "late", "--methods", "gradient", "--input-size", "32", "--device", "cpu"]

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(backlight, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output

    settings = ["--source", "imagefolder", "--config", "~/run.yaml", *small]
    run("generate", *settings, "~/out", "--quiet")
    assert (home / "out/_SUCCESS").is_file()
    for command in ("status", "verify"):
        run(command, "~/out")
    run("show", "~/out", "0__photo0", "--output", "~/picture.png")
    assert (home / "picture.png").is_file()
