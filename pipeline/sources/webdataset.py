"""WebDataset: tar shards in which the members of one key are one sample.

    train-000.tar
        n01440764_10026.jpg      the photo
        n01440764_10026.cls      its class: an index, a name or a synset
        n01440764_10026.json     or an object with `label` or `labels`, and `boxes`, as in a table

A key is a name up to the first dot after its last slash. The headers are read, and the small
members of labels; the photos stay where they are, and a worker reads each at its place.
"""

import io
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from pipeline import files, photo_bytes
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.photo_formats import is_photo_name
from pipeline.sources.columns import NONE, Columns, find_columns, looks_like_labels
from pipeline.sources.image_ids import usable_id
from pipeline.sources.labels import FlagLists, label_of, labels_of
from pipeline.sources.listed_boxes import listed_boxes
from pipeline.sources.objects import Objects
from pipeline.sources.photo_folders import is_hidden
from pipeline.sources.tar_shards import Member, folder_of, members_of_all, parts_of, shards_of

_CLASS, _JSON = "cls", "json"
_NUMPY = b"\x93NUMPY"


def read_webdataset(
    root: str, split: str | None, annotations: str | None, notes: Notes, columns: Columns
) -> Iterator[Example]:
    """Examples of tar shards, in the order of the shards and their members.

    The image id is the key; where two shards share a key, it is the shard's name and the key.
    Memory: the examples as `Packed`, and 12 bytes for each.

    Args:
        root: the folder of the shards, or a pattern with braces or wildcards.
        split: a part of the shards in that folder, see `shards_of`.
        annotations: must be `None`: the labels are in the shards.
        notes: takes what is left out.
        columns: `image` is the suffix of the photos; `label` that of the labels, or a key of json.

    Raises:
        SettingsError: no shards, or no label where one was asked for.
    """
    if annotations is not None:
        raise SettingsError("--source webdataset has its labels in the shards; drop --annotations")
    folder, shards = folder_of(root), shards_of(root, split)
    if split is None and len(parts := parts_of(shards)) > 1:
        what = f"of {', '.join(parts)} read as one set, since no --split is given"
        notes.add("shard", what, count=len(shards))
    reader = _Reader(columns, notes)
    hashes, numbers = array("q"), array("i")

    def counted() -> Iterator[Example]:
        found = members_of_all(folder, shards, reader.contents, notes)
        for number, (shard, inside) in enumerate(found):
            for example in reader.examples(shard, inside):
                hashes.append(hash(example.image_id))
                numbers.append(number)
                yield example

    examples = Packed(counted())
    reader.settle(root)
    repeated = _repeated(np.frombuffer(hashes, np.int64), np.frombuffer(numbers, np.int32))
    if repeated:
        notes.add(
            "shard",
            "with keys that another shard has, so that ids begin with its name",
            count=len(set(shards)),
        )
    for example in examples:
        if repeated:
            shard = os.path.splitext(photo_bytes.file_of(example.path))[0]
            example = replace(example, image_id=usable_id(f"{shard}/{example.image_id}"))
        yield example


