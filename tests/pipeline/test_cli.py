"""The command: what it prints where, its exit codes, and its help."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from tiny_network import draw_photo, draw_set, run_config

from pipeline.cli import COMMANDS, backlight
from pipeline.config import RunConfig
from pipeline.errors import SettingsError, TooManyErrorsError
from pipeline.planning import make_plan
from pipeline.settings import declared_settings
from transforms.methods import METHODS

REPLICATES = ["--replicates", "5"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(backlight, [str(argument) for argument in arguments])


def process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def flags(root: Path, **changes: object) -> list[str]:
    """The settings of the small run, as flags."""
    given = run_config(root, **changes).to_settings()
    default = RunConfig(source="table", root="", model="").to_settings()
    return [
        part
        for name, value in given.items()
        if value != default[name]
        for part in (
            f"--{name.replace('_', '-')}",
            ",".join(map(str, value)) if isinstance(value, list) else str(value),
        )
    ]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_its_help(command):
    result = call(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""


def test_every_line_of_every_help_fits_in_a_hundred_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("", *COMMANDS):
        text = call(*([command] if command else []), "--help").stdout
        assert max(map(len, text.splitlines())) <= 100


def test_the_help_of_generate_has_every_setting_once_under_its_group(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = call("generate", "--help").stdout
    group_of = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            group = heading[1]
        elif flag := re.match(r"  (--[a-z-]+)", line):
            assert flag[1] not in group_of
            group_of[flag[1]] = group
    for declared in declared_settings(RunConfig):
        assert group_of[declared.flag] == declared.setting.group
    groups = list(dict.fromkeys(group_of.values()))
    assert groups[:6] == ["Data", "Model", "Maps", "Scores", "Output", "Where to run"]


def test_the_help_of_generate_shows_choices_and_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(call("generate", "--help").stdout.split())
    for declared in declared_settings(RunConfig):
        for choice in declared.setting.choices() if declared.setting.choices else ():
            assert choice in text
    assert "[default: label,top,least]" in text
    assert "[default: the weights' own, else 224]" in text
    assert "[default: 16 to 128, by the size of the set]" in text


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["--source", "cocco"], "did you mean coco?"),
        (["--format", "parquet,webdatset"], "did you mean webdataset?"),
        (["--upsample", "bilinaer"], "did you mean bilinear?"),
        (["--sorce", "coco"], "--source"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_nearest(arguments, nearest):
    result = call("generate", *arguments, "out")
    assert result.exit_code == 2
    assert nearest in result.stderr


def test_a_wrong_command_is_answered_with_the_nearest():
    result = call("evalute", "out")
    assert result.exit_code == 2
    assert "evaluate" in result.stderr


def test_flags_and_a_config_file_are_the_same_run(photos, tmp_path):
    changes = {"mean": [0.5, 0.4, 0.3], "roles": ["top", "class:2"], "limit": 2}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                name.replace("_", "-"): value
                for name, value in run_config(photos, **changes).to_settings().items()
                if value is not None
            }
        )
    )
    by_flags = call("generate", *flags(photos, **changes), tmp_path / "flags", "--json")
    by_file = call("generate", "--config", tmp_path / "run.yaml", tmp_path / "file", "--json")
    run_ids = [json.loads(result.stdout)["run_id"] for result in (by_flags, by_file)]
    assert run_ids[0] == run_ids[1]
    stored = json.loads((tmp_path / "file" / "_meta" / "plan.json").read_text())
    assert stored["run_id"] == run_ids[0]
    assert stored["settings"]["roles"] == ["top", "class:2"]
    assert stored["settings"]["mean"] == [0.5, 0.4, 0.3]


def test_a_flag_overrides_the_config_file(photos, tmp_path):
    (tmp_path / "run.yaml").write_text("roles: [top, least]\nmethods: normgrad\nlimit: 1\n")
    config = ["--config", tmp_path / "run.yaml", *flags(photos, methods=["gradient"])]
    result = call("generate", *config, tmp_path / "out", "--json")
    plan = json.loads((tmp_path / "out" / "_meta" / "plan.json").read_text())["settings"]
    assert (plan["methods"], plan["roles"], plan["limit"]) == (["gradient"], ["top", "least"], 1)
    expected = run_config(photos, methods=["gradient"], roles=["top", "least"], limit=1)
    assert json.loads(result.stdout)["run_id"] == make_plan(expected)[0].run_id


def test_generate_says_what_it_does_on_stderr_alone(photos, tmp_path):
    first = call("generate", *flags(photos), tmp_path / "out")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "7 images → 189 maps in 4 shards" in first.stderr
    assert re.search(r"wrote 189 maps of 7 images, .* 0 images failed", first.stderr)
    again = call("generate", *flags(photos), tmp_path / "out")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "nothing to do: this run is complete, with 189 maps of 7 images" in again.stderr


@pytest.mark.slow
def test_quiet_prints_nothing(photos, tmp_path):
    """In a process of its own, as Beam writes to the stderr of the process."""
    code = (
        "import sys\n"
        "from pipeline import cli\n"
        "settings, out = sys.argv[1:-1], sys.argv[-1]\n"
        "for command in (['generate', *settings, out], ['evaluate', out, '--replicates', '5']):\n"
        "    sys.argv[1:] = [*command, '--quiet']\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
    )
    result = process(code, *flags(photos), tmp_path / "out")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "out" / "statistics.csv").exists()


def strictly(text: str) -> object:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_alone_is_on_stdout(photos, tmp_path):
    out = tmp_path / "out"
    generated = call("generate", *flags(photos, limit=3), out, "--json")
    assert generated.stderr == ""
    found = strictly(generated.stdout)
    assert (found["images"], found["maps"], found["errors"]) == (3, 81, 0)
    assert (found["planned_maps"], found["already_complete"]) == (81, False)
    assert found["paths"]["card"] == f"{out}/README.md"
    status = strictly(call("status", out, "--json").stdout)
    assert (status["complete"], status["shards"], status["planned_shards"]) == (True, 2, 2)
    assert (status["maps"], status["bytes"]) == (81, found["bytes"])
    evaluated = call("evaluate", out, "--json", *REPLICATES)
    assert evaluated.stderr == ""
    scored = strictly(evaluated.stdout)
    statistics = json.loads((out / "statistics.json").read_text())
    assert scored["statistics"] == len(statistics) > 0
    assert scored["metrics"] == list(dict.fromkeys(row["metric"] for row in statistics))
    for printed in (generated, evaluated):
        assert all(Path(path).exists() for path in strictly(printed.stdout)["paths"].values())
        assert len(printed.stdout) < 2000


def test_json_has_no_nan_where_a_statistic_is_undefined(tmp_path):
    """One image has no standard deviation."""
    draw_photo(tmp_path / "set" / "0" / "a.png", seed=0)
    arguments = flags(tmp_path / "set", layers=["late"], methods=["gradient"])
    call("generate", *arguments, tmp_path / "out")
    call("evaluate", tmp_path / "out", "--metrics", "class_sensitivity")
    statistics = strictly((tmp_path / "out" / "statistics.json").read_text())
    assert any(row["std"] is None or row["value"] is None for row in statistics)


def test_evaluate_says_which_metrics_found_nothing_to_score(tmp_path):
    draw_photo(tmp_path / "set" / "0" / "a.png", seed=0)
    call(
        "generate",
        *flags(tmp_path / "set", layers=["late"], methods=["gradient"]),
        tmp_path / "out",
    )
    asked = "class_sensitivity,pointing_game,energy,variant_correlation"
    text = call("evaluate", tmp_path / "out", "--metrics", asked, *REPLICATES).stdout
    assert "nothing to score by pointing_game and energy: no label" in text
    assert "nothing to score by variant_correlation: the run has no such pairs" in text
    assert "by class_sensitivity" not in text


def test_evaluate_prints_the_statistics_and_notes_an_unfinished_run(copied):
    (copied / "_SUCCESS").unlink()
    (copied / "_meta" / "shards" / "00002.json").unlink()
    result = call("evaluate", copied, "--metrics", "class_sensitivity, constant_map", *REPLICATES)
    assert result.exit_code == 0
    assert "note: the run is not complete; these are 3 of its 4 shards" in result.stderr
    assert "class_sensitivity" in result.stdout
    assert all(layer in result.stdout for layer in ("early", "middle", "late"))
    assert f"{copied}/statistics.csv" in result.stdout
    assert (copied / "_meta" / "shards" / "00001.json").exists()


def test_status_of_a_run_that_is_not_done(copied):
    (copied / "_SUCCESS").unlink()
    (copied / "_meta" / "shards" / "00003.json").unlink()
    result = call("status", copied)
    assert result.exit_code == 0
    lines = dict(re.findall(r"^([a-z ]+?)\s{2,}(\S.*)$", result.stdout, re.M))
    assert lines["complete"] == "False"
    assert (lines["shards"], lines["planned shards"]) == ("3", "4")
    assert (lines["images"], lines["planned images"]) == ("6", "7")
    assert (lines["maps"], lines["planned maps"]) == ("162", "189")


def test_verify_finds_one_flipped_byte(copied):
    sound = call("verify", copied)
    assert (sound.exit_code, sound.stdout) == (0, f"{copied}: every file is as it was written\n")
    path = copied / "maps" / "maps-00002-of-00004.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    spoilt = call("verify", copied)
    assert spoilt.exit_code == 1
    assert "maps/maps-00002-of-00004.parquet" in spoilt.stdout.splitlines()[0]
    assert spoilt.stdout.count("maps-00002") == 1


def test_methods_lists_the_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = call("methods")
    assert result.exit_code == 0
    assert all(re.search(rf"\b{name}\b", result.stdout) for name in METHODS)


def test_layers_lists_those_with_a_feature_map_and_marks_the_stages(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = call("layers", "squeezenet1_1")
    assert result.exit_code == 0
    marked = re.findall(r"(\S+) \*", result.stdout)
    assert marked == [f"features.{i}" for i in (1, 4, 7, 10, 12)]
    assert "512 × 13 × 13" in result.stdout
    own = call("layers", "tiny_network:tiny", "--input-size", "32")
    assert re.findall(r"(\S+) \*", own.stdout) == ["early", "middle", "late"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "absent"], "absent holds no maps"),
        (["evaluate", "absent"], "absent holds no maps"),
        (["layers", "resnet19"], "unknown model 'resnet19'"),
        (["generate", "out"], "missing settings: source, root, model"),
        (["generate", "--config", "absent.yaml", "out"], "cannot read the config file absent.yaml"),
        (["generate", *flags("photos"), ""], "OUT is empty"),
        (["status", ""], "OUT is empty"),
    ],
)
def test_a_wrong_call_is_a_settings_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert isinstance(result.exception, SettingsError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_is_no_setting_of_a_run_is_a_flag_and_not_in_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("workers: 2\n")
    result = call("generate", "--config", tmp_path / "run.yaml", tmp_path / "out")
    assert re.search(r"^workers .* cannot stand in .* give --workers$", str(result.exception))


def test_too_many_errors_end_with_their_own_code(tmp_path):
    root = draw_set(tmp_path / "set", 4)
    for path in list(root.rglob("*.png"))[:2]:
        path.write_bytes(b"")
    result = call("generate", *flags(root), tmp_path / "out")
    assert isinstance(result.exception, TooManyErrorsError)
    accepted = call("generate", *flags(root), tmp_path / "out", "--max-error-rate", "0.5")
    assert accepted.exit_code == 0
    assert "2 images failed" in accepted.stderr


MAIN = """
import sys
from pipeline import cli, errors

