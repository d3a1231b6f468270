"""The dataset card of OUT: what it holds, what the columns mean, and how to load it.

The snippets are run by the tests, from inside OUT. They use no code of ours.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.store import schemas

_PARQUET = '''\
A map is `map * map_scale`, row by row; where `relu_on_read` is true, negative values count as 0.

pandas:

```python
import numpy as np
import pandas as pd

maps = pd.read_parquet("maps", filters=[("method", "==", "{method}")])
row = maps.iloc[0]
values = row["map"].astype(np.float32).reshape(row["height"], row["width"]) * row["map_scale"]
if row["relu_on_read"]:
    values = values.clip(min=0)
images = pd.read_parquet("images")
```

polars:

```python
import polars as pl

maps = pl.scan_parquet("maps/*.parquet").filter(pl.col("method") == "{method}")
print(maps.group_by("layer", "role").agg(pl.len(), pl.col("map_max").mean()).collect())
```

DuckDB:

```python
import duckdb

print(duckdb.sql("""
    SELECT method, layer, count(*) AS maps, avg(map_max) AS mean_max
    FROM 'maps/*.parquet' JOIN 'images/*.parquet' USING (image_id)
    GROUP BY ALL ORDER BY ALL
"""))
```

Hugging Face datasets:

```python
from datasets import load_dataset

maps = load_dataset("parquet", data_files="maps/*.parquet", split="train")
```
'''

_WEBDATASET = """\
WebDataset, one sample an image; `<layer>.npy` is `[variants, targets, methods, h, w]` in the order
of the lists in `json`, to be multiplied by `map_scale` (and `relu_on_read` says for which methods
negative values count as 0):

```python
from glob import glob

import numpy as np
import webdataset

dataset = webdataset.WebDataset(sorted(glob("tars/*.tar")), shardshuffle=False).decode()
for sample in dataset:
    layer = sample["json"]["layers"]["{layer}"]
    scale = np.array(layer["map_scale"], np.float32)[..., None, None]
    maps = sample[layer["member"]].astype(np.float32) * scale
    break
```
"""

_BACKLIGHT = """\
With Backlight (scale and ReLU are applied):

```python
from pipeline.store import MapDataset

dataset = MapDataset(".")
frame = dataset.frame(method="{method}", layer="{layer}")    # pandas, a 2-D array a row
tensors = dataset.torch(method="{method}", layer="{layer}")  # for a torch DataLoader
```
"""


def dataset_card(info: Mapping[str, Any]) -> str:
    """The Markdown text for a `dataset_info`; raises KeyError where a field is missing."""
    some = {
        "method": (info["methods"] or ["normgrad"])[0],
        "layer": (info["layers"] or ["layer4"])[0],
    }
    parquet, tars = "parquet" in info["formats"], "webdataset" in info["formats"]
    unkept = info["unkept_maps"]
    # Hugging Face datasets refuses to load a table without rows
    tables = ["maps"] * parquet + ["images"] + ["errors"] * (info["errors"] > 0)
    return "\n".join(
        [
            "---",
            "license: other",
            "configs:",
            *(f"- config_name: {t}\n  data_files: {t}/*.parquet" for t in tables),
            "---",
            "",
            "# Saliency maps",
            "",
            f"{info['maps']} saliency maps of {info['images']} images, made with Backlight "
            f"(run `{info['run_id']}`). Images that failed: {info['errors']}, which cost "
            f"{info['lost_maps']} maps; `errors/` says why."
            + (
                f" {unkept} more maps were scored when they were made, and not kept: `scores/` and "
                "`statistics/` have what became of them."
                if unkept
                else ""
            ),
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in info["about"].items()),
            *(
                f"| {name} | {', '.join(f'`{value}`' for value in info[name])} |"
                for name in ("methods", "layers", "variants", "roles")
                if info[name]
            ),
            *(
                [
                    f"| stored as | {info['map_dtype']}, in {' and '.join(info['formats'])}, "
                    f"{info['shards']} shards, {info['bytes']} bytes |"
                ]
                if info["formats"]
                else []
            ),
            f"| versions | {', '.join(f'{k} {v}' for k, v in info['versions'].items())} |",
            "",
            "Each map has its layer's own resolution, and nothing is normalised. All settings are "
            "in `_meta/plan.json`; `_meta/shards/` has the SHA-256 of every file.",
            "",
            *(["## How to load", ""] if info["formats"] else []),
            *([_PARQUET.format(**some)] if parquet else []),
            *([_WEBDATASET.format(**some)] if tars else []),
            *([_BACKLIGHT.format(**some)] if parquet or tars else []),
            "## Columns",
            "",
            *(_columns("maps", schemas.maps_schema(info["map_dtype"])) if parquet else []),
            *_columns("images", schemas.IMAGES),
            *_columns("errors", schemas.ERRORS),
            *(_columns("scores", schemas.SCORES) if unkept else []),
            "## Licence",
            "",
            "The maps derive from images and from model weights that have licences of their own; "
            "those decide what may be done with the maps. Backlight itself is under Apache-2.0 and "
            "claims nothing in them.",
            "",
        ]
    )


def _columns(title: str, schema: pa.Schema) -> list[str]:
    return [
        f"### {title}/",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        *(
            f"| {field.name} | {_type(field.type)} | {field.metadata[b'description'].decode()} |"
            for field in schema
        ),
        "",
    ]


def _type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list of {_type(type_.value_type)}"
    if pa.types.is_struct(type_):
        return f"({', '.join(f'{field.name}: {_type(field.type)}' for field in type_)})"
    return _FLOATS.get(str(type_), str(type_))


_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
