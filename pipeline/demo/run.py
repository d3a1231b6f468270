"""The whole road on made-up photos: draw, train, generate, evaluate."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.config import RunConfig
from pipeline.demo import cnn, photos
from pipeline.evaluate import Evaluation, evaluate
from pipeline.generate import generate

PHOTOS = 120
METHODS = (
    "gradient",
    "linear_approx",
    "normgrad",
    "normgrad_selective",
    "guided_backprop",
    "deconvnet",
    "grad_cam",
    "layer_cam",
)


def run_demo(out: Path, say: Callable[[str], None]) -> Evaluation:
    """Write photos, weights, maps and statistics to ``out``; takes up what is there already.

    Training and explained photos come from different seeds. ``say`` gets a line a step.

    Raises:
        SettingsError: ``out / "maps"`` holds another run.
    """
    train_root, root, weights = out / "training", out / "photos", out / "small_cnn.pth"
    names = out / "classes.json"
    if not weights.exists():
        say(f"drawing {cnn.TRAINING_PHOTOS} training photos and {PHOTOS} others")
        photos.write_photos(train_root, cnn.TRAINING_PHOTOS, seed=1, sides=cnn.TRAINING_SIDES)
        photos.write_photos(root, PHOTOS, seed=2)
        names.write_text(json.dumps(photos.CLASSES))
        say("training a small CNN on one thread")
        state = cnn.train(train_root, seed=0)
        network = cnn.small_cnn()
        network.load_state_dict(state)
        reached = cnn.accuracy(network, root)
        say(f"its most likely class is in the photo in {reached.top1:.0%} of the other photos")
        torch.save(state, weights)
    say(f"explaining {PHOTOS} photos: {len(METHODS)} methods × {len(cnn.STAGES)} layers")
    config = RunConfig(
        source="table",
        root=str(root),
        annotations=photos.TABLE,
        model="pipeline.demo.cnn:small_cnn",
        weights=str(weights),
        class_index=str(names),
        layers=cnn.STAGES,
        methods=METHODS,
        targets=("label", "top", "least", "random"),
        preprocess="stretch",
        input_size=cnn.INPUT_SIZE,
        mean=cnn.MEAN,
        std=cnn.STD,
    )
    summary = generate(config, str(out / "maps"))
    say(f"{summary.maps:,} maps of {summary.images} photos in {out / 'maps'}; scoring them")
    return evaluate(str(out / "maps"))
