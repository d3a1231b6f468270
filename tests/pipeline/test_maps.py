"""The maps in OUT are those of the engine, for the classes that the roles stand for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import draw_photo, run_config
from torchvision.transforms import functional

from pipeline.example import Example
from pipeline.explain import choose
from pipeline.generate import generate
from pipeline.model.models import ModelSpec
from pipeline.preprocess import normalise
from pipeline.roles import parse_roles
from pipeline.store import MapDataset
from pipeline.store.records import PlannedExample
from transforms.engine import Explainer

pytestmark = pytest.mark.usefixtures("without_beam")

ROLES = ["label", "top", "top3", "least", "random", "class:2"]
LAYERS = ["early", "middle"]
METHODS = [
    "gradient",
    "guided_backprop",
    "normgrad",
    "grad_cam",
    "layer_cam",
    "deconvnet:scaling:norm",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with one label, with two, with a label unknown to the class map, and with none."""
    root = tmp_path_factory.mktemp("maps") / "set"
    labels = [["cat"], ["cat", "dog"], ["ufo"], [], ["dog", "ufo"], ["cat"]]
    rows = []
    for i, names in enumerate(labels):
        draw_photo(root / f"photo{i}.png", seed=i, size=(60, 44))
        rows.append(json.dumps({"path": f"photo{i}.png", "labels": names}))
    (root / "list.jsonl").write_text("\n".join(rows))
    (root / "map.json").write_text(json.dumps({"cat": ["0-1"], "dog": ["3", "4"], "ufo": []}))
    return root


def config_of(root: Path, **changes: object):
    settings: dict[str, object] = {
        "source": "table",
        "annotations": "list.jsonl",
        "class_map": str(root / "map.json"),
        "roles": ROLES,
        "methods": METHODS,
        "layers": LAYERS,
        "weights": "random:11",
        "map_dtype": "float32",
        "shard_size": 4,
        "batch_size": 3,
    }
    return run_config(root, **{**settings, **changes})


@pytest.fixture(scope="module")
def exact(root: Path, tmp_path_factory: pytest.TempPathFactory) -> MapDataset:
    out = str(tmp_path_factory.mktemp("maps") / "exact")
    generate(config_of(root), out)
    return MapDataset(out)


