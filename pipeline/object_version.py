"""What is at a URL of an object store at one moment."""

import errno
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Version:
    """What was at a URL when it was asked for.

    Attributes:
        tag: the name of this version, its generation or ETag; empty where the store has none.
        bytes: of the object.
        md5: of its content, in hexadecimal; None where the store does not know it.
    """

    tag: str
    bytes: int
    md5: str | None


def absent(url: str) -> FileNotFoundError:
    """What a read raises where there is no object."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
