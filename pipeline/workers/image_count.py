"""How many images a job has done so far, counted by its workers in small files in OUT.

A shard is one piece of work and may take minutes; by these counts the command that waits shows its
progress image by image, with every runner. The making of maps and their scoring may run at the same
time, so each has a folder of its own: `pipeline.store.names.MADE` and `SCORED`.
"""

import time
import uuid

from pipeline import files

_SECONDS = 1.0
"""A worker writes its count at most once in this time."""


class ImageCount:
    """The images that this worker has done; its file is in `folder` of `out`."""

    def __init__(self, out: str, folder: str) -> None:
        self._out = out
        self._file = f"{folder}/{uuid.uuid4().hex}"
        self._images = 0
        self._due = 0.0

    def add(self, images: int = 1) -> None:
        """Count images, and write the count if it is time."""
        self._images += images
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the count."""
        files.write_text(self._out, self._file, str(self._images))
        self._due = time.monotonic() + _SECONDS


def images_counted(out: str, folder: str) -> int:
    """How many images the workers of the job have done; one done twice counts twice.

    What cannot be read counts nothing: the job has just ended, or a store does not answer now.
    """
    try:
        return sum(_count(files.join(out, name)) for name in files.listing(out, folder))
    except OSError:
        return 0


def forget_counts(out: str, folder: str) -> None:
    """Delete the counts of an earlier job."""
    files.delete(files.join(out, folder))


def _count(path: str) -> int:
    try:
        return int(files.read_text(path) or 0)
    except OSError:
        return 0
