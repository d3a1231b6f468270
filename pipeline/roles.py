"""Roles: why a class of an image is explained. Each role chooses classes by the model's logits.

A new role is one entry in `ROLES`. `parse_role` reads what the user wrote; after planning, a run
has `Role` objects and no names.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from transforms.names import unknown_name
from transforms.targets import least, top

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.store.records import LabelRecord

ModelClasses = Sequence[Sequence[int]]
"""For each label of an image, the model's classes that stand for it."""


@dataclass(frozen=True)
class Candidates:
    """What a role chooses from: one image, as the model sees it.

    Attributes:
        image_id: the image.
        logits: float `[N]`.
        labels: the image's labels, each with the model's class that stands for it.
    """

    image_id: str
    logits: "Tensor"
    labels: "tuple[LabelRecord, ...]"


Choice = tuple[int, str]
"""A target, and the dataset's class that it stands for; empty where it stands for none."""


@dataclass(frozen=True)
class RoleEntry:
    """What a row of `ROLES` says of a role.

    Attributes:
        pattern: how it is written; its group, if it has one, is the role's number.
        description: which classes it chooses, in words.
        choose: the classes that it chooses, by the candidates and the number.
        count: how many classes it chooses, by the image's labels and the number.
        problem: what is wrong with the number for a model of so many classes; empty: nothing.
        needs_labels: whether it has nothing to explain in a set without labels.
        is_control: whether it chooses classes that need not be there, to compare with.
    """

    pattern: str
    description: str
    choose: Callable[[Candidates, int], Sequence[Choice]]
    count: Callable[[ModelClasses, int], int] = lambda labels, number: 1
    problem: Callable[[int, int], str] = lambda number, classes: ""
    needs_labels: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class Role:
    """A role as asked for, such as `top5`.

    Attributes:
        name: as the user wrote it, and as the column `role` has it.
        entry: the row of `ROLES`.
        number: the 5 of `top5`, the 207 of `class:207`; 0 where the role has none.
    """

    name: str
    entry: RoleEntry
    number: int = 0

    def choose(self, candidates: Candidates) -> Sequence[Choice]:
        """The classes to explain of one image."""
        return self.entry.choose(candidates, self.number)

    def count(self, model_classes: ModelClasses) -> int:
        """How many classes it explains of an image with these labels."""
        return self.entry.count(model_classes, self.number)

    def check(self, classes: int) -> None:
        """Check the role against a model of so many classes.

        Raises:
            SettingsError: the model does not have that class, or so many.
        """
        if problem := self.entry.problem(self.number, classes):
            raise SettingsError(f"role {self.name}: {problem}")


def _labels(candidates: Candidates, number: int) -> Sequence[Choice]:
    return [
        (label.chosen, label.class_name) for label in candidates.labels if label.chosen is not None
    ]


def _top(candidates: Candidates, number: int) -> Sequence[Choice]:
    return [(int(i), "") for i in top(candidates.logits[None], number or 1)[0]]


def _least(candidates: Candidates, number: int) -> Sequence[Choice]:
    return [(int(least(candidates.logits[None])[0, 0]), "")]


def _random(candidates: Candidates, number: int) -> Sequence[Choice]:
    classes = range(len(candidates.logits))
    present = {target for label in candidates.labels for target in label.model_classes}
    allowed = [target for target in classes if target not in present] or classes
    digest = hashlib.blake2b(candidates.image_id.encode(), digest_size=8).digest()
    return [(allowed[int.from_bytes(digest, "little") % len(allowed)], "")]


def _count_labels(model_classes: ModelClasses, number: int) -> int:
    return sum(1 for classes in model_classes if classes)


def _too_many(number: int, classes: int) -> str:
    return f"the model has {classes} classes" if number > classes else ""


def _no_such_class(number: int, classes: int) -> str:
    return f"the model's classes are 0 to {classes - 1}" if number >= classes else ""


ROLES: dict[str, RoleEntry] = {
    "label": RoleEntry(
        "label",
        "each class that the image is labelled with; of several classes of the model that stand "
        "for a label, the most likely",
        _labels,
        count=_count_labels,
        needs_labels=True,
    ),
    "top": RoleEntry("top", "the most likely class", _top),
    "least": RoleEntry("least", "the least likely class", _least, is_control=True),
    "random": RoleEntry(
        "random",
        "a class drawn by a hash of the image id, none of the image's labels",
        _random,
        is_control=True,
    ),
    "topK": RoleEntry(
        r"top([1-9]\d*)",
        "the K most likely classes, such as top5",
        _top,
        count=lambda labels, number: number,
        problem=_too_many,
    ),
    "class:ID": RoleEntry(
        r"class:(\d+)",
        "the class of that index, such as class:207",
        lambda candidates, number: [(number, "")],
        problem=_no_such_class,
    ),
}
"""The roles by how they are written; K and ID stand for a number."""


def parse_role(name: str) -> Role:
    """The role that a name stands for.

    Raises:
        SettingsError: it stands for none; the message names the nearest.
    """
    for entry in ROLES.values():
        if match := re.fullmatch(entry.pattern, name):
            return Role(name, entry, int(match[1]) if match.groups() else 0)
    raise SettingsError(unknown_name("role", name, ROLES))


def parse_roles(names: Iterable[str]) -> tuple[Role, ...]:
    """The roles that names stand for, in their order.

    Raises:
        SettingsError: as `parse_role`.
    """
    return tuple(map(parse_role, names))
