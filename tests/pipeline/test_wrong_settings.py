"""A wrong setting fails before any work: it names what is valid, and nothing is written."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_network import draw_photo, run_config, tiny
from torchvision.models import resnet18

from pipeline.config import RunConfig, read_settings
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.workers.devices import resolve_device
from pipeline.workers.execution import Execution


def from_yaml(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(f"source: imagefolder\nroot: photos\nmodel: x:y\n{text}\n")
    return RunConfig.from_settings(read_settings(path))


def test_text_in_yaml_is_taken_as_it_is_written(tmp_path: Path) -> None:
    config = from_yaml(tmp_path, "layers: [0.10, 1e3, 007]\nsplit: no\nclass-map: null\nlimit: 3")
    assert config.layers == ("0.10", "1e3", "007")
    assert (config.split, config.class_map, config.limit) == ("no", None, 3)
    assert from_yaml(tmp_path, "layers: 2.10").layers == ("2.10",)


def test_a_setting_that_stands_twice_in_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run\.yaml has input_size twice"):
        from_yaml(tmp_path, "input-size: 64\ninput_size: 32")


def refused(
    tmp_path: Path,
    config: dict[str, object] | RunConfig,
    max_error_rate: float = 0.01,
    **execution: object,
) -> str:
    """The message with which `generate` refuses, after checking that it wrote nothing."""
    out = tmp_path / "out"

    def run() -> None:
        settings = config if isinstance(config, RunConfig) else RunConfig.from_settings(config)
        generate(settings, str(out), Execution(**execution), max_error_rate=max_error_rate)

    with pytest.raises(SettingsError) as raised:
        run()
    assert raised.value.exit_code == 2
    assert not out.exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"source": "vok"},
            "unknown source 'vok'; did you mean voc.*valid: voc, coco, cls_loc, imagefolder, table",
        ),
        (
            {"methods": ["normgrat"]},
            "unknown method 'normgrat'; did you mean normgrad.*grad_cam.*or",
        ),
        ({"methods": ["soft:bias:sum"]}, "unknown rule 'soft'.*valid: plain, guided, deconvnet"),
        ({"methods": ["plain:bia:sum"]}, "unknown extract 'bia'.*valid: bias, scaling, conv1x1"),
        ({"methods": ["plain:bias:su"]}, "unknown aggregate 'su'.*valid: .*sum"),
        ({"methods": ["gradient", "gradient"]}, "methods: give at least one, each once"),
        ({"methods": []}, "methods: give at least one"),
        (
            {"layers": ["lat"]},
            "unknown layer of TinyNetwork 'lat'.*did you mean late.*input, early.*presets: stages",
        ),
        ({"layers": ["stages", "late"]}, "layers given twice: .*late"),
        ({"layers": ["head"]}, r"layer 'head' gives \[2, 5\], not a feature map"),
        ({"model": "resnet81"}, "unknown model 'resnet81'; did you mean resnet.*or module:factory"),
        ({"model": "absent_module:net"}, "cannot import .*absent_module.*valid: module:factory"),
        ({"model": "tiny_network:absent"}, "cannot import .*'absent'.*valid: module:factory"),
        ({"model": ":tiny"}, "cannot import .*':tiny'.*valid: module:factory"),
        ({"model": "tiny_network:not_callable"}, "is not callable; valid: module:factory"),
        ({"model": "tiny_network:no_module"}, "gave a str, not a module"),
        (
            {"model": "tiny_network:without_stages"},
            "no layer preset .*backlight layers tiny_network:without_s",
        ),
        ({"model": "tiny_network:without_stages", "num_classes": 3}, "called with num_classes"),
        ({"model": "resnet18"}, "no weights: pass --weights FILE, .*IMAGENET1K_V1.*random:SEED"),
        (
            {"preprocess": "crop"},
            "unknown preprocess 'crop'; did you mean center_crop.*stretch",
        ),
        ({"roles": ["worst"]}, "unknown role 'worst'; .*valid: label, top, least, random"),
        ({"roles": ["top0"]}, "unknown role 'top0'; did you mean top\\? valid: label, top"),
        ({"roles": ["top6"]}, "role top6: the model has 5 classes"),
        ({"roles": ["class:9999"]}, "role class:9999: the model's classes are 0 to 4"),
        ({"roles": ["class:-1"]}, "unknown role 'class:-1'"),
        ({"roles": ["top", "top"]}, "roles: give at least one, each once"),
        ({"format": ["hdf5"]}, "unknown format 'hdf5'; valid: parquet, webdataset"),
        (
            {"map_dtype": "float64"},
            "unknown map dtype 'float64'; did you mean float.*float16, float32",
        ),
        ({"device": "gpu"}, "unknown device 'gpu'; .*valid: auto, cpu, cuda"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"shard_size": -1}, "shard_size must be at least 1, not -1"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"input_size": 0}, "input_size must be at least 1"),
        ({"batch_size": "many"}, "batch_size: 'many' is not a whole number"),
        ({"batch_size": 2.5}, "batch_size: 2.5 is not a whole number"),
        ({"limit": True}, "limit: True is not a whole number"),
        ({"mean": "0.5,0.5"}, "mean takes three finite numbers"),
        ({"mean": "a,b,c"}, "mean: 'a,b,c' is not a list of numbers"),
        ({"mean": 0.5}, "mean: 0.5 is not a list of numbers"),
        ({"mean": "nan,0,0"}, "mean takes three finite"),
        ({"std": "0.2,0,0.2"}, "std must be positive"),
        ({"std": "nan,1,1"}, "std takes three finite"),
        ({"mean": "123.675,116.28,103.53"}, "from 0 to 255, .* divide both by 255"),
        ({"mean": "0,0,0", "std": "255,255,255"}, "from 0 to 255, .* divide both by 255"),
        ({"layers": 4}, "layers: 4 is not a list of names"),
        ({"batchsize": 4}, "unknown setting 'batchsize'; did you mean batch_size"),
        ({"model": None}, "missing settings: model"),
        ({"root": "absent"}, "--root absent is not a folder"),
        ({"source": "voc"}, "no ImageSets/Main in --root"),
        ({"split": "valid"}, "no folder 'valid' in --root .*holds: 0, 1, 2"),
        ({"annotations": "boxes.json"}, "no annotations file boxes.json"),
        ({"source": "table"}, "needs --annotations FILE"),
        ({"class_map": "absent.json"}, "no class map 'absent.json'; valid: coco, voc, or"),
        ({"class_map": "voc"}, "'voc' is for ImageNet's 1000 classes, but the model has 5"),
        ({"class_index": "absent.json"}, "no --class-index file absent.json"),
        (
            {"weights": "absent.pth"},
            "cannot read weights 'absent.pth': No such file or directory; valid: a state-dict file",
        ),
        ({"weights": "random:one"}, "cannot read weights 'random:one': .*; valid: .*random:SEED"),
        ({"num_classes": 2}, r"labels are not classes of the model: .*valid: 0 to 1.*--class-map"),
    ],
)
def test_a_wrong_setting_is_named_with_the_valid_ones(photos, tmp_path, changes, expected):
    settings = {**run_config(photos).to_settings(), **changes}
    assert re.search(expected, refused(tmp_path, settings), re.S)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none_is_no_silent_cpu_run(photos, tmp_path):
    assert "valid here: auto, cpu" in refused(tmp_path, run_config(photos, device="cuda"))
    with pytest.raises(SettingsError, match="valid here: auto, cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")


def test_weights_of_another_model_name_the_keys_that_do_not_fit(photos, tmp_path):
    state = tiny().state_dict()
    state["neck.weight"] = state.pop("head.weight")
    state["early.0.bias"] = torch.zeros(9)
    torch.save(state, tmp_path / "other.pth")
    message = refused(tmp_path, run_config(photos, weights=str(tmp_path / "other.pth")))
    assert "1 missing (head.weight)" in message
    assert "1 unexpected (neck.weight)" in message
    assert "1 of another shape (early.0.bias [9] instead of [6])" in message
    torch.save(resnet18().state_dict(), tmp_path / "other.pth")
    message = refused(tmp_path, run_config(photos, weights=str(tmp_path / "other.pth")))
    assert "conv1.weight, bn1.weight" in message
    assert message.endswith("…); give weights of this model, or the model of these weights")


def test_a_checkpoint_that_wraps_its_state_dict_fits(photos, tmp_path):
    torch.save({"state_dict": tiny().state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    config = run_config(photos, weights=str(tmp_path / "checkpoint.pth"), limit=1)
    assert generate(config, str(tmp_path / "out")).images == 1


@pytest.mark.parametrize(
    "content", ["text", "empty", "whole model", "list", "truncated", "png", "folder", "zip", "json"]
)
def test_a_file_that_is_no_state_dict_is_said_to_be_none(photos, tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(tiny().state_dict(), path)
    match content:
        case "text":
            path.write_text("<html>404 not found</html>")
        case "empty":
            path.write_bytes(b"")
        case "whole model":
            torch.save(tiny(), path)
        case "list":
            torch.save([torch.zeros(2)], path)
        case "truncated":
            path.write_bytes(path.read_bytes()[:2000])
        case "png":
            draw_photo(tmp_path / "a.png", 0)
            (tmp_path / "a.png").rename(path)
        case "folder":
            path.unlink()
            path.mkdir()
        case "zip":
            path.unlink()
            shutil.make_archive(str(tmp_path / "weights"), "zip", photos)
            (tmp_path / "weights.zip").rename(path)
        case "json":
            path.write_text(json.dumps({"head.weight": [1, 2]}))
    message = refused(tmp_path, run_config(photos, weights=str(path)))
    assert "state dict" in message or "state-dict file" in message
    assert str(path) in message
    assert "\n" not in message


def test_weights_that_torchvision_cannot_download_are_a_setting_too(photos, tmp_path, monkeypatch):
    """The address is one where nothing listens, so that nothing is downloaded."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    config = run_config(photos, model="squeezenet1_1", weights="IMAGENET1K_V1")
    message = refused(tmp_path, config)
    assert re.search("cannot download .*IMAGENET1K_V1.*--weights FILE", message)


