"""Image ids: how a source makes one from a path, and what makes a set of them usable.

An id names an image in every output: in Parquet rows, as a file name, and as a WebDataset key,
which ends at its first dot. So an id holds no dot, no slash and nothing unprintable.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from pipeline.errors import SettingsError
from pipeline.example import Example

_LONGEST = 200  # bytes; file systems stop at 255, and an output's name adds to the id
_SHOWN = 3


def image_id_from_path(path: str) -> str:
    """Id of an image from its path: without extension, slashes as `__`, other dots as `_`.

    So is whatever cannot be printed, such as a no-break space, and a space at an end. The letters
    are in one Unicode form (NFC). The end of a long id is a hash of it. The id depends on this path
    alone, so that an image keeps its id when the set grows.
    """
    return usable_id(PurePosixPath(path).with_suffix("").as_posix())


def usable_id(name: str) -> str:
    """A name as an image id, with what an id may not hold replaced as in `image_id_from_path`."""
    text = unicodedata.normalize("NFC", name).replace("/", "__").replace("\\", "__")
    image_id = "".join("_" if c == "." or not c.isprintable() else c for c in text)
    inner = image_id.strip()
    before = len(image_id) - len(image_id.lstrip())
    image_id = "_" * before + inner + "_" * (len(image_id) - before - len(inner))
    if len(image_id.encode()) <= _LONGEST:
        return image_id
    end = "_" + hashlib.sha256(image_id.encode()).hexdigest()[:8]
    return image_id.encode()[: _LONGEST - len(end)].decode(errors="ignore") + end


def check_image_ids(examples: Sequence[Example]) -> None:
    """Raise `SettingsError` unless every id is usable and no two examples share one.

    Ids that differ in upper and lower case alone, or in the Unicode form of a letter, would be one
    file on the disks of Windows and macOS, so they count as the same.

    Memory: 16 bytes per example, for the hashes of the ids; the ids themselves only where hashes
    repeat.
    """
    hashes = np.fromiter((_usable_hash(example) for example in examples), np.int64, len(examples))
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    path_of: dict[str, str] = {}
    duplicates = []
    for example in examples if repeated else ():
        folded = _folded(example.image_id)
        if hash(folded) not in repeated:
            continue
        if folded in path_of:
            first = path_of[folded]
            duplicates.append(f"{example.image_id!r} ({_apart(first, example.path)})")
        path_of.setdefault(folded, example.path)
    if duplicates:
        raise SettingsError(
            f"image ids must be unique, in upper and lower case alike; {len(duplicates)} repeat: "
            f"{'; '.join(duplicates[:_SHOWN])}"
            f"{'; ...' if len(duplicates) > _SHOWN else ''}. List each image once, rename these, "
            "or list the set in a table with an `id` column (--source table)"
        )


def _apart(first: str, second: str) -> str:
    """Both paths, so that one sees in what they differ."""
    if first == second:
        return f"{first}, which is listed twice"
    if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
        return f"{first!a} and {second!a}, two spellings of the same letters in Unicode"
    return f"{first} and {second}"


def _usable_hash(example: Example) -> int:
    image_id = example.image_id
    usable = (
        image_id.strip() == image_id != ""
        and image_id.isprintable()
        and not set(image_id) & set("./\\")
        and len(image_id.encode()) <= _LONGEST
    )
    if not usable:
        raise SettingsError(
            f"image id {image_id!r} ({example.path!r}) cannot name a file and a WebDataset sample: "
            f"it must be 1 to {_LONGEST} bytes of printable text with no '.', '/' or '\\' "
            "and no space at its ends"
        )
    return hash(_folded(image_id))


def _folded(image_id: str) -> str:
    """What a file system compares that folds case and normalises (Unicode, section 3.13)."""
    if image_id.isascii():
        return image_id.lower()
    folded = unicodedata.normalize("NFD", image_id).casefold()
    return unicodedata.normalize("NFC", folded)
