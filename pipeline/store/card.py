"""The dataset card of OUT: what it holds, what the columns mean, and how to load it.

Its head is that of a card of the Hugging Face hub, where `datasets` finds the configurations. The
tests run the examples as they stand in the card, from inside OUT.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from pipeline.store import names
from pipeline.store.formats import FORMATS, Format
from pipeline.store.tables import Table, tables_of

LICENCE = (
    "The maps derive from images and from model weights that have licences of their own; those "
    "decide what may be done with the maps. Backlight itself is under Apache-2.0 and claims "
    "nothing in them."
)

CITATION = """\
@inproceedings{rebuffi2020there,
  title         = {There and Back Again: Revisiting Backpropagation Saliency Methods},
  author        = {Rebuffi, Sylvestre-Alvise and Fong, Ruth and Ji, Xu and Vedaldi, Andrea},
  booktitle     = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year          = {2020},
  archivePrefix = {arXiv},
  eprint        = {2004.02866},
}"""

_BACKLIGHT = """\
With Backlight (scale and ReLU are applied):

```python
from backlight import MapDataset

dataset = MapDataset(".")
frame = dataset.frame(method="{method}", layer="{layer}")    # pandas, a 2-D array per row
tensors = dataset.torch(method="{method}", layer="{layer}")  # for a torch DataLoader
```
"""

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The hub's categories of size, from three digits on."""


def title_of(info: Mapping[str, Any]) -> str:
    """What the dataset is, in a line; `info` is the content of `dataset_info.json`."""
    model, source = (info["about"].get(name) for name in ("Model", "Source"))
    words = ["Saliency maps", f"of {model}" if model else "", f"on {source}" if source else ""]
    return " ".join(" ".join(words).split())


def summary_of(info: Mapping[str, Any]) -> str:
    """How much there is, in a few sentences of Markdown."""
    errors, unkept = info["errors"], info["unkept_maps"]
    told = [
        f"{info['maps']} saliency maps of {info['images']} images, made with Backlight (run "
        f"`{info['run_id']}`).",
        f"Images that failed: {errors}, which cost {info['lost_maps']} maps; `errors/` says why."
        if errors
        else "No image failed.",
    ]
    if unkept:
        told.append(
            f"{unkept} more maps were scored when they were made, and not kept: `scores/` and "
            "`statistics/` have what became of them."
        )
    return " ".join(told)


def dataset_card(info: Mapping[str, Any], present: Collection[str]) -> str:
    """The Markdown text of the card.

    Args:
        info: the content of `dataset_info.json`.
        present: the names of the tables (`pipeline.store.tables`) that have rows.

    Raises:
        KeyError: when a field is missing.
    """
    formats = [FORMATS[name] for name in info["formats"]]
    of_maps = formats if info["maps"] else []
    tables = tables_of(info["formats"], info["map_dtype"])
    filled = [table for table in tables if table.name in present]
    some = {
        "method": _in_quotes((info["methods"] or [""])[0]),
        "layer": _in_quotes((info["layers"] or [""])[0]),
    }
    first = info["first_shard_with_maps"]
    configurations = _configurations(info, of_maps, filled)
    return "\n".join(
        [
            *_head(info, configurations),
            "# Saliency maps",
            "",
            summary_of(info),
            "",
            *_about(info),
            "Each map has its layer's own resolution, and nothing is normalised. All settings are "
            "in `_meta/plan.json`; `_meta/shards/` has the SHA-256 of every file. "
            f"`{names.CROISSANT}` describes the tables for readers of Croissant.",
            "",
            "## How to load",
            "",
            "The examples run from inside this folder.",
            "",
            *(
                _named(each.how_to_load, {**some, "file": each.path(first, info["shards"])})
                for each in of_maps
            ),
            *([_named(_BACKLIGHT, some)] if of_maps else []),
            *_tables_example([table for table in filled if table.is_configuration]),
            *_configurations_example(configurations, of_maps, filled),
            "## Columns",
            "",
            *(line for table in tables for line in _columns(table)),
            "## Licence",
            "",
            LICENCE,
            "",
            "## Citation",
            "",
            "The methods, and what the statistics measure:",
            "",
            "```bibtex",
            CITATION,
            "```",
            "",
        ]
    )


def _configurations(
    info: Mapping[str, Any], formats: Sequence[Format], filled: Sequence[Table]
) -> dict[str, str | list[str]]:
    """Name → files of each configuration, the default one first.

    `datasets` has one reader for all of them, so those of tars and those of Parquet exclude each
    other. It finds the columns of tars in the first, which must have a sample.
    """
    readable = [form for form in formats if form.is_read_by_datasets]
    if readable and not any(form.schema for form in readable):
        form, first, shards = readable[0], info["first_shard_with_maps"], info["shards"]
        listed = [form.path(index, shards) for index in range(first, shards)]
        return {form.folder: listed if first else form.all_files}
    return {table.name: table.files for table in filled if table.is_configuration}


