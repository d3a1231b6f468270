"""The flex template's parameters are settings of the command, and its patterns know wrong ones."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.workers.dataflow import check_accelerator

DATAFLOW = Path(__file__).resolve().parents[2] / "deploy" / "dataflow"
PARAMETERS = {
    parameter["name"]: parameter
    for parameter in json.loads((DATAFLOW / "metadata.json").read_text())["parameters"]
}

VALID = {
    "source": ["voc", "coco", "imagefolder", "table"],
    "root": ["gs://bucket", "gs://bucket/a/set of photos", "gs://my.bucket_1/x/"],
    "out": ["gs://bucket/maps"],
    "model": ["resnet50", "vit_b_16", "my_models.nets:factory"],
    "weights": ["gs://bucket/w.pth", "IMAGENET1K_V1", "ResNet50_Weights.DEFAULT", "random:0"],
    "split": ["train2017", "dog_test", "val/part-1"],
    "annotations": ["gs://bucket/table.csv", "annotations/instances_val2017.json"],
    "class_map": ["voc", "coco", "none", "gs://bucket/map.json"],
    "class_index": ["coco", "gs://bucket/index.json"],
    "num_classes": ["20"],
    "layers": ["stages", "features.1,features.4", "layer4.2.conv3,input"],
    "methods": ["normgrad", "gradient,plain:conv3x3:norm,grad_cam"],
    "roles": ["label,top,least", "top5,class:207,random"],
    "variants": ["base,meta", "meta(lr=-0.001,second_order),cascade(layer4)"],
    "preprocess": ["center_crop", "shortest_side"],
    "input_size": ["224"],
    "format": ["parquet", "parquet,webdataset"],
    "map_dtype": ["float32"],
    "shard_size": ["64"],
    "batch_size": ["8"],
    "evaluate": ["class_sensitivity,pointing_game"],
    "keep": ["all", "sample:100", "none"],
    "limit": ["1000"],
    "max_error_rate": ["0", "0.01", "1"],
    "accelerator": [
        "type:nvidia-l4;count:1;install-nvidia-driver",
        "type:nvidia-tesla-t4;count:1;machine_type:n1-standard-8;install-nvidia-driver:5xx",
    ],
}
WRONG = {
    "source": ["webdataset", "COCO"],
    "root": ["/data/coco", "s3://bucket/coco", "gs://", "gs://bucket/*.jpg"],
    "out": ["maps", "gs://Bucket/maps", "gs://bucket/maps[1]"],
    "model": ["", "ResNet 50", "nets:"],
    "weights": ["/data/w.pth", "random:", "gs://bucket"],
    "split": ["", "train 2017"],
    "annotations": ["", "*.json"],
    "class_map": ["imagenet", "map.json"],
    "class_index": ["index.json"],
    "num_classes": ["0", "-1", "many"],
    "layers": ["", "layer3,,layer4", "layer3;layer4"],
    "methods": ["NormGrad", "plain:conv3x3", "a,"],
    "roles": ["labels", "class:dog", "top,"],
    "variants": ["meta(", "other"],
    "preprocess": ["crop"],
    "input_size": ["0", "224px"],
    "format": ["png", "parquet;webdataset"],
    "map_dtype": ["float64"],
    "shard_size": ["0"],
    "batch_size": ["1.5"],
    "evaluate": ["", "pointing game"],
    "keep": ["some", "sample:0"],
    "limit": ["all"],
    "max_error_rate": ["1.5", "-0.1", "1%"],
    "accelerator": ["nvidia-l4", "type:nvidia-l4", "type:nvidia-l4;count:2", "type:L4;count:1"],
}


def matches(name: str, value: str) -> bool:
    return all(re.fullmatch(pattern, value) for pattern in PARAMETERS[name]["regexes"])


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch", DATAFLOW / "launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_parameter_is_a_setting_of_generate() -> None:
    generate = backlight.get_command(click.Context(backlight), "generate")
    assert PARAMETERS.keys() <= {parameter.name for parameter in generate.params}
    required = {name for name, p in PARAMETERS.items() if not p.get("isOptional")}
    assert required == {"source", "root", "model", "out"}


def test_every_parameter_has_a_pattern_a_label_and_a_help_text() -> None:
    assert VALID.keys() == WRONG.keys() == PARAMETERS.keys()
    for parameter in PARAMETERS.values():
        assert parameter["label"]
        assert parameter["helpText"].endswith(".")
        assert all(p.startswith("^") and p.endswith("$") for p in parameter["regexes"])


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in VALID.items() for v in vs])
def test_a_valid_value_passes(name: str, value: str) -> None:
    assert matches(name, value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_a_wrong_value_is_held_back(name: str, value: str) -> None:
    assert not matches(name, value)


@pytest.mark.parametrize("hint", [*VALID["accelerator"], *WRONG["accelerator"]])
def test_the_command_and_the_template_agree_on_accelerators(hint: str) -> None:
    if matches("accelerator", hint):
        check_accelerator(hint, "auto")
    else:
        with pytest.raises(SettingsError, match="such as type:nvidia-l4;count:1;install-nvidia"):
            check_accelerator(hint, "auto")


def test_an_accelerator_and_the_cpu_are_a_contradiction() -> None:
    with pytest.raises(SettingsError, match="for a GPU and --device for the CPU"):
        check_accelerator(VALID["accelerator"][0], "cpu")


def test_the_launchers_flags_become_settings_out_and_options_of_beam(launch: ModuleType) -> None:
    required = ["--source=coco", "--root=gs://b/coco", "--model", "resnet50", "--out=gs://b/maps"]
    given = launch.command([*required, "--input_size=64", "--region=r", "--runner=Other"])
    settings, beam_options = given[: given.index("--")], given[given.index("--") + 1 :]
    assert settings[0] == "generate"
    assert settings[-1] == "gs://b/maps"
    assert {"--source=coco", "--root=gs://b/coco", "--model=resnet50", "--input-size=64"} == set(
        settings[1:-1]
    )
    assert beam_options[-2:] == ["--region=r", "--runner=Other"]  # Beam takes the last of two
    assert "--no_wait_until_finish" in beam_options
