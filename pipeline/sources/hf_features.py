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


def named(written: Any, feature: Any) -> Any:
    """What is written, with the name of each class in it, also in lists and structs."""
    if isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(written, list):
        inner = feature[0] if isinstance(feature, list) and feature else feature
        return [named(each, inner) for each in written]
    if isinstance(written, dict) and isinstance(feature, dict):
        return {key: named(value, feature.get(key)) for key, value in written.items()}
    names = class_names(feature)
    is_class = isinstance(written, int) and 0 <= written < len(names)
    return names[written] if is_class else written
