"""How an unknown name is answered: with the nearest valid one, and not with a wall of names."""

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 20
"""The most valid names that a message lists in full; where there are more, it lists the nearest."""

NEAREST = 5


def unknown_name(what: str, name: str, valid: Iterable[str], hint: str = "") -> str:
    """`unknown method 'gradcam'; did you mean grad_cam? valid: gradient, ...`

    `what` says what the name is of. `hint` says what else is valid, or where the names are listed.
    """
    choices = list(dict.fromkeys(valid))
    near = nearest(name, choices)
    question = f" did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name!r};{question} valid: {valid_names(name, choices, hint)}"


def valid_names(name: str, valid: Iterable[str], hint: str = "") -> str:
    """The valid names, or of many only those nearest to `name`, and how many there are."""
    choices = list(dict.fromkeys(valid))
    listed = choices if len(choices) <= SHOWN else nearest(name, choices)
    also = [", ".join(listed)] if listed else []
    if len(choices) > len(listed):
        also.append(f"({len(choices)} in all)" if listed else f"one of {len(choices)} names")
    if hint:
        also.append(f"or {hint}" if also else hint)
    return " ".join(also) or "none"


def nearest(name: str, valid: Iterable[str], count: int = NEAREST) -> list[str]:
    """The valid names that are most like `name`, the nearest first; case does not count."""
    by_folded: dict[str, str] = {}
    for choice in valid:
        by_folded.setdefault(choice.casefold(), choice)
    folded = name.casefold()
    close = get_close_matches(folded, by_folded, n=count, cutoff=0.5)
    inside = [f for f in by_folded if len(folded) > 1 and (folded in f or f in folded)]
    return [by_folded[f] for f in dict.fromkeys([*close, *inside])][:count]
