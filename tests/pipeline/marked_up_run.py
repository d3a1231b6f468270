"""A scored run whose class names are markup, for the tests of reports."""

import json
from pathlib import Path

from tiny_network import draw_photo, run_config

from pipeline.config import RunConfig
from pipeline.generate import generate

NAMES = (
    "<b>bold</b>",
    "</script><script>alert(1)</script>",
    "a & 'b'",
    '"quoted" {{ 1 }}',
    "plain",
)
"""The classes of the model and of the dataset."""

IMAGES = 24


def make_run(folder: Path) -> Path:
    """OUT of 24 photos with two boxes each, of the base model and a cascade; they lie in `folder`.

    The name of OUT is markup, too.
    """
    rows = []
    for i in range(IMAGES):
        draw_photo(folder / f"photo{i}.png", seed=i)
        boxes = [
            {"label": NAMES[i % 3], "box": [2, 2, 12 + i % 7, 14]},
            {"label": NAMES[4], "box": [30, 20, 46, 38]},
        ]
        rows.append(json.dumps({"path": f"photo{i}.png", "boxes": boxes}))
    (folder / "list.jsonl").write_text("\n".join(rows))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    out = folder / "<i>out & co"
    generate(config_of(folder), str(out))
    return out


def config_of(folder: Path, **changes: object) -> RunConfig:
    """The settings of the run on what `make_run` has written to `folder`."""
    settings = {
        "source": "table",
        "annotations": "list.jsonl",
        "class_index": str(folder / "classes.json"),
        "preprocess": "stretch",
        "layers": ["middle", "late"],
        "roles": ["label", "top", "least", "random"],
        "variants": ["base", "cascade"],
        "evaluate": ["class_sensitivity", "pointing_game", "energy", "variant_correlation"],
        "shard_size": 8,
        "batch_size": 8,
    }
    return run_config(folder, **{**settings, **changes})
