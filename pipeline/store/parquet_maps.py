"""Maps as Parquet: `maps/`, one row per map, in the order of `schemas.MAP_ORDER`.

Memory while maps are written: the records that the caller holds, plus one row group, which has at
most 5,000 maps and stops growing at 64 MiB of float16 values once it has 1,000 of them (100 MiB
for 1,000 maps of 224 x 224), about twice over while it is compressed.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline.files import HashedFile
from pipeline.store import schemas
from pipeline.store.encoding import MapDtype
from pipeline.store.filters import Filters
from pipeline.store.parquet import read_rows, write_row_groups
from pipeline.store.records import ImageAndMaps, MapRecord
from pipeline.store.rows import map_tables, maps_of_images

HOW_TO_LOAD = '''\
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

pyarrow; the flat values of all maps, with the place where each map begins:

```python
import numpy as np
import pyarrow.dataset as ds

rows = ds.dataset("maps").filter(ds.field("method") == "{method}")
table = rows.to_table(columns=["image_id", "layer", "height", "width", "map", "map_scale"])
column = table["map"].combine_chunks()
flat, begins = column.flatten().to_numpy(), column.offsets.to_numpy()
first = flat[begins[0] : begins[1]].reshape(table["height"][0].as_py(), table["width"][0].as_py())
values = first.astype(np.float32) * table["map_scale"][0].as_py()
```

Hugging Face datasets; streaming reads no more than it yields:

```python
import os

import numpy as np
from datasets import load_dataset

out = os.getcwd()  # or the name of the repository on the hub
filters = [("method", "==", "{method}")]
maps = load_dataset(out, "maps", split="train", streaming=True, filters=filters)
row = next(iter(maps))
values = np.array(row["map"], np.float32).reshape(row["height"], row["width"]) * row["map_scale"]
```
'''


def write_maps(
    file: HashedFile,
    images: Sequence[ImageAndMaps],
    map_dtype: MapDtype,
    metadata: Mapping[str, str],
) -> int:
    """Write the maps; returns the number of rows.

    Raises:
        ValueError: when two maps are the same.
    """
    rows = [(image.image_id, record) for image, records in images for record in records]
    return write_row_groups(
        file,
        map_tables(rows, map_dtype),
        schemas.maps_schema(map_dtype),
        metadata,
        order=schemas.MAP_ORDER,
    )


def read_images(path: str, image_ids: Sequence[str], signed: bool) -> Iterator[list[MapRecord]]:
    """The maps of each image, decoded when it is their turn; holds the stored maps of the shard."""
    return maps_of_images(read_rows(path), image_ids, signed)


def read_table(
    path: str, map_dtype: MapDtype, filters: Filters, columns: Sequence[str] | None
) -> pa.Table:
    """The rows that pass; maps of row groups that the filters rule out are not read."""
    return read_rows(path, columns, filters)
