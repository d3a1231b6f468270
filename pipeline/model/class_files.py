"""Files that name the classes of a model, as programs write them (`--class-index`).

    {"0": ["n01440764", "tench"], ...}    imagenet_class_index.json
    [["n01440764", "tench"], ...]         the same without its indices
    {"0": "tench", ...}                   id2label, also inside a config.json of the hub
    {"tench": 0, ...}                     torchvision's class_to_idx
    ["tench", "goldfish", ...]            JSON
    tench                                 a line of text per class
    n01440764 tench, Tinca tinca          LOC_synset_mapping.txt
    0: tench    0 tench    0,tench        lines with their numbers, from 0 or 1
    {0: 'tench, Tinca tinca',             as Python prints a dict
    /b/beach 48                           lines with their numbers at the end

A file whose name ends in `.json` is JSON, and any other is lines of text.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline import files
from pipeline.errors import SettingsError

_SYNSET_FIRST = re.compile(r"(n\d{8})[\s,]+(.+)", re.ASCII)
_NUMBER_FIRST = re.compile(r"\{?\s*(?P<number>\d+)(\s*[:,;]\s*|\s+)(?P<name>.+)", re.ASCII)
_NUMBER_LAST = re.compile(r"(?P<name>.+?)(\s*[:,;]\s*|\s+)(?P<number>\d+)", re.ASCII)
_QUOTED = re.compile(r"""(["'])(.*)\1,?\s*\}?""")


class NamedClasses(NamedTuple):
    """The classes that a file names, in the order of their indices.

    Attributes:
        names: their names.
        synsets: their synsets; None where the file has none.
    """

    names: tuple[str, ...]
    synsets: tuple[str, ...] | None = None


def read_class_file(path: str) -> NamedClasses:
    """The classes that a file names.

    Raises:
        SettingsError: it is in none of the formats above.
    """
    if path.lower().endswith(".json"):
        return _of_json(path, read_json(path))
    try:
        lines = files.read_text(path, "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is no text in UTF-8; save it as UTF-8") from None
    return _of_lines([line.strip() for line in lines if line.strip()])


def read_json(path: str) -> Any:
    """The value in a JSON file.

    Raises:
        SettingsError: it is no JSON.
    """
    try:
        return files.parsed_json(files.read_bytes(path))
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}; write it as JSON in UTF-8") from None


def _of_json(path: str, content: Any) -> NamedClasses:
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        content = content["id2label"]
    if isinstance(content, dict):
        by_index = {i: name for name, i in content.items() if type(i) is int}
        indices = range(len(content))
        if sorted(by_index) == [*indices]:
            content = [by_index[index] for index in indices]
        else:
            content = [content.get(str(index)) for index in indices]
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return NamedClasses(tuple(content))
    if isinstance(content, list) and all(
        isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in content
    ):
        return NamedClasses(
            tuple(name for _, name in content), tuple(synset for synset, _ in content)
        )
    raise SettingsError(
        f'{path} is neither an object {{"0": ["n01440764", "tench"], ...}}, {{"0": "tench", ...}} '
        'or {"tench": 0, ...} with all indices from 0, nor a list of names'
    )


def _of_lines(lines: Sequence[str]) -> NamedClasses:
    with_synset = [_SYNSET_FIRST.fullmatch(line) for line in lines]
    found = [match for match in with_synset if match]
    if lines and len(found) == len(lines):
        return NamedClasses(tuple(m[2] for m in found), tuple(m[1] for m in found))
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        numbered = [match for line in lines if (match := pattern.fullmatch(line))]
        numbers = [int(match["number"]) for match in numbered]
        names = [match["name"] for match in numbered]
        in_order = numbers in ([*range(len(lines))], [*range(1, len(lines) + 1)])
        if in_order and len({*names}) == len(lines) > 1:  # `level 0`, `level 1`, ... are names
            lines = names
            break
    quoted = [match for line in lines if (match := _QUOTED.fullmatch(line))]
    if len(quoted) == len(lines):
        lines = [match[2] for match in quoted]
    return NamedClasses(tuple(lines))
