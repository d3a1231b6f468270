"""`croissant.json` of OUT: its tables for readers of Croissant 1.0, such as mlcroissant.

The specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from pipeline.store.card import CITATION, LICENCE, summary_of, title_of
from pipeline.store.formats import FORMATS
from pipeline.store.tables import Table, tables_of

_PARQUET = "application/x-parquet"
_TAR = "application/x-tar"
_TOLD_OF_TARS = "The maps as WebDataset, one sample per image; README.md says how to load them."

_JSON_OF_ANY_SHAPE = ("data", "examples")
_OF_CROISSANT = (
    *("citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format"),
    *("equivalentProperty", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
    *("path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
    *("separator", "source", "subField", "transform"),
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in _JSON_OF_ANY_SHAPE},
    **{name: f"cr:{name}" for name in _OF_CROISSANT},
}
"""The words of the specification's own context."""


def croissant(info: Mapping[str, Any], present: Collection[str]) -> str:
    """The JSON-LD text.

    Args:
        info: the content of `dataset_info.json`.
        present: the names of the tables (`pipeline.store.tables`) that have rows.

    Raises:
        KeyError: when a field is missing.
    """
    tables = [t for t in tables_of(info["formats"], info["map_dtype"]) if t.name in present]
    tars = [form for name in info["formats"] if (form := FORMATS[name]).file_name.endswith(".tar")]
    content = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title_of(info),
        "description": summary_of(info),
        "license": LICENCE,
        "citeAs": CITATION,
        "version": "1.0.0",
        "datePublished": info["finished"],
        "keywords": ["saliency", "attribution", "explainability", "interpretability"],
        "distribution": [
            *(_files(t.name, t.files, _PARQUET, f"One row per {t.row}.") for t in tables),
            *(_files(form.folder, form.all_files, _TAR, _TOLD_OF_TARS) for form in tars),
        ],
        "recordSet": [_records(table) for table in tables],
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _files(name: str, pattern: str, encoding: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": description,
        "encodingFormat": encoding,
        "includes": pattern,
    }


def _records(table: Table) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "description": f"One row per {table.row}.",
        "field": [_field(table.name, column, column.name) for column in table.schema],
    }


def _field(above: str, field: pa.Field, column: str, path: str = "") -> dict[str, Any]:
    """A column, or a field of the structs in it that the path leads to."""
    is_list = pa.types.is_list(field.type)
    type_ = field.type.value_type if is_list else field.type
    name = f"{above}/{field.name}"
    described = {
        "@type": "cr:Field",
        "@id": name,
        "name": field.name,
        "description": field.metadata[b"description"].decode(),
        **({"repeated": True} if is_list else {}),
    }
    if pa.types.is_struct(type_):
        inner = [_field(name, each, column, f"{path}.{each.name}".lstrip(".")) for each in type_]
        return {**described, "subField": inner}
    source = {"fileSet": {"@id": f"{above.split('/')[0]}-files"}, "extract": {"column": column}}
    if path:
        source["transform"] = {"jsonPath": path}
    return {**described, "dataType": _data_type(type_), "source": source}


def _data_type(type_: pa.DataType) -> str:
    if pa.types.is_boolean(type_):
        return "sc:Boolean"
    if pa.types.is_integer(type_):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(type_) else "sc:Text"
