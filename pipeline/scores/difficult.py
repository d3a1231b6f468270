"""The flag file of the difficult subset: which (image, class) pairs are hard to localise.

    image_id,class_name,difficult
    000012,car,0
    000012,person,1

A CSV file with these columns (others are ignored), one row a pair. Statistics of the pairs flagged
1 stand beside those of all pairs, as the "Difficult" column of the pointing game's tables.
"""

import csv
import io
from collections.abc import Iterator

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import MapDataset

Pair = tuple[str, str]

_COLUMNS = ("image_id", "class_name", "difficult")
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def read_difficult(path: str, dataset: MapDataset) -> frozenset[Pair]:
    """The (image id, class name) pairs that the file flags as difficult.

    Raises:
        SettingsError: no such file, a column that is missing, a flag that is none, a pair with two
            flags, or a pair of `dataset` to be localised that the file does not have.
    """
    flags: dict[Pair, bool] = {}
    for line, row in _rows(path):
        flag = _FLAGS.get((row["difficult"] or "").strip().lower())
        if flag is None:
            raise SettingsError(
                f"{path}, line {line}: difficult is {row['difficult']!r}; valid: "
                + ", ".join(_FLAGS)
            )
        pair = row["image_id"], row["class_name"]
        if flags.setdefault(pair, flag) != flag:
            raise SettingsError(f"{path}, line {line}: {', '.join(pair)} has two different flags")
    if missing := [pair for pair in _pairs_to_localise(dataset) if pair not in flags]:
        listed = "; ".join(", ".join(pair) for pair in missing[:3])
        raise SettingsError(
            f"{path} has no flag for {len(missing)} of the pairs (image_id, class_name) to be "
            f"localised: {listed}{' ...' if missing[3:] else ''}. Add a row for each, with "
            "difficult 0 or 1"
        )
    return frozenset(pair for pair, flag in flags.items() if flag)


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with io.TextIOWrapper(files.open_read(path), "utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if absent := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
                raise SettingsError(
                    f"{path} has no column {', '.join(absent)}; it needs {', '.join(_COLUMNS)}"
                )
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"cannot read the flags of --difficult: {error}") from None


def _pairs_to_localise(dataset: MapDataset) -> Iterator[Pair]:
    """The image's classes that have an object, not all marked difficult by the dataset itself."""
    images = dataset.images().select(["image_id", "regions"])
    for image_id, regions in zip(*(c.to_pylist() for c in images.columns), strict=True):
        names = (region["class_name"] for region in regions if not region["difficult"])
        yield from ((image_id, name) for name in dict.fromkeys(names))
