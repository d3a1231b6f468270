"""OUT: names, schemas, Parquet and WebDataset shards, the commit protocol, and reading back."""

from pipeline.store.dataset import MapDataset

__all__ = ["MapDataset"]
