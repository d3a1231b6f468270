"""Chosen maps as a map-style torch Dataset."""

from typing import Any

import pyarrow as pa
import torch

from pipeline.store.encoding import decode
from pipeline.store.rows import STORAGE_COLUMNS, stored_maps


class MapTensors(torch.utils.data.Dataset[dict[str, Any]]):
    """Maps as dicts for a torch DataLoader: `map` is float32 `[h, w]`, the rest as in `maps/`.

    All chosen maps stay in memory as they are stored (two bytes per value), shared with worker
    processes that are forked: choose few methods and layers, or use WebDataset for more than fits.
    Scale and ReLU are applied item by item. A batch needs maps of one size: choose one layer.
    """

    def __init__(self, table: pa.Table, signed: bool) -> None:
        self._stored = stored_maps(table["map"])
        self._rows = table.drop_columns("map")
        self._signed = signed

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (row,) = self._rows.slice(range(len(self))[index], 1).to_pylist()
        relu = row["relu_on_read"] and not self._signed
        stored = self._stored[index].reshape(row["height"], row["width"])
        shown = {name: value for name, value in row.items() if name not in STORAGE_COLUMNS}
        return {**shown, "map": torch.from_numpy(decode(stored, row["map_scale"], relu))}