failure = {
    "settings": errors.SettingsError("no such thing"),
    "many": errors.TooManyErrorsError("x"),
    "died": errors.WorkerDiedError("x"),
    "disk": OSError(28, "full"),
    "bug": KeyError("bug"),
    "stop": KeyboardInterrupt(),
}[sys.argv.pop()]

@cli.backlight.command()
def fail():
    raise failure

sys.argv[1:] = ["fail"]
cli.main()
"""


PRINTING = """
import sys
from pipeline import cli

@cli.backlight.command()
def say():
    from pipeline.cli.output import table_console
    table_console().print("caf\\xe9")

sys.argv[1:] = ["say"]
cli.main()
"""


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        ("settings", 2, "backlight: error: no such thing"),
        ("many", 3, "backlight: error: x"),
        ("died", 1, "backlight: error: x"),
        ("disk", 1, "backlight: error: [Errno 28] full"),
        ("bug", 1, "KeyError: 'bug'"),
        ("stop", 130, "backlight: error: interrupted; finished shards are kept: run the same"),
    ],
)
def test_the_exit_code_tells_what_happened(failure, code, line):
    result = process(MAIN, failure)
    assert result.returncode == code
    assert line in result.stderr.splitlines()[-1]
    assert ("Traceback" in result.stderr) == (failure == "bug")


def test_a_name_beyond_the_encoding_of_stdout_is_printed_in_ascii(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = process(PRINTING)
    assert (result.returncode, result.stdout.strip()) == (0, r"caf\xe9")


def test_a_wrong_flag_is_a_usage_error():
    result = process("from pipeline.cli import main; main()", "generate", "--modle", "x", "out")
    assert result.returncode == 2
    assert "No such option" in result.stderr
    assert "--model" in result.stderr


def test_the_installed_command_is_there():
    command = Path(sys.executable).with_name("backlight")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("backlight, version ")
