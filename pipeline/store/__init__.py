"""OUT: names, schemas, shards in every format, the commit protocol, and reading back."""

from pipeline.store.dataset import MapDataset

__all__ = ["MapDataset"]
