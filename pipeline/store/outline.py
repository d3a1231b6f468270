"""How far a run is, from any shell: the outline of its plan and the files that it has so far.

Reads JSON and lists folders, and needs nothing of what a plan is made of.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names, schemas
from pipeline.store.problems import Problem

_SEAL = "sha256"


class BrokenPlanError(SettingsError):
    """The file of the plan is there, and is not what was written."""


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
        """The outline in the content of a plan's file.

        Raises:
            TypeError, KeyError: it is not that of a plan.
        """
        found = {field.name: stored[field.name] for field in fields(cls)}
        numbers = [value for name, value in found.items() if name != "run_id"]
        counts = all(type(number) is int and number >= 0 for number in numbers)
        if not counts or not str.isprintable(found["run_id"]):
            raise TypeError(f"the run id is text and the rest are counts, not {found}")
        return cls(**found)


def read_outline(out: str) -> RunOutline:
    """The outline of the plan of an output.

    Raises:
        SettingsError: when there is no plan: it is not an output of `backlight generate`.
    """
    stored = stored_plan(out)
    try:
        return RunOutline.of(stored)
    except (KeyError, TypeError) as error:
        raise _broken(out, f"it says not how much there is to do ({error})") from error


def stored_plan(out: str) -> dict[str, Any]:
    """The content of the plan's file.

    Raises:
        SettingsError: when there is none: it is not an output of `backlight generate`.
        BrokenPlanError: it is not what was written.
    """
    if not has_plan(out):
        raise SettingsError(f"{out} holds no maps: it has no {names.PLAN}; run backlight generate")
    try:
        stored = json.loads(files.read_text(files.join(out, names.PLAN)))
        own_schema = stored["identity"]["schema"] == schemas.SCHEMA_VERSION
        whole = stored.pop(_SEAL, None) == _digest(stored)
        sound = whole and run_id_of(stored["identity"]) == stored["run_id"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(out, f"it cannot be read ({type(error).__name__})") from error
    if own_schema and not sound:  # plans of other versions have other fields
        raise _broken(out, "it has been changed since it was written")
    return dict(stored)


def sealed(content: Mapping[str, Any]) -> str:
    """The text of the plan's file, with a hash of its content."""
    return json.dumps({**content, _SEAL: _digest(content)}, indent=1, ensure_ascii=False)


def run_id_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the identity of a run, 16 hexadecimal digits."""
    return _digest(identity)[:16]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def has_plan(out: str) -> bool:
    """Whether there is a plan: whether it is an output of `backlight generate`."""
    return files.exists(files.join(out, names.PLAN))


def plan_problems(out: str) -> list[Problem]:
    """What is wrong with the plan's file, if anything is."""
    if not has_plan(out):
        return [Problem("plan", names.PLAN, f"{names.PLAN} is missing")]
    try:
        read_outline(out)
    except (SettingsError, KeyError) as error:
        return [Problem("plan", names.PLAN, f"{names.PLAN} cannot be used: {error}")]
    return []


def scored_shards(out: str) -> int:
    """How many files of scores there are: the progress of an evaluation."""
    return len(files.listing(out, names.SCORES))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _broken(out: str, why: str) -> BrokenPlanError:
    return BrokenPlanError(
        f"{files.join(out, names.PLAN)} is broken: {why}. The command that began the run makes it "
        "again: run it again, or start afresh with --overwrite"
    )
