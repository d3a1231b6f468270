"""How long `compare` takes, and how much memory, for made-up scores of many images.

    uv run python tests/benchmarks/compare_at_scale.py --images 100000 --layers 1

Writes files of scores as a run has them (pointing game, three classes per image), compares all
methods, and prints the seconds of CPU and the peak of memory.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import schemas
from pipeline.store.commit import entry_of
from pipeline.store.comparison import Question, compare_runs
from pipeline.store.score_arrays import ScoredRun

PER_SHARD = 128
CLASSES_PER_IMAGE = 3


def shard(start: int, images: int, methods: int, layers: int, classes: int) -> pa.Table:
    """The scores of some images: better methods hit more often, and all hit the same images."""
    random = np.random.default_rng(start)
    shape = layers, methods, images, CLASSES_PER_IMAGE
    ease = random.normal(size=shape[2:])
    skill = np.linspace(0.3, 0, methods)[None, :, None, None]
    values = (ease + skill + random.normal(size=shape) > 0).astype(float)
    values[random.random(shape) < 0.001] = np.nan
    index = np.indices(shape).reshape(4, -1)
    of_class = random.integers(0, classes, shape[2:])
    of_class += classes * np.arange(CLASSES_PER_IMAGE)  # distinct within an image
    count = values.size
    columns = {
        "image_id": [f"{start + i:012d}" for i in index[2]],
        "metric": ["pointing_game"] * count,
        "variant": ["base"] * count,
        "method": [f"method{i}" for i in index[1]],
        "layer": [f"layer{i}" for i in index[0]],
        "role": ["label"] * count,
        "target": np.zeros(count, dtype=np.int32),
        "class_name": [f"class {i}" for i in of_class[index[2], index[3]]],
        "value": values.ravel(),
        "ties": np.ones(count, dtype=np.int32),
        "upsampling": ["bilinear"] * count,
        "curve": pa.nulls(count, schemas.SCORES.field("curve").type),
    }
    names = schemas.SCORES.names
    return pa.table({name: columns.get(name, [""] * count) for name in names}, schemas.SCORES)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("images", 750), ("methods", 8), ("layers", 5), ("classes", 27)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--replicates", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scored = {}
        for start in range(0, given.images, PER_SHARD):
            path = Path(folder) / f"{start}.parquet"
            count = min(PER_SHARD, given.images - start)
            table = shard(start, count, given.methods, given.layers, given.classes)
            pq.write_table(table, path, compression="zstd")
            scored[path.name] = entry_of(path.read_bytes())
        methods = tuple(f"method{i}" for i in range(given.methods))
        layers = tuple(f"layer{i}" for i in range(given.layers))
        scoring = (), ("pointing_game",), ("bilinear",), ("boxes",)
        run = ScoredRun("made up", folder, scored, "", layers, methods, ("base",), *scoring)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, began_cpu = time.perf_counter(), time.process_time()
        found = compare_runs([run], Question(replicates=given.replicates))
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = given.images * given.methods * given.layers * CLASSES_PER_IMAGE
    print(
        f"{given.images:,} images, {scores:,} scores, {found.pairs.num_rows} pairs, "
        f"{given.replicates} replicates: {cpu:.1f} s of CPU ({seconds:.1f} s), "
        f"peak {peak / 1e3:,.0f} MB, before {before / 1e3:,.0f} MB"
    )


if __name__ == "__main__":
    main()
