"""The terminal for the progress of a command alone, and not for what Beam prints."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pipeline.errors import BacklightError, Terminated


@contextmanager
def stderr_aside() -> Iterator[TextIO]:
    """Put aside what Beam and its workers print on stderr; yields the real stderr.

    Beam prints every worker's traceback several times, whatever the logging level. All of it is
    shown in the end if the block raises an error whose message is not enough.
    """
    ours = sys.stderr
    with tempfile.TemporaryFile() as aside, os.fdopen(os.dup(2), "w") as terminal:
        try:
            os.dup2(aside.fileno(), 2)
            # Where it is not the process's own stderr, it is captured or redirected already.
            yield terminal if ours is sys.__stderr__ else ours
        except (BacklightError, OSError, KeyboardInterrupt, Terminated):
            raise
        except BaseException:
            aside.seek(0)
            terminal.write(aside.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(terminal.fileno(), 2)
