"""Flags as the datasets write them: `1`, `true`, `1.0`, `yes`, ..."""

_TRUE = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_FALSE = frozenset({"0", "0.0", "false", "no", "f", "n", "none", "null", ""})

SPELLINGS = "0, 1, false, true, no, yes"


def flag(written: object) -> bool | None:
    """Whether a flag is set; nothing written is not set; `None` where it is neither spelling."""
    text = str(written).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None
