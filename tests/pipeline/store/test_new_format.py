"""A format is one entry in the table: a toy one, made here, goes all the way of a run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_network import run_config

from pipeline.estimate.estimation import estimate
from pipeline.evaluate import evaluate
from pipeline.files import HashedFile
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.store.clear import clear
from pipeline.store.encoding import MapDtype, decode, encode
from pipeline.store.filters import Filters
from pipeline.store.formats import FORMATS, Format
from pipeline.store.records import ImageAndMaps, MapRecord
from pipeline.store.rows import table_of_maps
from pipeline.store.verify import verify
from transforms.map_key import MapKey

pytestmark = pytest.mark.usefixtures("without_beam")


def write(
    file: HashedFile,
    images: Sequence[ImageAndMaps],
    map_dtype: MapDtype,
    metadata: Mapping[str, str],
) -> int:
    """One .npz per shard: an array per map, and what they are as JSON."""
    facts, arrays = [], {}
    for image, records in images:
        for m in sorted(records, key=lambda m: m.key):
            stored = encode(m.values, map_dtype)
            arrays[f"map{len(facts)}"] = stored.stored
            numbers = [float(np.float32(m.logit)), float(np.float32(m.probability))]
            facts.append(
                [image.image_id, [*m.key], m.target_name, *numbers, m.relu_on_read, stored.scale]
            )
    np.savez(file, facts=json.dumps(facts), **arrays)
    return len(facts)


def read(path: str, signed: bool) -> Iterator[tuple[str, MapRecord]]:
    with np.load(path) as file:
        for i, (image_id, key, *facts, relu, scale) in enumerate(json.loads(str(file["facts"]))):
            values = decode(file[f"map{i}"], scale, relu and not signed)
            yield image_id, MapRecord(MapKey(*key), *facts, relu, values)


def read_images(path: str, image_ids: Sequence[str], signed: bool) -> Iterator[list[MapRecord]]:
    found = list(read(path, signed))
    return ([record for own, record in found if own == image_id] for image_id in image_ids)


def read_table(
    path: str, map_dtype: MapDtype, filters: Filters, columns: Sequence[str] | None
) -> pa.Table:
    return table_of_maps(((i, [m]) for i, m in read(path, True)), map_dtype, filters, columns)


TOY = Format(
    folder="arrays",
    file_name="maps-{}.npz",
    preference=-1,  # read rather than Parquet
    write=write,
    count=lambda path: len(np.load(path).files) - 1,
    read_images=read_images,
    read_table=read_table,
    how_to_load='`numpy.load("arrays/...")`, for instance {method} at {layer}',
    misfit=lambda layers, own_classes: "no early layer in a toy" if "early" in layers else "",
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", TOY)


@pytest.fixture
def settings() -> dict[str, object]:
    return {"layers": ["middle", "late"], "roles": ["label", "top", "least"]}


def test_a_run_in_a_new_format_equals_one_in_parquet(toy, photos, tmp_path, settings):
    outs = {name: str(tmp_path / name) for name in ("toy", "parquet")}
    for name, out in outs.items():
        summary = generate(run_config(photos, format=[name], **settings), out)
        assert summary.maps == 7 * 3 * 3 * 2
        evaluate(out, replicates=10)
        assert verify(out) == []
    assert sorted(path.name for path in (tmp_path / "toy" / "arrays").iterdir()) == [
        f"maps-0000{i}-of-00004.npz" for i in range(4)
    ]
    assert not (tmp_path / "toy" / "maps").exists()
    as_toy, as_parquet = (MapDataset(out) for out in outs.values())
    assert as_toy.maps(method="grad_cam", role="top").num_rows == 14
    unrounded = ["map_min", "map_max", "map_sum"]
    assert as_toy.maps().drop_columns(unrounded) == as_parquet.maps().drop_columns(unrounded)
    for scored in (MapDataset.scores, MapDataset.statistics):
        assert repr(scored(as_toy).to_pylist()) == repr(scored(as_parquet).to_pylist())  # nan, too
    for (_, toys), (_, others) in zip(
        as_toy.shard_images(0), as_parquet.shard_images(0), strict=True
    ):
        assert [m.key for m in toys] == [m.key for m in others]
        assert all((a.values == b.values).all() for a, b in zip(toys, others, strict=True))


def test_the_entry_says_what_others_need(toy, photos, tmp_path, settings):
    out = str(tmp_path / "out")
    generate(run_config(photos, format=["parquet", "toy"], **settings), out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert '`numpy.load("arrays/...")`, for instance grad_cam at ' in card
    assert "in parquet and toy, 4 shards" in card
    torn = next((tmp_path / "out" / "arrays").iterdir())
    torn.write_bytes(torn.read_bytes()[:-1])
    Path(out, "arrays", "stray.npz").touch()
    assert [problem.path for problem in verify(out)] == [
        f"arrays/{torn.name}",
        f"arrays/{torn.name}",
        "arrays/stray.npz",
    ]
    assert clear(out)
    left = {path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file()}
    assert left == {"_meta/plan.json", "_meta/manifest.parquet", "arrays/stray.npz"}


def test_a_plan_asks_the_entry_whether_the_run_fits(toy, photos, tmp_path, settings):
    costs = estimate(run_config(photos, **settings), str(tmp_path / "out"), sample=1)
    assert {*costs.bytes} >= {"toy", "parquet float16", "parquet float32", "webdataset"}
    with pytest.raises(ValueError, match="no early layer in a toy"):
        generate(run_config(photos, layers=["early"], format=["toy"]), str(tmp_path / "out"))
