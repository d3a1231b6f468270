"""The features that `datasets` writes into its files: what a column is, and its classes' names."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import files

if TYPE_CHECKING:
    import pyarrow as pa

Features = Mapping[str, Any]
"""Column to feature, as JSON has it."""


def stored_features(schema: "pa.Schema") -> Features:
    """The features that a file has itself; none where `datasets` did not write it."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        return files.parsed_json(stored)["info"]["features"] or {} if stored else {}
    except (ValueError, KeyError, TypeError):
        return {}


def type_of(feature: Any) -> str:
    """The name of a feature's type, such as `Image`."""
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def class_names(feature: Any) -> Sequence[str]:
    """The names of a ClassLabel, or of a list of them; nothing where it is neither."""
    if isinstance(feature, list) and feature:
        return class_names(feature[0])
    if isinstance(feature, dict) and "feature" in feature:
        return class_names(feature["feature"])
    return feature.get("names") or () if type_of(feature) == "ClassLabel" else ()


def named(written: Any, names: Sequence[str]) -> Any:
    """The name of a class, of each of a list of them, or what is written where it is no class."""
    if isinstance(written, list):
        return [named(each, names) for each in written]
    is_class = isinstance(written, int) and 0 <= written < len(names)
    return names[written] if is_class else written
