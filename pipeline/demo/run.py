"""The steps of `backlight demo`: draw photos, train a CNN, write its maps, score them."""

import json
from pathlib import Path

import torch
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.demo import cnn, photos
from pipeline.evaluate import Evaluation, evaluate
from pipeline.generate import generate
from pipeline.progress import RunProgress
from pipeline.store import names
from pipeline.workers.image_count import images_counted

PHOTOS = 120
METHODS = (
    "gradient",
    "gradient_sum",
    "guided_backprop",
    "guided_backprop_sum",
    "linear_approx",
    "normgrad",
    "normgrad_selective",
    "grad_cam",
)
LAYERS = ("input", *cnn.STAGES[:-1])
"""All but the last stage: no ReLU comes after it, so guided backprop is not defined there."""


def run_demo(out: Path, console: Console) -> Evaluation:
    """Write photos, weights, maps and statistics to `out`. What is there already is used again.

    The photos for training and those that are explained come from different seeds. `console` shows
    a line of text per step, and how far it is.

    Raises:
        SettingsError: `out / "maps"` holds another run.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    train_root, root, weights = out / "training", out / "photos", out / "small_cnn.pth"
    class_names, maps = out / "classes.json", str(out / "maps")
    if not weights.exists():
        say(f"drawing {cnn.TRAINING_PHOTOS} photos for training and {PHOTOS} to explain")
        photos.write_photos(train_root, cnn.TRAINING_PHOTOS, seed=1, sides=cnn.TRAINING_SIDES)
        photos.write_photos(root, PHOTOS, seed=2)
        class_names.write_text(json.dumps(photos.CLASSES))
        say("training a small CNN on one thread")
        with RunProgress(console, "training", "steps") as progress:

            def step(done: int, steps: int) -> None:
                if done == 1:
                    progress.start(steps)
                progress.add()

            state = cnn.train(train_root, seed=0, progress=step)
        network = cnn.small_cnn()
        network.load_state_dict(state)
        reached = cnn.accuracy(network, root)
        say(f"in {reached.top1:.0%} of the photos to explain, its most likely class is present")
        torch.save(state, weights)
    say(f"explaining {PHOTOS} photos: {len(METHODS)} methods × {len(LAYERS)} layers")
    config = RunConfig(
        source="table",
        root=str(root),
        annotations=photos.TABLE,
        model="pipeline.demo.cnn:small_cnn",
        weights=str(weights),
        class_index=str(class_names),
        layers=LAYERS,
        methods=METHODS,
        roles=("label", "top", "least", "random"),
        preprocess="stretch",
        input_size=cnn.INPUT_SIZE,
        mean=cnn.MEAN,
        std=cnn.STD,
    )
    with RunProgress(
        console, "generate", "images", lambda: images_counted(maps, names.MADE)
    ) as progress:
        summary = generate(
            config,
            maps,
            on_phase=progress.phase,
            on_start=lambda plan, before: progress.start(plan.examples, before),
            on_poll=progress.poll,
        )
    say(f"{summary.maps:,} maps of {summary.images} photos in {maps}; scoring them")
    with RunProgress(
        console, "evaluate", "images", lambda: images_counted(maps, names.SCORED)
    ) as progress:
        return evaluate(
            maps,
            metrics=("class_sensitivity", "pointing_game"),
            on_phase=progress.phase,
            on_start=progress.start,
            on_poll=progress.poll,
        )


def findings(evaluation: Evaluation) -> str:
    """What the statistics of the demo show, in words and figures."""
    values = {
        (row.metric, row.key.method, row.key.layer): row.value
        for row in evaluation.statistics
        if row.key.role in ("label", "top-least")
        and row.statistic == ("class_mean" if row.metric == "pointing_game" else "mean")
        and not row.key.class_name
    }

    def pointing(method: str, layer: str) -> str:
        return f"{values['pointing_game', method, layer]:.2f}"

    def correlation(method: str, layer: str) -> str:
        return f"{values['class_sensitivity', method, layer]:.2f}"

    first, last = cnn.STAGES[0], LAYERS[-1]
    return (
        "What these tables show. Pointing game: Grad-CAM falls from "
        f"{pointing('grad_cam', last)} at {last} to {pointing('grad_cam', first)} at {first}. "
        f"NormGrad does not fall: it has {pointing('normgrad', first)} at {first}, and selective "
        f"NormGrad has {pointing('normgrad_selective', last)} at {last} and "
        f"{pointing('normgrad_selective', first)} at {first}. Class sensitivity at the input: "
        "guided backprop hardly changes with the class (its correlation is "
        f"{correlation('guided_backprop_sum', 'input')} for the sum over channels and "
        f"{correlation('guided_backprop', 'input')} for the maximum). The gradient changes more "
        f"({correlation('gradient_sum', 'input')} and {correlation('gradient', 'input')})."
    )