def _head(info: Mapping[str, Any], configurations: Mapping[str, str | list[str]]) -> list[str]:
    digits = len(str(info["maps"]))
    head: dict[str, Any] = {
        "pretty_name": title_of(info),
        "license": "other",
        "license_name": "of-the-images-and-the-weights",
        "tags": ["saliency", "attribution", "explainability", "interpretability", "backlight"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [_SIZES[min(max(digits - 3, 0), len(_SIZES) - 1)]],
    }
    listed = [
        {"config_name": name, **({} if place else {"default": True}), "data_files": pattern}
        for place, (name, pattern) in enumerate(configurations.items())
    ]
    if listed:
        head["configs"] = listed
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=float("inf"))
    return ["---", text.rstrip(), "---", ""]


def _about(info: Mapping[str, Any]) -> list[str]:
    stored = (
        [
            f"| stored as | {info['map_dtype']}, in {' and '.join(info['formats'])}, "
            f"{info['shards']} shards, {info['bytes']} bytes |"
        ]
        if info["formats"]
        else []
    )
    return [
        "| | |",
        "|---|---|",
        *(f"| {key} | {_escaped(value)} |" for key, value in info["about"].items()),
        *(
            f"| {name} | {', '.join(map(_code, info[name]))} |"
            for name in ("methods", "layers", "variants", "roles")
            if info[name]
        ),
        *stored,
        f"| versions | {', '.join(f'{k} {v}' for k, v in info['versions'].items())} |",
        "",
    ]


def _tables_example(filled: Sequence[Table]) -> list[str]:
    """All the tables that are there, but those of maps, with pandas."""
    of_maps = {form.folder for form in FORMATS.values()}
    lines = [
        f'{table.name} = pd.read_parquet("{table.name}")  # one row per {table.row}'
        for table in filled
        if table.name not in of_maps
    ]
    if not lines:
        return []
    return ["The tables, with pandas:", "", *_python("import pandas as pd", "", *lines), ""]


def _configurations_example(
    configurations: Mapping[str, str | list[str]],
    formats: Sequence[Format],
    filled: Sequence[Table],
) -> list[str]:
    if not configurations:
        return []
    tables = [table.name for table in filled if table.is_configuration]
    others = [name for name in tables if name not in configurations]
    default = next(iter(configurations))
    lines = [
        "import os",
        "",
        "from datasets import load_dataset",
        "",
        "out = os.getcwd()  # or the name of the repository on the hub",
        f'rows = load_dataset(out, split="train")  # {default}',
    ]
    for argument, found in (("name", list(configurations)), ("data_dir", others)):
        if found:
            lines += [
                f"for name in {_tuple(found)}:",
                f'    rows = load_dataset(out, {argument}=name, split="train", streaming=True)',
                "    first = next(iter(rows))",
            ]
    folders = [form.folder for form in formats if form.is_read_by_datasets]
    apart = [name for name in dict.fromkeys([*folders, *others]) if name not in configurations]
    told = f"Configurations: {', '.join(map(_code, configurations))}."
    if apart:
        told += (
            " `datasets` has one reader for all of them, which cannot read "
            f'{", ".join(map(_code, apart))}: `load_dataset(out, data_dir="{apart[0]}")` does.'
        )
    return ["Hugging Face datasets, every configuration:", "", *_python(*lines), "", told, ""]


def _python(*lines: str) -> list[str]:
    return ["```python", *lines, "```"]


def _tuple(found: Collection[str]) -> str:
    """The names as a tuple in Python."""
    quoted = ", ".join(f'"{name}"' for name in found)
    return f"({quoted},)" if len(found) == 1 else f"({quoted})"


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


def _named(text: str, some: Mapping[str, str]) -> str:
    """The text with what `some` names in braces replaced; other braces stay."""
    return re.sub(rf"\{{({'|'.join(some)})\}}", lambda found: some[found[1]], text)


def _in_quotes(name: str) -> str:
    """A name between the double quotes of a string in Python, inside a fenced block."""
    return json.dumps(name, ensure_ascii=False)[1:-1].replace("```", "\\x60``")


def _columns(table: Table) -> list[str]:
    by = f" `backlight {table.written_by}` writes it." if table.written_by else ""
    return [
        f"### {table.name}",
        "",
        f"`{table.files}`: one row per {table.row}.{by}",
        "",
        "| column | type | meaning |",
        "|---|---|---|",
        *(f"| {name} | {type_} | {meaning} |" for name, type_, meaning in _described(table.schema)),
        "",
    ]


def _described(fields: pa.Schema | pa.StructType, above: str = "") -> list[tuple[str, str, str]]:
    """Name, type and meaning of each column, and of each field of the structs in it."""
    found = []
    for field in fields:
        name, type_ = above + field.name, field.type
        found.append((name, _type(type_), field.metadata[b"description"].decode()))
        inner = type_.value_type if pa.types.is_list(type_) else type_
        if pa.types.is_struct(inner):
            mark = "[]." if pa.types.is_list(type_) else "."
            found += _described(inner, name + mark)
    return found


def _type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list of {_type(type_.value_type)}"
    return "struct" if pa.types.is_struct(type_) else _FLOATS.get(str(type_), str(type_))


_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
