"""The dataset card names every column, and names as they are: no Markdown, HTML, YAML or Python."""

import ast
import re
from typing import Any

import pyarrow as pa
import pytest
import yaml

from pipeline.store import card, schemas
from pipeline.store.tables import tables_of

EVIL = [
    "a|b",
    "<img src=x onerror=alert(1)>",
    "[click](http://example.com)",
    "`code` and *bold*",
    "two\nlines | three",
    'quotes" + exit() + "',
    "```\n# A heading\n```",
    "back\\slash",
    "_emphasis_",
]


def dataset_card(facts: dict[str, Any]) -> str:
    return card.dataset_card(facts, ["maps", "images", "errors"])


def info(**changes: Any) -> dict[str, Any]:
    known = {
        **dict.fromkeys(("maps", "images", "errors", "lost_maps", "shards", "bytes"), 1),
        **dict.fromkeys(("unkept_maps", "first_shard_with_maps"), 0),
        "run_id": "run",
        "formats": ["parquet", "webdataset"],
        "map_dtype": "float16",
        "methods": ["normgrad"],
        "layers": ["layer4"],
        "variants": ["base"],
        "roles": ["top"],
        "versions": {"torch": "2"},
        "about": {"Model": "squeezenet1_1"},
    }
    return {**known, **changes}


@pytest.mark.parametrize("name", EVIL)
def test_a_name_stays_in_its_cell(name):
    plain = dataset_card(info()).splitlines()
    lines = dataset_card(info(about={"Model": name}, layers=[name], roles=[name])).splitlines()
    assert len(lines) == len(plain)
    for line, ordinary in zip(lines, plain, strict=True):
        if ordinary.startswith("pretty_name:"):
            assert yaml.safe_load(line)["pretty_name"] == " ".join(
                f"Saliency maps of {name}".split()
            )
        elif ordinary.startswith(("| Model", "| layers", "| roles")):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) == 4
            outside_code = re.sub(r"`[^`]*`", "", re.sub(r"\\.", "", line))
            assert not set(outside_code) & set("<>[]*`")
        elif line != ordinary:
            assert '"' in line, "only the strings of the snippets may differ"


@pytest.mark.parametrize("name", EVIL)
def test_a_snippet_names_the_layer_in_a_string(name):
    card = dataset_card(info(layers=[name]))
    snippets = re.findall(r"^```python\n(.*?)^```$", card, re.S | re.M)
    constants = [
        node.value
        for snippet in snippets
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Constant)
    ]
    assert name in constants
    calls = {
        node.func.id
        for snippet in snippets
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "exit" not in calls


def test_an_ordinary_name_is_written_as_it_is():
    assert "| Model | squeezenet1_1 |" in dataset_card(info())


def columns_in(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Table → column → its type and meaning, as the card has them."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for part in re.split(r"^### ", text.partition("## Columns")[2], flags=re.M)[1:]:
        rows = re.findall(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \|$", part, re.M)
        found[part.split()[0]] = {name: (type_, means) for name, type_, means in rows[1:]}
    return found


def all_fields(fields: Any, above: str = "") -> dict[str, str]:
    """Every column and every field inside it by its path, with its description."""
    found = {}
    for field in fields:
        found[above + field.name] = field.metadata[b"description"].decode()
        is_list = pa.types.is_list(field.type)
        inner = field.type.value_type if is_list else field.type
        if pa.types.is_struct(inner):
            found |= all_fields(inner, f"{above}{field.name}{'[]' if is_list else ''}.")
    return found


def test_every_column_of_every_table_is_described():
    of_tables = {t.name: t.schema for t in tables_of(["parquet"], "float16")}
    found = columns_in(dataset_card(info()))
    assert found.keys() == of_tables.keys()
    for name, schema in of_tables.items():
        assert {column: means for column, (_, means) in found[name].items()} == all_fields(schema)
    assert found["maps"]["map"][0] == "list of float16"
    assert found["images"]["regions[].x0"][0] == "float64"


def test_the_tables_are_all_schemas_that_there_are():
    declared = [value for value in vars(schemas).values() if isinstance(value, pa.Schema)]
    assert len(declared) > 5
    listed = [table.schema for table in tables_of(["parquet"], "float16")]
    assert listed[0] == schemas.maps_schema("float16")
    assert all(schema in listed for schema in declared)
