"""A CNN of three layers for tests, named to Backlight as `tiny_network:tiny`, and its photos."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.config import RunConfig

CLASSES = 5


class TinyNetwork(nn.Module):
    """Images `[B, 3, H, W]` → logits `[B, classes]`."""

    stages = ("early", "middle", "late")

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.late(self.middle(self.early(images)))
        return self.head(features.mean((2, 3)))


def tiny(num_classes: int = CLASSES) -> TinyNetwork:
    return TinyNetwork(num_classes)


class PausingNetwork(TinyNetwork):
    """Takes its time where the environment says so, so that a test can break into a run."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(float(os.environ.get("TINY_NETWORK_PAUSE", "0")))
        return super().forward(images)


def pausing() -> TinyNetwork:
    return PausingNetwork(CLASSES)


class CallingNetwork(TinyNetwork):
    """Is long in one call of torch, on a matrix of as many rows as the environment says."""

    def forward(self, images: Tensor) -> Tensor:
        if rows := int(os.environ.get("TINY_NETWORK_CALL", "0")):
            generator = torch.Generator().manual_seed(0)
            torch.linalg.eigvals(torch.rand(rows, rows, generator=generator))
        return super().forward(images)


def calling() -> TinyNetwork:
    return CallingNetwork(CLASSES)


class WhiteNetwork(TinyNetwork):
    """Does what the environment says at a white photo: `kill`, `hang`, or `allocate` too much."""

    def forward(self, images: Tensor) -> Tensor:
        if any(image.min() > 2 for image in images.flatten(1)):  # after the normalisation
            match os.environ.get("TINY_NETWORK_WHITE"):
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "allocate":
                    torch.empty(1 << 60, dtype=torch.uint8)
        return super().forward(images)


def minds_white() -> TinyNetwork:
    return WhiteNetwork(CLASSES)


def draw_white(path: Path, size: tuple[int, int] = (44, 44)) -> None:
    """A white photo in the place of another."""
    Image.new("RGB", size, "white").save(path)


def without_stages() -> nn.Module:
    """No layer gives a map of more than one cell."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))


def twin_layers() -> nn.Module:
    """Two layers whose names differ in case alone."""
    network = tiny()
    network.late, network.Late = network.late[0], network.late[1]
    network.forward = lambda images: network.head(
        network.Late(network.late(network.middle(network.early(images)))).mean((2, 3))
    )
    return network


def no_module() -> str:
    return "a network"


not_callable = "a network"


def draw_photo(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> None:
    """A smooth made-up photo of `size` (width, height), as lossless as its suffix allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def draw_set(root: Path, count: int = 7) -> Path:
    """`count` photos of several sizes in folders named by class index; returns `root`."""
    for i in range(count):
        draw_photo(root / str(i % 3) / f"photo{i}.png", seed=i, size=(40 + 4 * i % 24, 44))
    return root


def draw_boxed_set(root: Path, count: int) -> Path:
    """`count` photos with a box each, in the list of a table; returns `root`."""
    rows = []
    for i in range(count):
        draw_photo(root / f"photo{i}.png", seed=i)
        boxes = [{"label": str(i % 3), "box": [4, 4, 20 + i, 22]}]
        rows.append(json.dumps({"path": f"photo{i}.png", "boxes": boxes}))
    (root / "list.jsonl").write_text("\n".join(rows))
    return root


def boxed_config(root: Path, **changes: object) -> RunConfig:
    """A small run of the tiny network on `draw_boxed_set`, at two layers."""
    given = {"layers": ["middle", "late"], "shard_size": 3, "batch_size": 3, **changes}
    return run_config(root, source="table", annotations="list.jsonl", preprocess="stretch", **given)


def run_config(root: Path, **changes: object) -> RunConfig:
    """A small run of the tiny network on an imagefolder."""
    settings: dict[str, object] = {
        "source": "imagefolder",
        "root": str(root),
        "model": "tiny_network:tiny",
        "methods": ["gradient", "normgrad", "grad_cam"],
        "input_size": 32,
        "shard_size": 2,
        "batch_size": 2,
    }
    return RunConfig.from_settings({**settings, **changes})
