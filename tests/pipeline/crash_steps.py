"""The commands that are broken at every point: small runs of the tiny network, of both formats."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from beam_stand_in import without_beam
from crash_points import Step
from tiny_network import boxed_config, draw_boxed_set

from pipeline.evaluate import evaluate
from pipeline.generate import generate

PHOTOS = 3
METRIC = "class_sensitivity"
SETTINGS: dict[str, object] = {
    "format": ["parquet", "webdataset"],
    "methods": ["gradient"],
    "layers": ["late"],
    "roles": ["top", "least"],
    "shard_size": 2,
}
MAPS = PHOTOS * 2


@contextmanager
def breakable() -> Iterator[None]:
    """Without Beam; a dead command's lock is not watched for long."""
    with without_beam(), patch("pipeline.store.lock._WATCH_SECONDS", 0.0):
        yield


def fill_folder(out: Path, source: Path | None) -> None:
    """Have in `out` what is in `source`, and nothing else."""
    shutil.rmtree(out, ignore_errors=True)
    if source:
        shutil.copytree(source, out)


def steps(folder: Path, fill: Callable[[Any, Path | None], None] = fill_folder) -> list[Step]:
    """The commands, with what they are run on; to be used in `breakable`.

    `fill` is `fill_folder`, or what does the same on an object store.
    """
    root = draw_boxed_set(folder / "set", PHOTOS)
    config = boxed_config(root, **SETTINGS)
    scored = boxed_config(root, **SETTINGS, evaluate=[METRIC])

    whole = folder / "whole"
    generate(config, str(whole))

    broken = Path(shutil.copytree(whole, folder / "broken"))
    content = bytearray((broken / "maps/maps-00000-of-00002.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "maps/maps-00000-of-00002.parquet").write_bytes(content)
    (broken / "tars/maps-00001-of-00002.tar").unlink()
    (broken / "README.md").write_text("changed")
    (broken / "errors/errors-00007-of-00002.parquet").write_bytes(b"left over")

    torn = Path(shutil.copytree(root, folder / "torn"))
    (torn / "photo1.png").write_bytes((root / "photo1.png").read_bytes()[:90])
    failed = folder / "failed"
    generate(boxed_config(torn, **SETTINGS), str(failed))

    other = folder / "other"
    generate(boxed_config(root, **SETTINGS, limit=1), str(other))

    def afresh(out: Any) -> None:
        fill(out, None)

    def copied(source: Path) -> Any:
        return lambda out: fill(out, source)

    return [
        Step("generate", MAPS, afresh, lambda out: generate(config, str(out), on_fault=str)),
        Step(
            "generate --evaluate",
            MAPS,
            afresh,
            lambda out: generate(scored, str(out), on_fault=str),
        ),
        Step(
            "evaluate",
            MAPS,
            copied(whole),
            lambda out: evaluate(str(out), metrics=[METRIC], replicates=5, on_fault=str),
        ),
        Step(
            "generate --repair",
            MAPS,
            copied(broken),
            lambda out: generate(config, str(out), repair=True, on_fault=str),
        ),
        Step(
            "generate --retry-errors",
            MAPS,
            copied(failed),
            lambda out: generate(config, str(out), retry_errors=True, on_fault=str),
        ),
        Step(
            "generate --overwrite",
            MAPS,
            copied(other),
            lambda out: generate(config, str(out), overwrite=True, on_fault=str),
        ),
    ]