def _repeated(hashes: "np.ndarray[Any, Any]", numbers: "np.ndarray[Any, Any]") -> bool:
    """Whether two shards share a key."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    return bool((same & (numbers[order][1:] != numbers[order][:-1])).any())


class _Reader:
    """Makes examples of samples, and counts what it leaves out.

    Attributes:
        contents: the suffixes of the members that it looks into.
    """

    def __init__(self, columns: Columns, notes: Notes) -> None:
        self._columns = columns
        self._notes = notes
        self._objects = Objects(notes)
        self._flags = FlagLists()
        self._found_label = False
        self._labelled = False
        self._unread: dict[str, None] = {}
        self._label_suffix = _named_suffix(columns.label) or _CLASS
        self.contents = frozenset({_CLASS, _JSON, self._label_suffix.rsplit(".", 1)[-1]})

    def examples(self, shard: str, found: Iterable[Member]) -> Iterator[Example]:
        """The examples of one shard, of its members."""
        seen: set[int] = set()
        kept = (member for member in found if self._is_content(shard, member))
        for key, group in groupby(kept, key=lambda member: _key(member.name)):
            sample = self._sample(shard, key, group)
            if sample is None:
                continue
            if hash(key) in seen:
                self._notes.add(
                    "sample", "left out: its shard has the key already", f"{shard}: {key}"
                )
                continue
            seen.add(hash(key))
            yield sample

    def settle(self, root: str) -> None:
        """Note what was not read of the set.

        Raises:
            SettingsError: the label that was asked for is nowhere, or labels are flags of classes.
        """
        self._flags.check(root)
        asked = self._columns.label
        if asked not in (None, NONE) and not self._found_label:
            raise SettingsError(
                f"no sample of {root} has the label {asked!r}; give --label-column the suffix of a "
                "member, such as cls, or a key of its json"
            )
        labels = [name for name in self._unread if looks_like_labels(name)]
        if labels and not self._labelled and asked is None:
            raise SettingsError(
                f"{root}: {' and '.join(labels)} of json looks like labels, and no sample has cls "
                f"or label; give --label-column {labels[0]}, or --label-column none"
            )
        for name in self._unread:
            self._notes.add(
                "key", "of json not read, though the name is like that of labels or boxes", name
            )
        self._objects.settle(root)

    def _is_content(self, shard: str, member: Member) -> bool:
        parts = member.name.split("/")
        hidden = any(is_hidden(part) for part in parts if part != ".")
        if hidden:
            self._notes.add("member", "left out: hidden", f"{shard}: {member.name}")
        return not hidden

    def _sample(self, shard: str, key: str, group: Iterator[Member]) -> Example | None:
        by_suffix: dict[str, Member] = {}
        for member in group:
            suffix = _suffix(member.name)
            if suffix in by_suffix:
                self._notes.add(
                    "member", "left out: its sample has one already", f"{shard}: {member.name}"
                )
            by_suffix.setdefault(suffix, member)
        where = f"{shard}: {key}"
        photo = self._photo(by_suffix, where)
        if photo is None:
            self._notes.add("sample", "left out: no photo", where)
            return None
        labels, regions, problem = self._labels(by_suffix, where)
        for suffix in by_suffix.keys() - {photo, _CLASS, _JSON, self._label_suffix}:
            self._notes.add("member", f"not read: .{suffix}", f"{shard}: {by_suffix[suffix].name}")
        member = by_suffix[photo]
        return Example(
            image_id=usable_id(key),
            path=photo_bytes.part(shard, member.start, member.size),
            labels=labels,
            regions=regions,
            problem=problem,
        )

    def _photo(self, by_suffix: dict[str, Member], where: str) -> str | None:
        if self._columns.image is not None:
            asked = _named_suffix(self._columns.image)
            return asked if asked in by_suffix else None
        photos = [suffix for suffix in by_suffix if is_photo_name(f"x.{suffix}")]
        plain = [suffix for suffix in photos if "." not in suffix] or photos
        if len(plain) > 1:
            what = "with several photos, of which the first is taken; --image-column names another"
            self._notes.add("sample", what, f"{where}: {', '.join(plain)}")
        return plain[0] if plain else None

    def _labels(
        self, by_suffix: dict[str, Member], where: str
    ) -> tuple[tuple[str, ...], tuple[Region, ...], str]:
        """The labels and objects of a sample, and why they cannot be read."""
        try:
            regions: tuple[Region, ...] = ()
            labels: list[str | None] = []
            if _JSON in by_suffix:
                labels, regions = self._of_json(by_suffix[_JSON], where)
            single = self._label_suffix
            if single in by_suffix and single != _JSON and self._columns.label != NONE:
                # an index beside a name of the same class would be two labels
                labels = [_label(by_suffix[single])]
                self._found_label = True
            names = [*labels, *(region.class_name for region in regions)]
            self._labelled = self._labelled or bool(names)
            return tuple(dict.fromkeys(filter(None, names))), regions, ""
        except ValueError as error:
            return (), (), f"{where}: its labels cannot be read: {error}"

    def _of_json(self, member: Member, where: str) -> tuple[list[str | None], tuple[Region, ...]]:
        row = files.parsed_json(_text(member))
        asked = self._columns.label
        if asked == NONE:
            return [], ()
        if not isinstance(row, dict):
            self._found_label = True
            self._flags.add(row)
            return list(labels_of(row)), ()
        key = asked if asked in row else None
        self._found_label = self._found_label or key is not None
        found = find_columns(tuple(row), Columns(None, key), ("labels", "boxes"), image=False)
        self._unread |= dict.fromkeys(found.unread)
        lists = {name: row.get(listed) for name, listed in found.lists.items()}
        labels: list[str | None] = []
        if found.label is not None and (asked is None or key is not None):
            labels = [*labels_of(row.get(found.label))]
            self._flags.add(row.get(found.label))
        if asked is None:
            labels += labels_of(lists.get("labels"))
            self._flags.add(lists.get("labels"))
        return labels, self._objects.regions(listed_boxes(where, lists, self._notes), None)


def _key(name: str) -> str:
    parent, _, base = name.removeprefix("./").rpartition("/")
    stem = base.partition(".")[0]
    return f"{parent}/{stem}" if parent else stem


def _suffix(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _named_suffix(name: str | None) -> str:
    """The suffix that a setting names, which may be written as `.TXT`."""
    return (name or "").lower().lstrip(".")


def _label(member: Member) -> str | None:
    """The label that a member is: text, or a NumPy array of one number.

    Raises:
        ValueError: it is something else.
    """
    content = member.content or b""
    if not content.startswith(_NUMPY):
        return label_of(_text(member), is_text=True)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except EOFError:
        raise ValueError("its array ends too early") from None
    if array.size != 1:
        raise ValueError(f"an array of {array.size} numbers is no label")
    return label_of(array.item())


def _text(member: Member) -> str:
    content = member.content or b""
    try:
        if b"\0" in content:  # a number in binary
            raise ValueError
        return content.decode("utf-8-sig")
    except ValueError:
        raise ValueError("they are no text in UTF-8") from None
