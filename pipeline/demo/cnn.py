"""The demo's small CNN and its training: `--model pipeline.demo.cnn:small_cnn`.

`train` makes the weights from a folder of `photos.write_photos`, in well under a minute on one
core. Most steps see small windows around an object, which cost a seventh of a whole photo. Only the
last steps see whole photos.
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
from pipeline.workers.one_thread import on_one_thread

INPUT_SIZE = 128
"""Pixels per side of the square to which the whole photo is stretched."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")

TRAINING_PHOTOS = 400
"""How many photos are enough for `train`."""

TRAINING_SIDES = (140, 180)
"""Sides of training photos in pixels. Larger ones take longer and do not improve the model."""


class SmallCNN(nn.Module):
    """Five stages of convolutions, the mean over locations, and one linear layer.

    It takes images `[B, 3, h, w]`, normalised by `MEAN` and `STD`, and returns logits
    `[B, num_classes]`. It is trained at `INPUT_SIZE` and takes any size. `stage1` to `stage5` have
    strides 2, 4, 8, 16 and 16.
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
    """How well a model names the objects of photos.

    Attributes:
        top1: share of photos whose most likely class is one of their labels.
        mean_average_precision: average precision, mean over the classes.
    """

    top1: float
    mean_average_precision: float


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Attributes:
        side: side of the images in the network's pixels. Below `INPUT_SIZE` they are windows of
            photos, otherwise whole photos.
        epochs: how often each photo is seen.
        batch: images per step.
        learning_rate: the highest rate of the schedule.
    """

    side: int
    epochs: int
    batch: int
    learning_rate: float


@dataclass(frozen=True)
class Photos:
    """A folder of photos at the network's input size.

    Attributes:
        pixels: uint8 `[N, 3, INPUT_SIZE, INPUT_SIZE]`.
        labels: float32 `[N, K]`, 1 where the class is present.
        classes: per photo, the class of each object, int `[objects]`.
        boxes: per photo, the box of each object, float `[objects, 4]`, in the network's pixels.
    """

    pixels: Tensor
    labels: Tensor
    classes: list[np.ndarray]
    boxes: list[np.ndarray]


PHASES = (Phase(48, 48, 64, 1e-2), Phase(INPUT_SIZE, 8, 16, 4e-3))


def small_cnn(num_classes: int = len(CLASSES)) -> SmallCNN:
    """Build the network with random weights; output `i` belongs to `photos.CLASSES[i]`."""
    return SmallCNN(num_classes)


def train(
    root: Path, seed: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, Tensor]:
    """Train on the photos in `root`, with one binary decision per class, on one thread.

    Args:
        root: a folder of `photos.write_photos`.
        seed: of the first weights, the windows and the order; the same seed gives the same weights.
        progress: called after each step with the number of steps done and of all steps.

    Returns:
        The `state_dict` for `small_cnn()`.
    """
    photos = read_photos(root)
    rng = np.random.default_rng(seed)
    with on_one_thread():
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
    return model.state_dict()


def accuracy(model: nn.Module, root: Path) -> Accuracy:
    """Measure a model on the photos in `root`. The model is set to eval mode."""
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
    """Train for `steps` steps and yield after each."""
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
