"""Every file that is read, with something wrong in it: it is read, or refused in words.

A file is changed as a whole (bytes lost, repeated, swapped or replaced) and, where it is JSON or
YAML, part by part. The same changes each time; for a long run with other ones:

    FUZZ_SECONDS=3600 FUZZ_SEED=1 uv run pytest -s tests/pipeline/test_mutated_files.py

`sources/test_mutated_annotations.py` does this with COCO and VOC, whose regions it also draws.
"""

import collections
import copy
import io
import json
import math
import os
import random
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_network import draw_boxed_set, draw_photo, tiny

from pipeline.cli import backlight as command_line
from pipeline.config import RunConfig, read_settings
from pipeline.errors import BacklightError
from pipeline.generate import generate
from pipeline.images import ImageError, decode
from pipeline.model.classes import class_names, read_class_map, resolve_labels
from pipeline.model.models import ModelSpec
from pipeline.plan import Plan, read_plan
from pipeline.scores.difficult import read_difficult
from pipeline.scores.layer_weights import resolve_combinations
from pipeline.scores.score_files import has_scoring, scored_parts
from pipeline.scores.scoring import planned_scoring
from pipeline.sources import read_examples
from pipeline.store import MapDataset
from pipeline.store.evaluation import evaluated
from pipeline.store.manifest import Manifest
from pipeline.store.verify import verify

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROUNDS = 40  # of each reader where no seconds are given
EXPECTED = (BacklightError, OSError, ImageError)
"""What a command prints as one line."""

ODD = (
    *(None, True, False, 0, 1, -1, 2.5, 1e8, -1e30, math.nan, math.inf, 10**400, 2**63),
    *("", "0", "7", "dog", "x" * 300, "\ud800", "a\0b", "..", "\\", "true", "nan", "inf", "1e999"),
    *([], {}, [[]], [None], [[1, 2, 3, 4]], {"a": 1}, {"a": {"b": []}}, [0, 0, 5, 5]),
)
BYTES = (
    *(b"", b"\0", b"\xff", b"\xff\xfe", b"\n", b'"', b",", b"{", b"}", b"[", b"<", b"&"),
    *(b"9" * 30, b"[" * 100_000, b'{"a":' * 50_000),
)


@dataclass(frozen=True)
class Reader:
    """A file, and what reads it.

    Attributes:
        path: of the file, in the folder of the inputs.
        read: what reads it; takes the folder.
        parts: how its content is taken apart and put together again; None: it is bytes alone.
    """

    path: str
    read: Callable[[Path], object]
    parts: tuple[Callable[[bytes], Any], Callable[[Any], bytes]] | None = None


def _to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _to_yaml(value: Any) -> bytes:
    return yaml.dump(value).encode(errors="replace")


