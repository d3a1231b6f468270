"""Lists of images: text files with one image per line."""

from pipeline import files
from pipeline.errors import SettingsError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def listed_lines(path: str) -> list[str]:
    """The lines of a list without the spaces around them; empty lines are left out.

    Raises:
        SettingsError: the file is no text.
    """
    content = files.read_bytes(path)
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is no text in UTF-8; save it as UTF-8") from None
    return [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
