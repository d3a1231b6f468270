"""A file of OUT that is torn or altered is named, with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import BacklightError, UnreadableFileError

_LONGEST = 200  # characters of a reason


@contextmanager
def understood(
    path: str,
    to_do: str = "restore it from a copy, or delete it and run the command that wrote it again",
) -> Iterator[None]:
    """While the content of a file is taken apart: what that raises is the file's fault.

    Raises:
        UnreadableFileError: the content is not what Backlight writes there.
        OSError: the file is absent, or the system cannot read it.
    """
    try:
        yield
    except (BacklightError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own have no number
            raise
        reason = " ".join(str(error).split())[:_LONGEST].encode(errors="backslashreplace").decode()
        raise UnreadableFileError(
            f"cannot understand {path} ({type(error).__name__}: {reason}): {to_do}"
        ) from error
