"""A small scored run with boxes, for the tests of what shows maps: the gallery and pictures."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_network import run_config

from pipeline.generate import generate

METHODS = ("plain:scaling:sum", "normgrad", "grad_cam")
LAYERS = ("input", "middle", "late")
METRICS = ("pointing_game", "energy", "class_sensitivity")
NAMES = ("first", "second", "<b>third", "fourth")


def make_run(folder: Path, **changes: object) -> Path:
    """OUT of a run on four photos of 90 × 60 pixels, each with two boxes; they lie in `folder`."""
    rng = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(NAMES):
        noise = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 60)).save(folder / f"{name}.png")
        boxes = [
            {"class": "1", "box": [9, 6, 15 + i, 12]},
            {"class": "3", "box": [60, 20, 80, 50]},
        ]
        rows.append({"path": f"{name}.png", "labels": ["1", "3"], "boxes": boxes})
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "source": "table",
        "annotations": "table.jsonl",
        "methods": METHODS,
        "layers": LAYERS,
        "preprocess": "center_crop",
        "roles": ["label", "top", "least"],
        "variants": ["base", "meta(lr=0.05)"],
        "evaluate": METRICS,
        **changes,
    }
    generate(run_config(folder, **given), str(folder / "out"))
    return folder / "out"