def _to_lines(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return "\n".join(json.dumps(row) for row in rows).encode()


def _state_to_bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


JSON = (json.loads, _to_json)
LINES = (lambda content: [json.loads(line) for line in content.splitlines()], _to_lines)
YAML = (yaml.safe_load, _to_yaml)
STATE = (lambda content: torch.load(io.BytesIO(content)), _state_to_bytes)


def _out(folder: Path) -> str:
    return str(folder / "out")


def _maps(folder: Path) -> None:
    data = MapDataset(_out(folder))
    list(data.shard_images(0))
    data.maps(layer="late")


def _tars(folder: Path) -> None:
    data = MapDataset(str(folder / "tars"))
    list(data.shard_images(0))
    data.maps()


def _images(folder: Path) -> None:
    data = MapDataset(_out(folder))
    for image_id in data.images()["image_id"].to_pylist()[:2]:
        data.image(image_id)
    resolve_combinations(["sum:spread"], PLANS[0], _out(folder))


def _manifest(folder: Path) -> None:
    with Manifest(_out(folder)) as manifest:
        manifest.shard(0)


def _scores(folder: Path) -> None:
    data = MapDataset(_out(folder))
    data.scores(metric="pointing_game")
    scored_parts(_out(folder), PLANS[0], 0)
    data.compare(by="method", metrics=["pointing_game"], replicates=0)


def _statistics(folder: Path) -> None:
    data = MapDataset(_out(folder))
    data.statistics()
    resolve_combinations(["sum:sensitivity"], PLANS[0], _out(folder))


def _commit(folder: Path) -> None:
    out = _out(folder)
    verify(out)
    command_line(["status", out], standalone_mode=False)
    if (data := MapDataset(out)).commits:
        data.maps(layer="late")
        data.images()


def _table(name: str) -> Callable[[Path], object]:
    return lambda folder: read_examples("table", folder / "photos", annotations=name)


PLANS: list[Plan] = []


READERS = {
    "plan": Reader("out/_meta/plan.json", lambda f: read_plan(_out(f)), JSON),
    "status": Reader(
        "out/_meta/plan.json",
        lambda f: command_line(["status", _out(f)], standalone_mode=False),
        JSON,
    ),
    "manifest": Reader("out/_meta/manifest.parquet", _manifest),
    "commit record": Reader("out/_meta/shards/00000.json", _commit, JSON),
    "evaluation": Reader(
        "out/_meta/evaluation.json",
        lambda f: (
            has_scoring(_out(f), PLANS[0], planned_scoring(PLANS[0], _out(f))),
            evaluated(_out(f)),
        ),
        JSON,
    ),
    "maps": Reader("out/maps/maps-00000-of-00002.parquet", _maps),
    "tar": Reader("tars/tars/maps-00000-of-00002.tar", _tars),
    "images": Reader("out/images/images-00000-of-00002.parquet", _images),
    "scores": Reader("out/scores/scores-00000-of-00002.parquet", _scores),
    "statistics": Reader("out/statistics/statistics.parquet", _statistics),
    "config": Reader(
        "run.yaml", lambda f: RunConfig.from_settings(read_settings(f / "run.yaml")), YAML
    ),
    "class map": Reader(
        "map.json",
        lambda f: resolve_labels(
            ["dog", "cat"], class_names(None, 5), read_class_map(str(f / "map.json"), 5)
        ),
        JSON,
    ),
    "class index": Reader(
        "index.json",
        lambda f: resolve_labels(["dog"], class_names(str(f / "index.json"), 2)),
        JSON,
    ),
    "class names": Reader("names.txt", lambda f: class_names(str(f / "names.txt"), 2)),
    "state dict": Reader(
        "tiny.pth",
        lambda f: ModelSpec("tiny_network:tiny", str(f / "tiny.pth")).load(),
        STATE,
    ),
    "layer weights": Reader(
        "weights.json",
        lambda f: resolve_combinations([f"sum:{f}/weights.json"], PLANS[0], _out(f)),
        JSON,
    ),
    "difficult": Reader(
        "difficult.csv", lambda f: read_difficult(str(f / "difficult.csv"), MapDataset(_out(f)))
    ),
    "csv": Reader("photos/list.csv", _table("list.csv")),
    "json lines": Reader("photos/list.jsonl", _table("list.jsonl"), LINES),
    "table parquet": Reader("photos/list.parquet", _table("list.parquet")),
    "cls_loc": Reader(
        "cls/Annotations/CLS-LOC/val/a.xml",
        lambda f: read_examples("cls_loc", f / "cls", split="val"),
    ),
    "webdataset": Reader("web/set.tar", lambda f: read_examples("webdataset", f / "web")),
    "png": Reader("photos/photo0.png", lambda f: decode(str(f / "photos/photo0.png"))),
    "jpeg": Reader("photo.jpg", lambda f: decode(str(f / "photo.jpg"))),
}


XML = """<annotation><size><width>48</width><height>40</height></size><object>
<name>n01440764</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of `READERS`, whole."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def make_inputs(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import webdataset

    photos = draw_boxed_set(folder / "photos", 4)
    run = {
        **{"source": "table", "root": str(photos), "annotations": "list.jsonl"},
        **{"model": "tiny_network:tiny", "weights": "random:0", "input_size": 32},
        **{"methods": ["gradient", "grad_cam"], "layers": ["middle", "late"]},
        **{"preprocess": "stretch", "shard_size": 2, "batch_size": 2},
    }
    evaluated = {"evaluate": ["class_sensitivity", "pointing_game"]}
    config = RunConfig.from_settings({**run, **evaluated})
    PLANS[:] = [generate(config, str(folder / "out")).plan]
    generate(RunConfig.from_settings({**run, "format": ["webdataset"]}), str(folder / "tars"))
    (folder / "run.yaml").write_text(yaml.dump(run))
    (folder / "map.json").write_text('{"dog": ["1", "2-3", 4], "cat": {"0": "a note"}}')
    (folder / "index.json").write_text('{"0": ["n01440764", "dog"], "1": ["n01443537", "cat"]}')
    (folder / "names.txt").write_text("n01440764 dog\nn01443537 cat\n")
    torch.save({"state_dict": tiny().state_dict()}, folder / "tiny.pth")
    (folder / "weights.json").write_text('{"middle": 1, "late": 0.5}')
    rows = [f"photo{i},{i % 3},{i % 2}" for i in range(4)]
    (folder / "difficult.csv").write_text("\n".join(["image_id,class_name,difficult", *rows]))
    rows = [f'"photo{i}.png",dog,1,2,20,{20 + i}' for i in range(4)]
    (photos / "list.csv").write_text("\n".join(["path,label,x0,y0,x1,y1", *rows]))
    paths = [f"photo{i}.png" for i in range(4)]
    pq.write_table(pa.table({"path": paths, "label": [0, 1, 2, 0]}), photos / "list.parquet")
    draw_photo(folder / "photo.jpg", 1)
    for name in ("a", "b"):
        draw_photo(folder / f"cls/Data/CLS-LOC/val/{name}.JPEG", 1)
        xml = folder / f"cls/Annotations/CLS-LOC/val/{name}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(XML)
    (folder / "web").mkdir()
    with webdataset.TarWriter(str(folder / "web/set.tar")) as tar:
        for i in range(3):
            content = (photos / f"photo{i}.png").read_bytes()
            tar.write({"__key__": f"{i}", "png": content, "cls": i, "json": {"label": "dog"}})
    return folder


def changed(value: Any, draw: random.Random) -> Any:
    """The value with one part replaced, deleted, repeated or swapped with another."""
    if isinstance(value, torch.Tensor):
        return changed_tensor(value, draw)
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return copy.deepcopy(draw.choice(ODD))
    result: Any = value.copy()
    key = draw.choice(list(result) if isinstance(result, dict) else range(len(result)))
    match draw.randrange(8):
        case 0:
            del result[key]
        case 1 if isinstance(result, list):
            result.append(result[key])
        case 2 if isinstance(result, dict):
            result[draw.choice(("", "x", "late.0.weight", "odd\ud800"))] = result.pop(key)
        case _:
            result[key] = changed(result[key], draw)
    return result


def changed_tensor(value: torch.Tensor, draw: random.Random) -> Any:
    changes: tuple[Callable[[], Any], ...] = (
        lambda: value * math.nan,
        lambda: value * math.inf,
        lambda: value.to(torch.complex64),
        lambda: value.to(torch.int64),
        lambda: value.to(torch.float16),
        lambda: value.bool(),
        lambda: value[:0],
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value.to("meta"),
        lambda: value.to_sparse(),
        lambda: value.tolist(),
        lambda: torch.nn.Parameter(value),
        lambda: draw.choice(ODD),
    )
    return draw.choice(changes)()


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """With a piece lost, repeated, moved or replaced; or a bit turned."""
    start = draw.randrange(len(content) + 1)
    end = start + draw.choice((0, 1, 1, 2, 4, 16, 200))
    piece = content[start:end]
    match draw.randrange(7):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + piece * 2 + content[end:]
        case 2 if piece:
            turned = bytes([piece[0] ^ 1 << draw.randrange(8)])
            return content[:start] + turned + content[start + 1 :]
        case 3:
            return content[:start] + draw.randbytes(draw.randrange(1, 9)) + content[end:]
        case 4:
            return content[end:] + content[:start]
        case _:
            return content[:start] + draw.choice(BYTES) + content[end:]


def spoiled(content: bytes, reader: Reader, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(1, 4)):
        if reader.parts and draw.random() < 0.7:
            take_apart, put_together = reader.parts
            try:
                content = put_together(changed(take_apart(content), draw))
            except Exception:  # what was changed before, or what this format cannot hold
                content = changed_bytes(content, draw)
        else:
            content = changed_bytes(content, draw)
    return content


def fuzz(folder: Path, name: str, draw: random.Random, rounds: int) -> collections.Counter[str]:
    """How the reader took the changes: `read`, `refused`, or where something else was raised."""
    reader = READERS[name]
    path = folder / reader.path
    whole = path.read_bytes()
    outcomes: collections.Counter[str] = collections.Counter()
    reader.read(folder)
    try:
        for _ in range(rounds):
            spoilt = spoiled(whole, reader, draw)
            path.write_bytes(spoilt)
            try:
                reader.read(folder)
                outcomes["read"] += 1
            except EXPECTED as refused:
                outcomes["refused" if str(refused) else f"{name}: says nothing"] += 1
            except Exception as error:
                own = [f for f in traceback.extract_tb(error.__traceback__) if "/pipeline/" in f[0]]
                place = f"{Path(own[-1].filename).name}:{own[-1].name}"
                kind = f"{name}: {type(error).__name__} in {place}: {str(error)[:100]}"
                outcomes[kind] += 1
                if keep := os.environ.get("FUZZ_KEEP"):
                    file = re.sub(r"\W+", "_", kind)[:90]
                    Path(keep, file).write_bytes(spoilt)
    finally:
        path.write_bytes(whole)
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_spoiled_file_is_read_or_refused_in_words(inputs: Path, name: str) -> None:
    draw = random.Random(f"{SEED} {name}")
    end = time.monotonic() + SECONDS / len(READERS)
    found = fuzz(inputs, name, draw, ROUNDS)
    while time.monotonic() < end:
        found += fuzz(inputs, name, draw, ROUNDS)
    print(f"\n## {name}: {dict(found)}")
    others = {kind: n for kind, n in found.items() if kind not in ("read", "refused")}
    assert others == {}
    assert found["read"] + found["refused"] >= ROUNDS
