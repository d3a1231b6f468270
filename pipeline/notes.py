"""What planning leaves out of a dataset, or takes for something else: counted, so that it is said.

The readers of the sources and the planning add to one `Notes`. The plan stores what was noted, the
commands print a line per note before the work, and the dataset card lists them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 3
_LONGEST = 80  # characters


@dataclass(frozen=True)
class Note:
    """What happened to some things of a dataset, for one reason.

    Attributes:
        noun: what they are, in the singular, such as `object`; empty where nothing is counted.
        what: what happened to each of them and why, such as `left out: its box has no area`.
        count: how many they are.
        names: the first few of them, each as the user can find it.
    """

    noun: str
    what: str
    count: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One sentence: `2 objects left out: its box has no area (a.xml, object 1; ...)`."""
        if not self.noun:
            return self.what
        names = "; ".join(self.names) + ("; ..." if 0 < len(self.names) < self.count else "")
        plural = "s" if self.count != 1 else ""
        return f"{self.count:,} {self.noun}{plural} {self.what}{f' ({names})' if names else ''}"


class Notes:
    """Collects notes; those of one noun and reason are one note, with their count."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}

    def add(self, noun: str, what: str, *names: str, count: int = 1) -> None:
        """Note `count` things, with the names of the first of them; see `Note` for the words."""
        before, first = self._found.get((noun, what), (0, ()))
        self._found[noun, what] = before + count, (*first, *names)[:_SHOWN]

    def say(self, sentence: str) -> None:
        """Note something that is not counted."""
        self.add("", sentence)

    def extend(self, notes: Iterable[Note]) -> None:
        """Add the notes of another collector."""
        for note in notes:
            self.add(note.noun, note.what, *note.names, count=note.count)

    def all(self) -> tuple[Note, ...]:
        """What was noted, in the order of the first of each."""
        return tuple(
            Note(noun, what, count, names) for (noun, what), (count, names) in self._found.items()
        )


def print_notes(console: "Console", notes: Iterable[Note]) -> None:
    """A line per note, as it is."""
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def shown(value: object) -> str:
    """A value of a dataset as one short piece of a line, whatever it is."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
