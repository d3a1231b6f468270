"""MobileNetV2's gradient at its last layer is the same everywhere: undefined, and counted."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import run_config
from torch import Tensor
from torchvision.models import mobilenet_v2
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

from pipeline.generate import generate
from pipeline.preprocess import IMAGENET_MEAN, IMAGENET_STD
from pipeline.store import MapDataset
from pipeline.store.encoding import MapDtype, decode, encode
from transforms.constant import is_constant
from transforms.engine import Explainer
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS, score_maps

LAYER, METHOD = "features.18", "gradient_sum"
PHOTOS = 12
VARIANTS = ("base", "meta(lr=+0.0025)", "meta(lr=-0.0025)")

pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    path = shared_data / "weights" / "mobilenet_v2-imagenet.pth"
    if not path.is_file() or not (shared_data / "imagenet" / "images").is_dir():
        pytest.skip(f"no weights at {path}, or no photos in {shared_data / 'imagenet' / 'images'}")
    return path


@pytest.fixture(scope="module")
def photos(weights: Path, shared_data: Path) -> list[Path]:
    """Every eighth of the photos."""
    return sorted((shared_data / "imagenet" / "images").glob("*.JPEG"))[::8][:PHOTOS]


@pytest.fixture(scope="module")
def explainer(weights: Path) -> Iterator[Explainer]:
    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with Explainer(network, [LAYER], [METHOD]) as explainer:
        yield explainer


@pytest.fixture(scope="module")
def inputs(photos: list[Path]) -> Tensor:
    opened = (Image.open(path).convert("RGB") for path in photos)
    whole = (center_crop(resize(to_tensor(photo), [256]), [224]) for photo in opened)
    return torch.stack([normalize(photo, IMAGENET_MEAN, IMAGENET_STD) for photo in whole])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory_format", "batch"), [(torch.contiguous_format, 1), (torch.channels_last, 8)]
)
def test_every_map_is_constant_and_undefined_for_every_metric(
    explainer: Explainer, inputs: Tensor, memory_format: torch.memory_format, batch: int
) -> None:
    found = []
    for some in inputs.split(batch):
        targets = [lambda logits: [int(logits.argmax()), int(logits.argmin())]] * len(some)
        maps = explainer(some.contiguous(memory_format=memory_format), targets)
        found.append(maps[METHOD, LAYER].clone())
    maps_of_all = torch.cat(found)
    assert maps_of_all.shape == (PHOTOS, 2, 7, 7)
    assert maps_of_all.abs().amin() > 0  # it is no zero signal
    # Far from the border of what is constant, in float64.
    exact = maps_of_all.double().flatten(2)
    spread = (exact.amax(2) - exact.amin(2)) / exact.abs().amax(2)
    assert spread.amax() < 2.0**-10 / 4
    dtypes: tuple[MapDtype, ...] = ("float16", "float32")
    for dtype in dtypes:
        for number, pair in enumerate(maps_of_all.numpy()):
            stored = [encode(np.ascontiguousarray(values), dtype) for values in pair]
            assert all(each.is_constant for each in stored)
            read = [torch.from_numpy(decode(s.stored, s.scale, relu=False)) for s in stored]
            assert is_constant(torch.stack(read)).all()
            if number % 4 == 0:
                assert_undefined(read)


def assert_undefined(maps: list[Tensor]) -> None:
    """The maps of the most and the least likely class, in every role that a metric needs."""
    keys, values = [], []
    for variant in VARIANTS:
        for method in ("normgrad", "normgrad_real"):
            for role, name, own in (("label", "cat", 0), ("top", "", 0), ("least", "", 1)):
                keys.append(MapKey(variant, method, LAYER, role, own, name))
                values.append(maps[own])
    region = torch.zeros(60, 80, dtype=torch.bool)
    region[10:50, 10:60] = True
    size, view = (60, 80, 224, 224), (0.0, 0.0, 80.0, 60.0)
    boxes = {"cat": [(10.0, 10.0, 60.0, 50.0)]}
    image = ImageMaps("a", *size, view, {"cat": region}, keys, values, boxes, region="boxes")
    scores = [score for score in score_maps(image, METRICS) if score.key.method != "center"]
    assert {score.metric for score in scores} == set(METRICS)
    for score in scores:
        if score.metric == "constant_map":
            assert score.value == 1
        else:
            assert math.isnan(score.value), score


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_run_counts_them_as_undefined(
    photos: list[Path], weights: Path, shared_data: Path, tmp_path: Path, dtype: str
) -> None:
    rows = []
    for path in photos:
        synset = path.name.partition("_")[0]
        boxes = [{"label": synset, "box": [40, 40, 160, 160]}]
        rows.append(json.dumps({"path": path.name, "boxes": boxes}))
    listed = tmp_path / "list.jsonl"
    listed.write_text("\n".join(rows))
    asked = ["class_sensitivity", "pointing_game", "energy", "mask_iou", "constant_map"]
    config = run_config(
        photos[0].parent,
        source="table",
        annotations=str(listed),
        model="mobilenet_v2",
        weights=str(weights),
        class_index=str(shared_data / "imagenet" / "imagenet_class_index.json"),
        methods=[METHOD],
        layers=[LAYER],
        roles=["label", "top", "least"],
        evaluate=asked,
        combine=["sum:uniform"],
        input_size=224,
        batch_size=8,
        shard_size=PHOTOS,
        map_dtype=dtype,
    )
    out = tmp_path / "out"
    summary = generate(config, str(out))
    assert (summary.images, summary.maps) == (PHOTOS, 3 * PHOTOS)
    dataset = MapDataset(str(out))
    assert all(dataset.maps(columns=["is_constant"])["is_constant"].to_pylist())
    of_maps = [r for r in dataset.statistics().to_pylist() if r["method"] == METHOD]
    assert {row["metric"] for row in of_maps} == set(asked)
    for row in of_maps:
        if row["class_name"] or row["statistic"] not in ("mean", "class_mean", "max_mean_iou"):
            continue
        if row["metric"] == "constant_map":
            assert (row["value"], row["n"], row["undefined"]) == (1.0, PHOTOS, 0)
        else:
            assert (row["n"], row["undefined"]) == (0, PHOTOS), row
            assert math.isnan(row["value"])