def network_input(root: Path, name: str) -> torch.Tensor:
    """`center_crop` as torchvision does it: the shortest side to 37, the middle 32."""
    photo = Image.open(root / name).convert("RGB")
    resized = functional.resize(photo, round(32 * 256 / 224))
    tensor = functional.to_tensor(functional.center_crop(resized, 32))
    return functional.normalize(tensor, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_every_map_is_the_one_of_a_direct_call(root, exact):
    frame = exact.frame(signed=True)
    model = ModelSpec("tiny_network:tiny", "random:11").load()
    with Explainer(model, LAYERS, METHODS) as explainer:
        for image_id, rows in frame.groupby("image_id"):
            targets = sorted(set(rows.target))
            maps = explainer(network_input(root, f"{image_id}.png")[None], torch.tensor([targets]))
            for row in rows.itertuples():
                expected = maps[row.method, row.layer][0, targets.index(row.target)].numpy()
                largest = np.abs(expected).max()
                np.testing.assert_allclose(row.map, expected, rtol=1e-5, atol=1e-5 * largest)
                assert row.logit == pytest.approx(float(maps.logits[0, row.target]), abs=1e-5)
                assert row.probability == pytest.approx(
                    float(maps.logits[0].softmax(0)[row.target]), abs=1e-6
                )


def test_float16_maps_are_the_exact_ones_rounded(root, exact, tmp_path):
    generate(config_of(root, map_dtype="float16"), str(tmp_path / "out"))
    rounded = MapDataset(str(tmp_path / "out")).frame(signed=True)
    for (_, one), (_, other) in zip(rounded.iterrows(), exact.frame(signed=True).iterrows()):  # noqa: B905
        largest = max(np.abs(other["map"]).max(), 1e-30)
        np.testing.assert_allclose(one["map"], other["map"], rtol=0, atol=largest * 2**-10)
    assert len(rounded) == len(exact.frame())


def test_only_the_cam_family_has_its_relu_on_reading(exact):
    rows = exact.maps(columns=["method", "relu_on_read"]).to_pylist()
    assert {row["method"] for row in rows if row["relu_on_read"]} == {"grad_cam", "layer_cam"}
    assert {row["method"] for row in rows if not row["relu_on_read"]} == {*METHODS} - {
        "grad_cam",
        "layer_cam",
    }
    signed = exact.frame(method="grad_cam", signed=True)["map"]
    assert any((values < 0).any() for values in signed)
    assert all((values >= 0).all() for values in exact.frame(method="grad_cam")["map"])


def test_the_roles_stand_for_their_classes(root, exact):
    model = ModelSpec("tiny_network:tiny", "random:11").load()
    chosen = exact.frame(columns=["image_id", "role", "target", "class_name"], method="gradient")
    chosen = chosen.drop_duplicates()
    labels = {"photo0": ["cat"], "photo1": ["cat", "dog"], "photo4": ["dog"], "photo5": ["cat"]}
    groups = {"cat": [0, 1], "dog": [3, 4]}
    for image_id, rows in chosen.groupby("image_id"):
        with torch.no_grad():
            logits = model(network_input(root, f"{image_id}.png")[None])[0]
        order = logits.argsort(descending=True).tolist()
        of_role = {role: part.target.tolist() for role, part in rows.groupby("role")}
        assert of_role["top"] == order[:1]
        assert sorted(of_role["top3"]) == sorted(order[:3])
        assert of_role["least"] == order[-1:]
        assert of_role["class:2"] == [2]
        found = rows[rows.role == "label"]
        assert found.class_name.tolist() == labels.get(image_id, [])
        for name, target in zip(found.class_name, found.target, strict=True):
            assert target == max(groups[name], key=lambda index: logits[index])
        present = {index for name in labels.get(image_id, []) for index in groups[name]}
        (drawn,) = of_role["random"]
        assert drawn not in present
        assert set(rows[rows.role != "label"].class_name) == {""}


def test_images_tell_their_labels_and_their_most_and_least_likely_class(root, exact):
    rows = {row["image_id"]: row for row in exact.images().to_pylist()}
    assert [label["class_name"] for label in rows["photo4"]["labels"]] == ["dog", "ufo"]
    assert [label["model_classes"] for label in rows["photo4"]["labels"]] == [[3, 4], []]
    assert rows["photo4"]["labels"][0]["chosen"] in (3, 4)
    assert rows["photo4"]["labels"][1]["chosen"] is None
    assert rows["photo3"]["labels"] == []
    maps = exact.maps(columns=["image_id", "role", "target", "logit", "probability", "target_name"])
    for row in maps.to_pylist():
        if row["role"] in ("top", "least"):
            image = rows[row["image_id"]]
            assert image[row["role"]] == row["target"]
            assert image[f"{row['role']}_logit"] == row["logit"]
            assert image[f"{row['role']}_probability"] == row["probability"]
            assert image[f"{row['role']}_name"] == row["target_name"] == f"class {row['target']}"


def test_a_random_class_is_the_same_in_every_run_and_differs_between_images():
    logits = torch.zeros(100)

    def drawn(image_id: str, targets: tuple[tuple[int, ...], ...] = ()) -> int:
        example = Example(image_id, "a.jpg", tuple(f"label {i}" for i in range(len(targets))))
        (chosen,), _ = choose(parse_roles(["random"]), PlannedExample(example, targets), logits)
        return chosen.target

    assert [drawn(f"image{i}") for i in range(50)] == [drawn(f"image{i}") for i in range(50)]
    assert len({drawn(f"image{i}") for i in range(50)}) > 25
    assert {drawn(f"image{i}", (tuple(range(99)),)) for i in range(50)} == {99}
    assert drawn("image", (tuple(range(100)),)) in range(100)


@pytest.mark.parametrize(
    ("preprocess", "input_size", "view"),
    [
        # resized to 50 × 37 (37 = 32 × 256 / 224), of which the middle 32 × 32 are seen
        ("center_crop", (32, 32), (9 * 60 / 50, 2 * 44 / 37, 32 * 60 / 50, 32 * 44 / 37)),
        ("stretch", (32, 32), (0, 0, 60, 44)),
        ("shortest_side", (43, 32), (0, 0, 60, 44)),
    ],
)
def test_the_view_and_the_sizes_are_those_of_the_preprocessing(
    root, tmp_path, preprocess, input_size, view
):
    config = config_of(root, preprocess=preprocess, methods=["gradient"], limit=1)
    generate(config, str(tmp_path / "out"))
    (row,) = MapDataset(str(tmp_path / "out")).images().to_pylist()
    assert (row["width"], row["height"]) == (60, 44)
    assert (row["input_width"], row["input_height"]) == input_size
    found = [row[f"view_{name}"] for name in ("left", "top", "width", "height")]
    assert found == pytest.approx(view, abs=1e-9)
    maps = MapDataset(str(tmp_path / "out")).maps(columns=["layer", "height", "width"]).to_pylist()
    sizes = {row["layer"]: (row["width"], row["height"]) for row in maps}
    width, height = input_size
    assert sizes["early"] == (-(-width // 2), -(-height // 2))
    assert sizes["middle"] == (-(-width // 4), -(-height // 4))


def test_label_targets_of_an_image_without_a_known_label_cost_no_maps(root, tmp_path):
    config = replace(config_of(root), roles=("label",), format=("parquet", "webdataset"))
    summary = generate(config, str(tmp_path / "out"))
    assert (summary.images, summary.errors) == (6, 0)
    assert summary.maps == summary.plan.planned_maps == 5 * len(METHODS) * len(LAYERS)
    image_ids = set(MapDataset(str(tmp_path / "out")).maps()["image_id"].to_pylist())
    assert image_ids == {"photo0", "photo1", "photo4", "photo5"}


def test_squeezenet_on_coco(shared_data, tmp_path):
    """Real weights and photos: the class map, boxes and masks, and the maps of a direct call."""
    weights = str(shared_data / "weights" / "squeezenet1_1-imagenet.pth")
    config = run_config(
        shared_data / "coco",
        source="coco",
        split="train2017",
        model="squeezenet1_1",
        weights=weights,
        methods=["normgrad", "grad_cam"],
        layers=["last"],
        input_size=160,
        limit=6,
        map_dtype="float32",
        shard_size=3,
    )
    summary = generate(config, str(tmp_path / "out"))
    assert (summary.images, summary.errors) == (6, 0)
    dataset = MapDataset(str(tmp_path / "out"))
    rows = dataset.images().to_pylist()
    assert all(min(row["input_width"], row["input_height"]) == 160 for row in rows)
    instances = json.loads(
        (shared_data / "coco" / "annotations" / "instances_train2017.json").read_text()
    )
    by_file = {image["file_name"]: image["id"] for image in instances["images"]}
    for row in rows:
        image = by_file[Path(row["path"]).name]
        own = [a for a in instances["annotations"] if a["image_id"] == image]
        assert len(row["regions"]) == len(own)
    model = ModelSpec("squeezenet1_1", weights).load()
    row = rows[0]
    photo = Image.open(shared_data / "coco" / row["path"]).convert("RGB")
    tensor = functional.to_tensor(functional.resize(photo, 160))
    batch = normalise(tensor[None], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    frame = dataset.frame(method="grad_cam", image_id=row["image_id"], role="top", signed=True)
    maps = Explainer(model, ["features.12"], ["grad_cam"])(batch, torch.tensor([[row["top"]]]))
    expected = maps["grad_cam", "features.12"][0, 0].numpy()
    assert int(maps.logits[0].argmax()) == row["top"]
    np.testing.assert_allclose(
        frame["map"].item(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
    )
