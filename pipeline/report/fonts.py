"""The letters of pictures: DejaVu Sans, which comes with matplotlib, then fonts of this machine.

Names of classes and images may be in any script, and DejaVu Sans has no Chinese, Japanese or
Korean, and few emoji.
"""

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names

MISSING = "\ufffd"
"""Stands for a character that no font has."""

_FIRST = "DejaVu Sans"
_OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans GB", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic"),
    *("Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji"),
    *("Segoe UI Symbol", "Arial Unicode MS", "Unifont"),
)


@cache
def families() -> tuple[str, ...]:
    """The fonts, each for the characters that those before it lack."""
    installed = set(get_font_names())
    return (_FIRST, *(name for name in _OTHERS if name in installed))


def drawn(text: str) -> str:
    """The text in one line, with `MISSING` for each character that no font has."""
    return "".join(letter if _is_drawn(letter) else MISSING for letter in " ".join(text.split()))


def lacking(text: str) -> set[str]:
    """The characters of the text that no font has."""
    return {letter for letter in text if not letter.isspace() and not _is_drawn(letter)}


@cache
def _is_drawn(letter: str) -> bool:
    paths = (findfont(FontProperties(family=name)) for name in families())
    return any(get_font(path).get_char_index(ord(letter)) for path in paths)