def test_an_empty_dataset(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("no photo")
    assert "found no image in" in refused(tmp_path, run_config(tmp_path / "set"))


def test_image_ids_that_repeat(tmp_path):
    for suffix in ("png", "jpg"):
        draw_photo(tmp_path / "set" / "0" / f"same.{suffix}", 0)
    message = refused(tmp_path, run_config(tmp_path / "set"))
    assert "image ids must be unique" in message
    assert "0/same.jpg and 0/same.png" in message


def test_labels_without_a_class_of_the_model(tmp_path):
    draw_photo(tmp_path / "set" / "zebra" / "a.png", 0)
    message = refused(tmp_path, run_config(tmp_path / "set"))
    assert "1 of 1 labels are not classes of the model: no class 'zebra'" in message
    assert "--class-map" in message


def test_role_label_in_a_set_without_labels(tmp_path):
    draw_photo(tmp_path / "set" / "a.png", 0)
    assert "leave label out" in refused(tmp_path, run_config(tmp_path / "set"))


def test_role_label_in_a_table_without_labels_names_its_columns(tmp_path):
    draw_photo(tmp_path / "set" / "a.png", 0)
    (tmp_path / "set/set.csv").write_text("path,breed\na.png,pug\n")
    table = {"source": "table", "annotations": "set.csv"}
    assert "'breed'" in refused(tmp_path, run_config(tmp_path / "set", **table))


def test_layers_that_would_share_a_member_of_a_tar(photos, tmp_path):
    config = run_config(
        photos, model="tiny_network:twin_layers", layers=["late", "Late"], format=["webdataset"]
    )
    assert "--format parquet" in refused(tmp_path, config)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_error_rate": 1.5}, "--max-error-rate is a share from 0 to 1"),
        ({"max_error_rate": float("nan")}, "--max-error-rate is a share from 0 to 1"),
    ],
)
def test_a_wrong_option_of_the_run(photos, tmp_path, options, expected):
    assert re.search(expected, refused(tmp_path, run_config(photos), **options))


def test_out_that_is_not_backlights(photos, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"a\.txt.*choose an empty or a new folder"):
        generate(run_config(photos), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(SettingsError, match="is a file; choose an empty or a new folder"):
        generate(run_config(photos), str(tmp_path / "a.txt"))
    with pytest.raises(SettingsError, match=r"a\.txt is a file"):
        generate(run_config(photos), str(tmp_path / "a.txt" / "out"))
    with pytest.raises(SettingsError, match=r"OUT may not contain '\*'"):
        generate(run_config(photos), str(tmp_path / "out*"))
    assert (tmp_path / "a.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- source\n- root\n", "must map settings to values"),
        (b"", "must map settings to values"),
        (b"source: [", "is not YAML"),
        (b"source: caf\xe9", "is not YAML"),
        (None, "cannot read the config file .*: No such file"),
    ],
)
def test_a_config_file_that_is_none(tmp_path, content, expected):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=expected):
        read_settings(path)


def test_one_text_where_python_takes_several_values_is_refused_with_the_tuple_to_give() -> None:
    with pytest.raises(SettingsError, match=r"give \('top', 'least'\), not 'top, least'"):
        RunConfig(source="voc", root="photos", model="resnet18", roles="top, least")  # type: ignore[arg-type]
