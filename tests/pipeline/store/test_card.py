"""The dataset card says names as they are: nothing of them is Markdown, HTML or Python."""

import ast
import re
from typing import Any

import pytest

from pipeline.store.card import dataset_card

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


def info(**changes: Any) -> dict[str, Any]:
    known = {
        **dict.fromkeys(("maps", "images", "errors", "lost_maps", "shards", "bytes"), 1),
        "unkept_maps": 0,
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
        if ordinary.startswith(("| Model", "| layers", "| roles")):
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
