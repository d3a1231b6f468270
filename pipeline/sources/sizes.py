"""The size of a photo: as an annotation states it, or as the photo's file has it."""

import io
import os

from pipeline import files
from pipeline.photo_bytes import file_of, read_photo
from transforms.pixels import Size

_LONGEST = 1 << 30  # px, far beyond any photo; sizes are stored as int32


def stated_size(height: object, width: object) -> Size | None:
    """The size that an annotation states; `None` where it leaves a side out, or says 0.

    The sides may be whole numbers of any type, or text.

    Raises:
        ValueError: a side is no whole number of pixels.
    """
    sides = _side(height), _side(width)
    return sides if sides[0] and sides[1] else None


def size_of_photo(root: str, path: str) -> Size | None:
    """The size of a photo, upright, by the head of its file; `None` where it cannot be read.

    A photo in an archive or a table is read whole.
    """
    from pipeline.images import upright_size

    file = os.path.join(root, path)
    try:
        if file_of(path) != path:
            return upright_size(io.BytesIO(read_photo(file)))
        with files.open_read(file) as photo:
            return upright_size(photo)
    except (OSError, ValueError):  # not there, or no name of a file
        return None


def _side(side: object) -> int:
    if side is None or (isinstance(side, str) and not side.strip()):
        return 0
    if isinstance(side, bool) or not isinstance(side, int | float | str):
        raise ValueError(f"{side!r} is no number of pixels")
    try:
        number = float(side)
    except (ValueError, OverflowError):
        raise ValueError(f"{side!r} is no number of pixels") from None
    if not 0 <= number <= _LONGEST or number != int(number):
        raise ValueError(f"{side!r} is no number of pixels")
    return int(number)
