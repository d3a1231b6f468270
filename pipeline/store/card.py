"""The dataset card of OUT: what it holds, what the columns mean, and how to load it.

The snippets are run by the tests, from inside OUT. They use no code of ours.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.store import schemas
from pipeline.store.formats import FORMATS

_BACKLIGHT = """\
With Backlight (scale and ReLU are applied):

```python
from pipeline.store import MapDataset

dataset = MapDataset(".")
frame = dataset.frame(method="{method}", layer="{layer}")    # pandas, a 2-D array per row
tensors = dataset.torch(method="{method}", layer="{layer}")  # for a torch DataLoader
```
"""


def dataset_card(info: Mapping[str, Any]) -> str:
    """The Markdown text for what `dataset_info.json` holds.

    Raises:
        KeyError: when a field is missing.
    """
    some = {
        "method": _in_quotes((info["methods"] or ["normgrad"])[0]),
        "layer": _in_quotes((info["layers"] or ["layer4"])[0]),
    }
    formats = [FORMATS[name] for name in info["formats"]]
    of_maps = {each.folder: each.schema(info["map_dtype"]) for each in formats if each.schema}
    unkept = info["unkept_maps"]
    # Hugging Face datasets refuses to load a table without rows
    tables = [*of_maps, "images", *(["errors"] if info["errors"] else [])]
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
            *(f"| {key} | {_escaped(value)} |" for key, value in info["about"].items()),
            *(
                f"| {name} | {', '.join(map(_code, info[name]))} |"
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
            *(["## How to load", ""] if formats else []),
            *(each.how_to_load.format(**some) for each in formats),
            *([_BACKLIGHT.format(**some)] if formats else []),
            "## Columns",
            "",
            *(line for title, schema in of_maps.items() for line in _columns(title, schema)),
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


_MARKDOWN = r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)"
"""What means something in a line of Markdown; an underscore inside a word does not."""


def _escaped(text: str) -> str:
    """A text in a cell of a Markdown table, where no character of it means anything."""
    return re.sub(_MARKDOWN, r"\\\g<0>", " ".join(text.split()))


def _code(name: str) -> str:
    """A name as code in a cell of a Markdown table, which ends at any `|`."""
    name = " ".join(name.split())
    if "`" in name or "|" in name:
        return _escaped(name)
    return f"`{name}`"


def _in_quotes(name: str) -> str:
    """A name between the double quotes of a string in Python, inside a fenced block."""
    return json.dumps(name, ensure_ascii=False)[1:-1].replace("```", "\\x60``")


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
