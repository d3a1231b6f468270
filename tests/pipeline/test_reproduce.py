"""The paper's protocol as a preset: on tiny sets in VOC's and COCO's layout, random weights."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console
from tiny_network import draw_photo, run_config, tiny

from pipeline import images
from pipeline.cli import backlight
from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.model.classes import class_names
from pipeline.model.models import ModelSpec
from pipeline.plan import read_plan
from pipeline.planning import make_plan
from pipeline.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Sizing,
    normalise,
    shortest_side,
    shortest_side_aliased,
)
from pipeline.report.figure_table import figures_table
from pipeline.reproduce import META, PUBLISHED, Figure, Protocol, protocol, reproduce
from pipeline.store import MapDataset
from pipeline.store.records import MapRecord
from pipeline.workers.execution import Execution
from transforms.engine import Explainer
from transforms.fully_convolutional import fully_convolutional
from transforms.map_key import NO_TARGET, MapKey
from transforms.output_gradient import OUTPUT_GRADIENTS

pytestmark = pytest.mark.usefixtures("without_beam")

QUIET = Console(quiet=True)
TINY = {"model": "tiny_network:tiny", "input_size": 32, "batch_size": 2}

VOC_OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin>
<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of 64 × 48 px: dog everywhere; a car in a corner; cat and a small, hard dog."""
    root = tmp_path_factory.mktemp("voc")
    year = root / "VOCdevkit" / "VOC2007"
    objects = {
        "000001": [("dog", 0, 1, 1, 64, 48)],
        "000002": [("car", 0, 1, 1, 4, 4)],
        "000003": [("cat", 0, 1, 1, 64, 48), ("dog", 1, 60, 40, 64, 48)],
    }
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "Annotations").mkdir()
    (year / "ImageSets" / "Main" / "test.txt").write_text("\n".join(objects))
    for i, (name, of_photo) in enumerate(objects.items()):
        draw_photo(year / "JPEGImages" / f"{name}.jpg", seed=i, size=(64, 48))
        boxes = "".join(VOC_OBJECT.format(*values) for values in of_photo)
        text = f"<annotation><filename>{name}.jpg</filename>{boxes}</annotation>"
        (year / "Annotations" / f"{name}.xml").write_text(text)
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos: a giraffe in both, a toothbrush in the second."""
    root = tmp_path_factory.mktemp("coco")
    for i in (1, 2):
        draw_photo(root / "val2014" / f"{i}.jpg", seed=i, size=(64, 48))
    square = [[0, 0, 64, 0, 64, 48, 0, 48]]
    instances = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "categories": [{"id": 25, "name": "giraffe"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": [0, 0, 64, 48], "segmentation": square}
            for i, c in ((1, 25), (2, 25), (2, 90))
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(instances))
    return root


@pytest.fixture(scope="module")
def reproduced(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figure]]:
    out = tmp_path_factory.mktemp("reproduced") / "out"
    flags = out.parent / "flags.csv"
    flags.write_text("image_id,class_name,difficult\n000001,dog,0\n000002,car,1\n000003,cat,0\n")
    resolved = protocol("voc07", {**TINY, "root": str(voc)})
    return out, reproduce(resolved, str(out), QUIET, difficult=str(flags))


def test_the_figures_are_those_of_the_grid_of_each_part(reproduced):
    _, figures = reproduced
    rows = [f.key.origin for f in figures if f.subset == "all"]
    stages = ("early", "middle", "late")
    assert rows == [
        ("base", "center", ""),
        *(("base", m, "input") for m in ("gradient", "deconvnet", "guided_backprop")),
        ("base", "excitation_backprop", "middle"),
        ("base", "contrastive_excitation_backprop", "middle"),
        *(
            ("base", method, layer)
            for method in ("grad_cam", "linear_approx", "normgrad", "normgrad_selective")
            for layer in stages
        ),
        *((META, "normgrad", layer) for layer in stages),
    ]
    assert META == "meta(lr=+0.0025)"


def test_the_centre_hits_the_two_large_objects_and_no_hard_one_is_counted(reproduced):
    """The centre hits the dog and the cat. The car in the corner is the hard pair."""
    _, figures = reproduced
    of_all, difficult = (f for f in figures if f.key.method == "center")
    assert (of_all.subset, of_all.pairs, of_all.images) == ("all", 3, 3)
    assert of_all.value == pytest.approx(200 / 3)
    assert (difficult.subset, difficult.pairs, difficult.value) == ("difficult", 1, 0)
    assert all(f.pairs + f.undefined == 3 for f in figures if f.subset == "all")


def test_a_run_that_is_complete_is_not_done_again(reproduced, voc, tmp_path):
    out, figures = reproduced
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("maps/*")}
    again = reproduce(protocol("voc07", {**TINY, "root": str(voc)}), str(copy), QUIET)
    # By text, since nan is not nan.
    assert [str(f) for f in again] == [str(f) for f in figures if f.subset == "all"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("maps/*")} == before
    assert len(before) == 4


def test_the_preset_is_the_protocol(reproduced):
    out, _ = reproduced
    plan = read_plan(str(out / "meta"))
    config = RunConfig.from_settings(plan.settings)
    assert (config.source, config.split, config.roles) == ("voc", "test", ("label",))
    assert (config.preprocess, plan.output_gradient) == ("shortest_side_aliased", "pointing")
    assert config.channel_order == "bgr"
    assert config.mean == pytest.approx((103.939 / 255, 116.779 / 255, 123.68 / 255))
    assert config.std == pytest.approx((1 / 255,) * 3)
    assert config.num_classes == 20
    assert config.variants == ("base", META)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "excitation", "last"),
    [
        ("vgg16", "features.23", "features.29"),
        ("resnet50", "layer3", "layer4"),
    ],
)
def test_published_layers_are_layers_of_the_protocol(voc, model, excitation, last):
    # One image per part takes seconds at 224 px, and not at the least that gives each layer a map.
    settings = {"root": str(voc), "model": model, "weights": "random:0", "input_size": 64}
    found = protocol("voc07", settings)
    grid = {
        (part.config.variants[-1], method, layer)
        for part in found.parts
        for method in part.config.methods
        for layer in part.config.layers
    }
    assert set(PUBLISHED["voc07", model]) - grid == {("base", "center", "")}
    parts = {part.name: part.config for part in found.parts}
    assert parts["excitation"].layers == (excitation,)
    assert parts["layers"].layers[-1] == last
    assert all(config.fully_convolutional for config in parts.values())
    assert any(f"pipeline.model.caffe:{model}" in note for note in found.notes)


def test_coco_has_its_80_classes_in_the_order_of_their_ids(coco, tmp_path):
    resolved = protocol("coco14", {**TINY, "root": str(coco)}, ["excitation"])
    assert [part.name for part in resolved.parts] == ["excitation"]
    figures = reproduce(resolved, str(tmp_path), QUIET)
    assert {(f.pairs + f.undefined, f.published) for f in figures} == {(3, None)}
    targets = {m.key.class_name: m.key.target for m in _maps(tmp_path / "excitation")}
    assert targets == {"giraffe": 23, "toothbrush": 79}
    plan = read_plan(str(tmp_path / "excitation"))
    assert plan.class_names[0] == "person"
    assert plan.settings["split"] == "val2014"
    assert any("no published figures of tiny on coco14" in note for note in resolved.notes)


def _maps(out: Path) -> list[MapRecord]:
    dataset = MapDataset(str(out))
    shards = [dataset.shard_images(commit.index) for commit in dataset.commits]
    return [record for shard in shards for _, records in shard for record in records]


def test_a_model_of_imagenets_classes_is_said_to_be_one(voc):
    settings = {**TINY, "root": str(voc), "num_classes": 1000}
    resolved = protocol("voc07", settings, ["input"])
    (part,) = resolved.parts
    assert part.config.channel_order == "rgb"
    assert part.config.mean == RunConfig.mean
    assert make_plan(part.config)[0].settings["class_map"] == "voc"
    assert any("this model has 1000" in note for note in resolved.notes)
    assert any("no fully convolutional twin of a TinyNetwork" in note for note in resolved.notes)


@pytest.mark.parametrize(
    ("benchmark", "changes", "parts", "expected"),
    [
        ("voc12", {}, None, "unknown benchmark 'voc12'; .*valid: voc07, coco14"),
        (
            "voc07",
            {},
            ["inputs"],
            "unknown part 'inputs'; .*valid: input, excitation, layers, meta",
        ),
        ("voc07", {"root": None}, None, "missing settings: root"),
        ("voc07", {"channel_order": "gbr"}, None, "unknown channel order 'gbr'; .*valid: rgb, bgr"),
        ("voc07", {"model": "tiny_network:without_stages"}, None, "no layer preset"),
    ],
)
def test_wrong_settings_fail_before_any_work(voc, benchmark, changes, parts, expected):
    with pytest.raises(SettingsError, match=expected):
        protocol(benchmark, {**TINY, "root": str(voc), **changes}, parts)


def test_flags_that_are_not_there_fail_before_any_work(voc, tmp_path):
    resolved = protocol("voc07", {**TINY, "root": str(voc)}, ["input"])
    with pytest.raises(SettingsError, match=r"no flag file absent\.csv"):
        reproduce(resolved, str(tmp_path / "out"), QUIET, difficult="absent.csv")
    assert not (tmp_path / "out").exists()


def test_a_jar_of_several_jobs_is_refused_before_any_work(voc, tmp_path):
    resolved = protocol("voc07", {**TINY, "root": str(voc)}, ["input"])
    jar = Execution(beam_args=("--runner=PortableRunner", "--output_executable_path=job.jar"))
    with pytest.raises(SettingsError, match="makes a jar of one job"):
        reproduce(resolved, str(tmp_path / "out"), QUIET, jar)
    assert not (tmp_path / "out").exists()


def _key(variant: str, method: str, layer: str) -> MapKey:
    return MapKey(variant, method, layer, "label", NO_TARGET, "")


def test_the_table_has_each_figure_beside_the_published_one():
    figures = [
        Figure(_key("base", "center", ""), "all", 70.0, 60, 84, 69.6, 9, 0, 8),
        Figure(_key("base", "center", ""), "difficult", 40.0, math.nan, math.nan, 42.4, 1, 0, 1),
        Figure(
            _key(META, "normgrad", "layer1"), "all", math.nan, math.nan, math.nan, 81.6, 0, 9, 0
        ),
    ]
    shown = Protocol("voc07", "resnet50", (), ("it is a test",))
    console = Console(file=io.StringIO(), width=160)
    console.print(figures_table(shown, figures))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    heading = ["paper", "differs", "pairs", "images"]
    assert ["method", "layer", "All", *heading, "Difficult", *heading] in lines
    center = ["70.0", "[60.0,", "84.0]", "69.6", "+0.4", "9", "8", "40.0", "42.4", "-2.4", "1", "1"]
    assert ["center", *center] in lines
    meta = ["–", "81.6", "–", "0", "of", "9", "0", "–", "–", "–", "0", "0"]
    assert ["normgrad,", META, "layer1", *meta] in lines
    assert ["Note:", "it", "is", "a", "test."] in lines


def test_the_command_prints_the_table_or_json(voc, tmp_path):
    arguments = [
        *("reproduce", "voc07", "--root", str(voc), "--model", "tiny_network:tiny"),
        *("--input-size", "32", "--parts", "input", "--limit", "2", str(tmp_path / "out")),
    ]
    result = CliRunner().invoke(backlight, arguments)
    assert result.exit_code == 0, result.output
    assert "guided_backprop" in result.stdout
    result = CliRunner().invoke(backlight, [*arguments, "--json"])
    figures = json.loads(result.stdout)["figures"]
    assert [f["method"] for f in figures] == [
        *("center", "gradient", "deconvnet", "guided_backprop")
    ]
    assert {f["difference"] for f in figures} == {None}


# The settings that the protocol needs.


def test_class_names_of_the_datasets_own_classes():
    voc = class_names("voc", 20).names
    assert (voc[0], voc[11], voc[-1]) == ("aeroplane", "dog", "tvmonitor")
    assert list(voc) == sorted(voc)
    with pytest.raises(SettingsError, match="coco names 80 classes, but the model has 20"):
        class_names("coco", 20)


def test_bgr_is_normalised_in_its_own_order():
    batch = torch.rand(2, 3, 4, 5)
    mean, std = (0.1, 0.2, 0.3), (1.0, 0.5, 0.25)
    found = normalise(batch, mean, std, "bgr")
    for i, channel in enumerate((2, 1, 0)):
        torch.testing.assert_close(found[:, i], (batch[:, channel] - mean[i]) / std[i])


def test_a_run_in_bgr_is_the_run_in_rgb_with_its_filters_flipped(photos, tmp_path):
    state = tiny().state_dict()
    flipped = {**state, "early.0.weight": state["early.0.weight"].flip(1)}
    torch.save(state, tmp_path / "rgb.pth")
    torch.save(flipped, tmp_path / "bgr.pth")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    runs = {
        "rgb": {"mean": mean, "std": std},
        "bgr": {"mean": mean[::-1], "std": std[::-1]},
    }
    found = []
    for order, settings in runs.items():
        config = run_config(
            photos, channel_order=order, weights=str(tmp_path / f"{order}.pth"), limit=2, **settings
        )
        generate(config, str(tmp_path / order))
        found.append([m.values for m in _maps(tmp_path / order)])
    for rgb, bgr in zip(*found, strict=True):
        torch.testing.assert_close(torch.tensor(rgb), torch.tensor(bgr), rtol=1e-3, atol=1e-6)
    assert len(found[0]) > 0


def test_an_aliased_resize_takes_the_nearest_four_pixels():
    """A photo of stripes one pixel wide, halved: antialiasing greys them, sampling need not."""
    photo = images.decode(_stripes())
    aliased = shortest_side_aliased(photo, Sizing(16, None, "bilinear"))
    assert aliased.tensor.shape == (3, 16, 24)
    assert aliased.view == (0.0, 0.0, 72.0, 48.0)
    # Pixel i lies at 3 i + 1, the middle of three.
    torch.testing.assert_close(aliased.tensor[0, 0, :6], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    smooth = shortest_side(photo, Sizing(16, None, "bilinear")).tensor
    assert smooth.std() < aliased.tensor.std() / 2


def _stripes() -> bytes:
    columns = np.arange(72) % 2 == 0
    pixels = np.broadcast_to(np.where(columns, 255, 0)[None, :, None], (48, 72, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fully_convolutional": "yes"}, "fully_convolutional: 'yes' is neither true nor false"),
        ({"fully_convolutional": True}, "no fully convolutional twin of a TinyNetwork"),
        ({"output_gradient": "softmax"}, "unknown output gradient 'softmax'; valid: onehot_sum"),
    ],
)
def test_wrong_settings_of_a_fully_convolutional_run(photos, changes, expected):
    with pytest.raises(SettingsError, match=expected):
        make_plan(run_config(photos, **changes))


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"channel_order": "bgr"}, "channel_order"),
        ({"output_gradient": "pointing"}, "output_gradient"),
    ],
)
def test_each_setting_decides_the_run(photos, change, setting):
    # The weights' own mean and std are turned into the channel order, and would differ too.
    given = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    plain, changed = (make_plan(run_config(photos, **given, **c))[0] for c in ({}, change))
    assert plain.run_id != changed.run_id
    differing = {k for k, v in plain.identity.items() if changed.identity[k] != v}
    assert differing == {setting}


def test_the_twin_is_what_a_run_explains():
    spec = ModelSpec("resnet18", "random:0", 4)
    whole = spec.load()
    twin = ModelSpec("resnet18", "random:0", 4, fully_convolutional=True).load()
    x = torch.rand(1, 3, 224, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert twin(x).shape == (1, 4, 1, 2)
        torch.testing.assert_close(twin(x[..., :224])[..., 0, 0], whole(x[..., :224]))


def test_a_run_explains_the_twin_by_its_output_gradient(tmp_path):
    draw_photo(tmp_path / "set" / "0" / "photo.png", 0, size=(60, 40))
    settings = {
        **{"model": "resnet18", "weights": "random:0", "num_classes": 4, "input_size": 224},
        **{"layers": ["layer4"], "methods": ["normgrad"], "roles": ["class:1"]},
        **{"preprocess": "shortest_side_aliased", "fully_convolutional": True},
        "map_dtype": "float32",
    }
    twin = fully_convolutional(ModelSpec("resnet18", "random:0", 4).load())
    photo = images.decode(str(tmp_path / "set" / "0" / "photo.png"))
    tensor = shortest_side_aliased(photo, Sizing(224, None, "bilinear")).tensor
    batch = normalise(tensor[None], IMAGENET_MEAN, IMAGENET_STD)
    found = []
    for name in OUTPUT_GRADIENTS:
        config = run_config(tmp_path / "set", output_gradient=name, **settings)
        generate(config, str(tmp_path / name))
        (record,) = _maps(tmp_path / name)
        expected = Explainer(twin, ["layer4"], ["normgrad"], name)(batch, torch.tensor([[1]]))
        found.append(torch.from_numpy(record.values))
        torch.testing.assert_close(
            found[-1], expected["normgrad", "layer4"][0, 0], rtol=1e-3, atol=1e-6
        )
    assert found[0].shape == (7, 11)
    assert not torch.allclose(*found, rtol=0.1)
