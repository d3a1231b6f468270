"""The demo's small CNN and its training: `--model pipeline.demo.cnn:small_cnn`.

`train` turns a folder of `photos.write_photos` into weights in well under a minute of one core:
most of its steps see small windows around an object, which cost a seventh of a whole photo, and
only the last ones see whole photos.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pipeline.demo.photos import CLASSES, TABLE

INPUT_SIZE = 128  # pixels: the whole photo is resized to this square, its aspect is not kept
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")
TRAINING_PHOTOS = 400  # enough for `train`
TRAINING_SIDES = (140, 180)  # pixels: larger training photos take longer and teach no more


class SmallCNN(nn.Module):
    """Five stages of convolutions, the mean over locations, and one linear layer.

    Takes `[B, 3, h, w]` of any size (trained at `INPUT_SIZE`), normalised by `MEAN` and `STD`;
    returns logits `[B, num_classes]`. `stage1` to `stage5` have strides 2, 4, 8, 16 and 16.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stage1 = _stage(3, 12, stride=2, convolutions=1)
        self.stage2 = _stage(12, 24, stride=2, convolutions=2)
        self.stage3 = _stage(24, 40, stride=2, convolutions=2)
        self.stage4 = _stage(40, 64, stride=2, convolutions=2)
        self.stage5 = _stage(64, 96, stride=1, convolutions=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of normalised images `[B, 3, h, w]`."""
        x = self.stage3(self.stage2(self.stage1(images)))
        x = self.stage5(self.stage4(x))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


@dataclass(frozen=True)
class Accuracy:
    """How well a model names the objects of photos."""

    top1: float  # share of photos whose most likely class is one of their labels
    mean_average_precision: float  # mean over classes


@dataclass(frozen=True)
class Phase:
    """A stretch of the training: below `INPUT_SIZE` it sees windows, else whole photos."""

    side: int  # of the square it sees, in the network's pixels
    epochs: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Photos:
    """A folder of photos at the network's input size."""

    pixels: Tensor  # uint8 [N, 3, INPUT_SIZE, INPUT_SIZE]
    labels: Tensor  # float32 [N, K]: 1 where the class is present
    classes: list[np.ndarray]  # of each photo: int [objects]
    boxes: list[np.ndarray]  # of each photo: float [objects, 4], in the network's pixels


PHASES = (Phase(48, 48, 64, 1e-2), Phase(INPUT_SIZE, 8, 16, 4e-3))


def small_cnn(num_classes: int = len(CLASSES)) -> SmallCNN:
    """Build the network with random weights; output `i` belongs to `photos.CLASSES[i]`."""
    return SmallCNN(num_classes)


def train(
    root: Path, seed: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Tensor]:
    """Train on the photos in `root`, one binary decision a class, on one thread.

    Args:
        root: a folder of `photos.write_photos`.
        seed: decides weights, windows and order; the same seed gives the same weights.
        progress: called with (steps done, steps in all) after each step.

    Returns:
        The `state_dict` for `small_cnn()`.
    """
    photos = read_photos(root)
    rng = np.random.default_rng(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = small_cnn().train()
        steps = [phase.epochs * len(photos.pixels) // phase.batch for phase in PHASES]
        done = 0
        for phase, count in zip(PHASES, steps, strict=True):
            for _ in _train_phase(model, photos, phase, count, rng):
                done += 1
                if progress:
                    progress(done, sum(steps))
    finally:
        torch.set_num_threads(threads)
    return model.state_dict()


def accuracy(model: nn.Module, root: Path) -> Accuracy:
    """Measure a model (set to eval mode) on the photos in `root`."""
    photos = read_photos(root)
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(_normalised(batch)) for batch in photos.pixels.split(64)])
    named = photos.labels[torch.arange(len(logits)), logits.argmax(1)]
    present = photos.labels.any(0).nonzero().flatten().tolist()
    precisions = [_average_precision(photos.labels[:, k], logits[:, k]) for k in present]
    return Accuracy(float(named.mean()), float(np.mean(precisions)))


def read_photos(root: Path) -> Photos:
    """Read a folder of `photos.write_photos`."""
    rows = [json.loads(line) for line in (root / TABLE).read_text(encoding="utf-8").splitlines()]
    pixels = np.empty((len(rows), INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    labels = torch.zeros(len(rows), len(CLASSES))
    classes, boxes = [], []
    for number, row in enumerate(rows):
        with Image.open(root / row["path"]) as photo:
            scale = (INPUT_SIZE / np.array(photo.size * 2)).astype(np.float32)
            square = (INPUT_SIZE, INPUT_SIZE)
            resized = photo.convert("RGB").resize(square, Image.Resampling.BILINEAR)
        pixels[number] = np.asarray(resized)
        classes.append(np.array([CLASSES.index(region["class"]) for region in row["boxes"]]))
        boxes.append(np.array([region["box"] for region in row["boxes"]]) * scale)
        labels[number, classes[-1]] = 1
    return Photos(torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, classes, boxes)


def _stage(channels_in: int, channels: int, stride: int, convolutions: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, convolutions + 1):
        first = number == 1
        layers[f"conv{number}"] = nn.Conv2d(
            channels_in if first else channels,
            channels,
            kernel_size=3,
            stride=stride if first else 1,
            padding=1,
            bias=False,
        )
        layers[f"norm{number}"] = nn.BatchNorm2d(channels)
        layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pixels / 255 - mean) / std


def _train_phase(
    model: SmallCNN, photos: Photos, phase: Phase, steps: int, rng: np.random.Generator
) -> Iterator[None]:
    """Train for `steps` steps, yielding after each."""
    rate = phase.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.2
    )
    order = np.concatenate([rng.permutation(len(photos.pixels)) for _ in range(phase.epochs)])
    for step in range(steps):
        chosen = order[step * phase.batch : (step + 1) * phase.batch]
        if phase.side < INPUT_SIZE:
            pixels, labels = _windows(photos, chosen, phase.side, rng)
        else:
            pixels, labels = photos.pixels[chosen], photos.labels[chosen]
        # This memory layout and the fused optimizer save a quarter of the time.
        images = _normalised(pixels).contiguous(memory_format=torch.channels_last)
        if rng.random() < 0.5:
            images = images.flip(3)
        loss = functional.binary_cross_entropy_with_logits(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield


def _windows(
    photos: Photos, chosen: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cut a window around one object of each chosen photo.

    Returns:
        Pixels uint8 `[B, 3, side, side]`, and labels float32 `[B, K]`: the share of each class's
        box that the window shows.
    """
    pixels, labels = [], torch.zeros(len(chosen), photos.labels.shape[1])
    for row, photo in enumerate(chosen):
        boxes = photos.boxes[photo]
        box = boxes[rng.integers(len(boxes))]
        centre = (box[:2] + box[2:]) / 2
        corner = centre - side * rng.uniform(0.25, 0.75, 2)
        left, top = corner.clip(0, INPUT_SIZE - side).astype(int)
        pixels.append(photos.pixels[photo, :, top : top + side, left : left + side])
        inside = np.minimum(boxes[:, 2:], (left + side, top + side)) - np.maximum(
            boxes[:, :2], (left, top)
        )
        shown = inside.clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        labels[row, photos.classes[photo]] = torch.from_numpy(shown.astype(np.float32))
    return torch.stack(pixels), labels


def _average_precision(labels: Tensor, scores: Tensor) -> float:
    ranked = labels[scores.argsort(descending=True, stable=True)]
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float(precision[ranked > 0].mean())
