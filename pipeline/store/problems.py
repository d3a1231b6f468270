"""What can be wrong with an OUT: the kinds of problems, and what the user does about each."""

from collections.abc import Iterable
from dataclasses import dataclass

REPAIR = "generate --repair"
"""The command that began the run, with this flag."""

EVALUATE = "evaluate"
NOTHING = ""


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem.

    Attributes:
        description: what is wrong, for tables.
        remedy: the command that mends it; empty where nothing has to be, or none can.
        is_fault: whether the output is not what it should be; otherwise it is worth knowing.
    """

    description: str
    remedy: str
    is_fault: bool = True


PROBLEM_KINDS: dict[str, ProblemKind] = {
    "plan": ProblemKind("the plan is absent or changed", REPAIR),
    "manifest": ProblemKind("the manifest is absent, changed, or not the plan's", REPAIR),
    "record": ProblemKind("a commit record is absent or contradicts the run", REPAIR),
    "missing": ProblemKind("a file of a shard is absent", REPAIR),
    "changed": ProblemKind("a file of a shard has other bytes than were committed", REPAIR),
    "content": ProblemKind("a file of a shard holds not what its record or the plan says", REPAIR),
    "duplicate": ProblemKind("an image id or a map is there twice", REPAIR),
    "finish": ProblemKind("_SUCCESS or a description of the run is absent or changed", REPAIR),
    "scores": ProblemKind("a file of scores cannot be read, or is of other images", REPAIR),
    "statistics": ProblemKind("the statistics are not whole, or not of these scores", EVALUATE),
    "leftover": ProblemKind("a file in a folder of the run that belongs to no shard", REPAIR),
    "not_finite": ProblemKind("maps with nan or infinite values, as made", NOTHING, False),
}
"""The kinds by name, in the order of the table."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an OUT.

    Attributes:
        kind: a name in `PROBLEM_KINDS`.
        path: of the file, relative to OUT.
        message: what is wrong with it, in words that begin with the path.
        shard: the shard that has to be made again; None where it is not about one.
    """

    kind: str
    path: str
    message: str
    shard: int | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def is_fault(self) -> bool:
        """Whether the output is not what it should be."""
        return PROBLEM_KINDS[self.kind].is_fault


def in_words(problems: Iterable[Problem], shown: int = 3) -> str:
    """How many problems there are, and the first of them."""
    messages = [str(problem) for problem in problems]
    more = f"; and {len(messages) - shown} more" if len(messages) > shown else ""
    count = f"{len(messages)} problem{'s' if len(messages) > 1 else ''}"
    return f"{count}: {'; '.join(messages[:shown])}{more}"
