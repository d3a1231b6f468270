"""The model's class names, and which of its classes a dataset's label stands for."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.model.class_files import read_class_file, read_json

ClassMap = Mapping[str, Sequence[str]]
"""Dataset class to entries: a class index, a range `first-last`, a synset or a class name."""

CLASS_MAP_FOLDER = Path(__file__).parent / "class_maps"
CLASS_MAPS: tuple[str, ...] = tuple(sorted(path.stem for path in CLASS_MAP_FOLDER.glob("*.json")))
"""The class maps that are part of the package, from a dataset's classes to ImageNet's 1000."""

IMAGENET_CLASSES = 1000
_SYNSETS = CLASS_MAP_FOLDER / "imagenet_synsets.txt"
"""ImageNet's synsets in the order of its classes, which is that of their numbers.

Source: the synsets of ILSVRC 2012, as timm's `imagenet_synsets.txt` has them.
"""
_NUMBER = re.compile(r"-?\d+", re.ASCII)
_SHOWN = 5


@dataclass(frozen=True)
class ClassNames:
    """The model's classes by index.

    Attributes:
        names: their names.
        synsets: their WordNet synsets; None if they are unknown.
    """

    names: tuple[str, ...]
    synsets: tuple[str, ...] | None = None

    @cached_property
    def by_spelling(self) -> dict[str, list[int]]:
        """Indices by name, as it is written, in one Unicode form."""
        return _group(map(_composed, self.names))

    @cached_property
    def by_folded_spelling(self) -> dict[str, list[int]]:
        """Indices by name, whatever its case, with space, underscore and hyphen taken as equal."""
        return _group(_fold(name) for name in self.names)

    @cached_property
    def by_synset(self) -> dict[str, list[int]]:
        """Indices by synset; by name if the synsets are unknown, since names may be synsets."""
        return _group(self.synsets or self.names)


def class_names(class_index: str | None, count: int) -> ClassNames:
    """The names of a model's classes.

    Args:
        class_index: a file of a format of `pipeline.model.class_files`. `voc` or `coco`: the
            dataset's own classes, in the dataset's order.
            None: ImageNet's names and synsets for 1000 classes, otherwise `class 0`, `class 1`, ...
        count: how many classes the model has.

    Raises:
        SettingsError: the file does not exist, has another format, or has not `count` names.
    """
    if class_index is None:
        if count == IMAGENET_CLASSES:
            from torchvision.models import ResNet50_Weights

            return ClassNames(
                names=tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"]),
                synsets=tuple(_SYNSETS.read_text("ascii").split()),
            )
        return ClassNames(tuple(f"class {index}" for index in range(count)))
    own = class_index in CLASS_MAPS
    if not own and not files.is_file(class_index):
        raise SettingsError(
            f"no --class-index file {class_index}; valid: {', '.join(CLASS_MAPS)}, or a file"
        )
    named = dataset_classes(class_index) if own else ClassNames(*read_class_file(class_index))
    if len(named.names) != count:
        raise SettingsError(
            f"{class_index} names {len(named.names)} classes, but the model has {count}; "
            "give --class-index the file of this model"
        )
    return named


def dataset_classes(dataset: str) -> ClassNames:
    """A dataset's own classes: VOC's 20 in the alphabet's order, COCO's 80 in that of their ids.

    `dataset` is a name in `CLASS_MAPS`.
    """
    return ClassNames(tuple(read_json(_shipped(dataset))))


def read_class_map(name_or_path: str, class_count: int) -> ClassMap:
    """Read a class map: a name in `CLASS_MAPS`, or a JSON file `{dataset class: [entry, ...]}`.

    The entries may also be the keys of an object; its values are then notes for the reader.

    Raises:
        SettingsError: there is no such map, it has another format, or it is one of `CLASS_MAPS`
            and the model does not have ImageNet's 1000 classes.
    """
    shipped = name_or_path in CLASS_MAPS
    if shipped and class_count != IMAGENET_CLASSES:
        raise SettingsError(
            f"the class map {name_or_path!r} is for ImageNet's {IMAGENET_CLASSES} classes, but "
            f"the model has {class_count}; give --class-map a JSON file for this model"
        )
    path = _shipped(name_or_path) if shipped else name_or_path
    if not files.is_file(path):
        raise SettingsError(
            f"no class map {name_or_path!r}; valid: {', '.join(CLASS_MAPS)}, or a JSON file"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise SettingsError(f"{path} is not a JSON object {{dataset class: [index or name, ...]}}")
    for dataset_class, entries in content.items():
        if not isinstance(entries, list | dict) or not all(map(_is_text_or_index, entries)):
            raise SettingsError(
                f"{path}: {dataset_class!r} needs a list of class indices, ranges 'first-last', "
                f"synsets or names, not {entries!r}"
            )
    return {name: tuple(map(str, entries)) for name, entries in content.items()}


def resolve_labels(
    labels: Iterable[str], model_classes: ClassNames, class_map: ClassMap | None = None
) -> dict[str, tuple[int, ...]]:
    """The model's class indices for each dataset label, each once, in the class map's order.

    With a class map, a label has no class of the model if the map lacks it or gives it none; its
    names are compared with labels as those of a model are. Without a class map, each label must
    stand for one class: by index, by synset, or by name. A name is first compared as it is written,
    then without case and with space, underscore and hyphen taken as equal. Labels that are numbers
    are names where all of them are names of classes (`1` to `102` in a set of flowers), and else
    indices; a synset is a name where a class has it for its name. A label may also begin with a
    synset (`n01440764_tench`), or be several names of one class (`tench, Tinca tinca`).

    Raises:
        SettingsError: a name is unknown or ambiguous, an index is out of range, the model's
            synsets are unknown and a label is one, no label has a class of the model, or numbers
            may be names as well as indices.
    """
    unique = list(dict.fromkeys(labels))
    if class_map is None:
        return _resolve_directly(unique, model_classes)
    names = _names_in(class_map, unique)
    targets = {
        label: _targets(label, class_map[name], model_classes) if name is not None else ()
        for label, name in names.items()
    }
    if targets and not any(targets.values()):
        raise SettingsError(
            "the class map gives no class of the model to any of the set's labels "
            f"({_some(unique)}); it has: {_some(list(class_map))}. Give --class-map one that has "
            f"them: {', '.join(CLASS_MAPS)}, a JSON file, or none if they are the model's own"
        )
    return targets


def labels_not_in(class_map: ClassMap, labels: Iterable[str]) -> list[str]:
    """The labels that a class map does not have, each with the nearest that it has."""
    found = []
    for label, name in _names_in(class_map, labels).items():
        if name is None:
            close = difflib.get_close_matches(label, class_map, n=1, cutoff=0.7)
            found.append(f"{label!r}" + (f", where it has {close[0]!r}" if close else ""))
    return found


def _names_in(class_map: ClassMap, labels: Iterable[str]) -> Mapping[str, str | None]:
    """The name of each label in a class map; `None` where it has none, or several alike."""
    names = ClassNames(tuple(class_map))
    found: dict[str, str | None] = {}
    for label in labels:
        indices = names.by_spelling.get(_composed(label), [])
        indices = indices or names.by_folded_spelling.get(_fold(label), [])
        found[label] = names.names[indices[0]] if len(indices) == 1 else None
    return found


def _resolve_directly(
    labels: Sequence[str], model_classes: ClassNames
) -> dict[str, tuple[int, ...]]:
    targets: dict[str, tuple[int, ...]] = {}
    wrong = []
    named = _names_that_are_numbers(labels, model_classes)
    for label in labels:
        try:
            found = named.get(label)
            targets[label] = (
                _index(label, model_classes)
                if found is None
                else _only(label, found, model_classes),
            )
        except SettingsError as error:
            wrong.append(str(error))
    if wrong:
        raise SettingsError(
            f"{len(wrong)} of {len(labels)} labels are not classes of the model: "
            f"{'; '.join(wrong[:_SHOWN])}{'; ...' if len(wrong) > _SHOWN else ''}. The model has "
            f"{len(model_classes.names)} outputs: if they are these classes, give --class-index "
            "FILE with their names; if the set has other classes than the model, --class-map "
            f"({', '.join(CLASS_MAPS)}, or a file); or explain no labels, as by --roles top,least"
        )
    return targets


def _names_that_are_numbers(
    labels: Sequence[str], model_classes: ClassNames
) -> dict[str, list[int]]:
    """The classes of the labels that are numbers, by name; empty where they are indices."""
    numbers = [label for label in labels if _NUMBER.fullmatch(label)]
    by_name = model_classes.by_spelling
    named = {label: by_name[label] for label in numbers if label in by_name}
    others = [label for label in numbers if label not in named]
    if not others:
        return named
    for label, found in named.items():
        if found != [int(label)]:
            raise SettingsError(
                f"the label {label!r} is the name of class {found[0]}, and {others[0]!r} is no "
                "name of a class, so the labels may be names or indices; give --class-index names "
                "that are no numbers, or correct the labels"
            )
    return {}


def _targets(label: str, entries: Sequence[str], model_classes: ClassNames) -> tuple[int, ...]:
    try:
        found = (index for entry in entries for index in _indices(entry, model_classes))
        return tuple(dict.fromkeys(found))
    except SettingsError as error:
        raise SettingsError(f"class map, {label!r}: {error}") from None


def _indices(entry: str, model_classes: ClassNames) -> Iterable[int]:
    ends = re.fullmatch(r"(\d+)-(\d+)", entry, re.ASCII)
    if ends is None:
        return (_index(entry, model_classes),)
    first, last = (_in_range(int(end), model_classes) for end in ends.groups())
    if first > last:
        raise SettingsError(f"the range {entry!r} is empty")
    return range(first, last + 1)


def _index(label: str, model_classes: ClassNames) -> int:
    if _NUMBER.fullmatch(label):
        return _in_range(int(label), model_classes)
    if re.fullmatch(r"n\d{8}", label, re.ASCII):
        if model_classes.synsets is None and label not in model_classes.by_synset:
            raise SettingsError(
                f"{label} is a synset, and the model's synsets are unknown; give --class-index "
                "FILE in the format of imagenet_class_index.json"
            )
        return _only(label, model_classes.by_synset.get(label, []), model_classes)
    indices = model_classes.by_spelling.get(_composed(label), [])
    if len(indices) != 1:
        indices = model_classes.by_folded_spelling.get(_fold(label), [])
    return _only(label, indices or _by_a_part(label, model_classes), model_classes)


def _by_a_part(label: str, model_classes: ClassNames) -> Sequence[int]:
    """The classes that a synset before a name, or one of several names, stands for."""
    if synset := re.match(r"n\d{8}(?=[\s_,-])", label, re.ASCII):
        return model_classes.by_synset.get(synset[0], [])
    if "," not in label:
        return []
    folded = model_classes.by_folded_spelling
    if whole := folded.get(_fold(label.replace(",", " "))):  # such as `maillot tank suit`
        return whole
    found = (index for name in label.split(",") for index in folded.get(_fold(name), ()))
    return list(dict.fromkeys(found))


def _only(label: str, indices: Sequence[int], model_classes: ClassNames) -> int:
    if len(indices) > 1:
        raise SettingsError(
            f"{label!r} is the name of classes {', '.join(map(str, indices))}; give the index"
        )
    if not indices:
        folded = model_classes.by_folded_spelling
        close = difflib.get_close_matches(_fold(label), folded, n=3)
        names = [f"{model_classes.names[folded[name][0]]!r}" for name in close]
        hint = f" (did you mean {' or '.join(names)}?)" if names else ""
        raise SettingsError(f"no class {label!r}{hint}")
    return indices[0]


def _in_range(index: int, model_classes: ClassNames) -> int:
    count = len(model_classes.names)
    if not 0 <= index < count:
        raise SettingsError(f"class index {index} is out of range; valid: 0 to {count - 1}")
    return index


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", _composed(name)).strip().casefold()


def _composed(name: str) -> str:
    """The name in the Unicode form NFC; archives made on a Mac have letters in two parts (NFD)."""
    return unicodedata.normalize("NFC", name)


def _group(keys: Iterable[str]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        indices.setdefault(key, []).append(index)
    return indices


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _is_text_or_index(entry: object) -> bool:
    return isinstance(entry, str | int) and not isinstance(entry, bool)


def _shipped(name: str) -> str:
    return str(CLASS_MAP_FOLDER / f"{name}.json")
