"""How far a run is, from any shell: the outline of its plan and the files that it has so far.

Reads JSON and lists folders, and needs nothing of what a plan is made of.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names


@dataclass(frozen=True)
class RunOutline:
    """How much there is to do.

    Attributes:
        run_id: the hash of everything that decides the bytes.
        examples, shards, planned_maps: of the whole run.
    """

    run_id: str
    examples: int
    shards: int
    planned_maps: int

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """The outline in the content of a plan's file."""
        return cls(**{field.name: stored[field.name] for field in fields(cls)})


def read_outline(out: str) -> RunOutline:
    """The outline of the plan of an output.

    Raises:
        SettingsError: when there is no plan: it is not an output of `backlight generate`.
    """
    return RunOutline.of(stored_plan(out))


def stored_plan(out: str) -> dict[str, Any]:
    """The content of the plan's file.

    Raises:
        SettingsError: when there is none: it is not an output of `backlight generate`.
    """
    if not has_plan(out):
        raise SettingsError(f"{out} holds no maps: it has no {names.PLAN}; run backlight generate")
    stored: dict[str, Any] = json.loads(files.read_text(files.join(out, names.PLAN)))
    return stored


def has_plan(out: str) -> bool:
    """Whether there is a plan: whether it is an output of `backlight generate`."""
    return files.exists(files.join(out, names.PLAN))


def scored_shards(out: str) -> int:
    """How many files of scores there are: the progress of an evaluation."""
    return len(files.listing(out, names.SCORES))
