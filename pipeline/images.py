"""From a photo's file to the network's input: read, decode to RGB, prepare.

A photo that cannot be used raises an `ImageError`, which becomes its row in `errors/`. Whatever
else is raised here is a fault of the program or of the machine.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline import files
from pipeline.photo_bytes import read_photo
from pipeline.photo_formats import FORMAT_OF_SUFFIX
from pipeline.photo_metadata import without_metadata
from pipeline.preprocess import PixelsError, Preparation, Prepared
from transforms.pixels import Size

ImageErrorKind = Literal[
    "missing",  # no file at the path
    "unreadable",  # a folder, a pipe, no permission, or a disk that fails there
    "empty",  # zero bytes
    "not_an_image",  # no known format
    "truncated",  # the file ends before the picture does
    "corrupt",  # a known format, wrong inside
    "too_small",  # a side below 2 px: there is nothing to localise
    "too_large",  # more pixels than Pillow's Image.MAX_IMAGE_PIXELS, decoded or prepared
    "unsupported_mode",  # pixels without a defined range, e.g. float TIFF
    "annotation",  # its annotation is broken, so that its labels and objects are not known
    "size_mismatch",  # not the size that the annotation states, so its boxes fit no pixel
    "memory",  # it needs more memory than there is
    "ends_process",  # a process that works on it alone ends: `pipeline.workers.isolation`
    "stalled",  # a process that works on it alone makes no progress
]
IMAGE_ERROR_KINDS: tuple[str, ...] = get_args(ImageErrorKind)

SMALLEST_SIDE = 2  # px


class ImageError(Exception):
    """A photo cannot be used.

    Attributes:
        kind: one of `IMAGE_ERROR_KINDS`.
        message: what is wrong, in words.
        stage: what was being done.
    """

    def __init__(self, kind: ImageErrorKind, message: str, stage: str = "decode") -> None:
        super().__init__(kind, message, stage)
        self.kind = kind
        self.message = message
        self.stage = stage

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def prepare(photo: Image.Image, preparation: Preparation) -> Prepared:
    """The network's input, before the normalisation.

    Raises:
        ImageError: it would have too many pixels.
    """
    try:
        return preparation.prepare(photo)
    except PixelsError as error:
        raise ImageError("too_large", str(error)) from None


def read(path: str) -> bytes:
    """The bytes of a photo, which lies where `pipeline.photo_bytes` says.

    Raises:
        ImageError: it cannot be read, and cannot be the next time.
    """
    try:
        return read_photo(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", f"no file {path} ({error.strerror or error})") from None
    except OSError as error:
        if error.errno not in files.OF_ONE_FILE:
            raise
        raise ImageError("unreadable", str(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise ImageError("missing", f"no file {path!r} ({error})") from None


def decode(photo: str | bytes, size: Size | None = None) -> Image.Image:
    """Decode a photo to 8-bit RGB, upright.

    CMYK, grey, palette, 1-bit and 16-bit pictures are converted (16 bits keep their high byte, for
    grey as Pillow does for colour); alpha is dropped, as by torchvision's image loader; of an
    animation the first frame is taken. The picture is turned upright by its EXIF orientation,
    unless only the unturned picture has the annotated size: then the annotations are in its pixels.

    Args:
        photo: where it is, as `pipeline.photo_bytes` says, or its content.
        size: (height, width) in pixels that the annotation states, if any.

    Raises:
        ImageError: the photo cannot be used.
    """
    image = _load(photo if isinstance(photo, bytes) else read(photo))
    turn = _turn(image)
    stored = image.height, image.width
    upright = stored[::-1] if turn in _SIDEWAYS else stored
    if turn is not None and size in (None, upright):
        image = image.transpose(turn)
    elif size is not None and size != stored:
        raise ImageError(
            "size_mismatch",
            f"the picture has {upright[1]} x {upright[0]} px, "
            f"its annotation states {size[1]} x {size[0]} px",
        )
    return _to_rgb(image)


def upright_size(photo: BinaryIO) -> Size | None:
    """(height, width) of a photo as `decode` gives it, by its head; `None` where it has none."""
    image = _head(photo)
    if image is None:
        photo.seek(0)
        bare = without_metadata(photo.read())
        image = None if bare is None else _head(io.BytesIO(bare))
    if image is None:
        return None
    stored = image.height, image.width
    # of a TIFF Pillow turns the size itself
    is_sideways = image.format != "TIFF" and _turn(image) in _SIDEWAYS
    return stored[::-1] if is_sideways else stored


def _head(photo: BinaryIO) -> Image.Image | None:
    try:
        with _without_warnings():
            return Image.open(photo, formats=_FORMATS)
    # whatever a decoder raises, the run will say what is wrong with the photo
    except Exception:
        return None


_TURN_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURN_OF_ORIENTATION[orientation] for orientation in (5, 6, 7, 8)}
_FORMATS = tuple(sorted(set(FORMAT_OF_SUFFIX.values())))
_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")

# photos are decoded in threads, and warnings.catch_warnings swaps one list for all of them
_filters = threading.Lock()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow on odd metadata, but raise its warning of a decompression bomb."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _load(content: bytes) -> Image.Image:
    if not content:
        raise ImageError("empty", "the file has zero bytes")
    try:
        return _open(content)
    except ImageError as error:
        bare = without_metadata(content)
        if error.kind not in _PERHAPS_METADATA or bare in (None, content):
            raise
        try:
            return _open(bare)
        except ImageError:
            raise error from None


_PERHAPS_METADATA = ("not_an_image", "truncated", "corrupt")


def _open(content: bytes) -> Image.Image:
    try:
        with _without_warnings():
            image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
        if min(image.size) < SMALLEST_SIDE:
            raise ImageError("too_small", f"{image.width} x {image.height} px")
        image.load()
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not_an_image", "of no format that Pillow decodes") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError("too_large", str(error)) from None
    # the bytes are in memory, so whatever a decoder raises on them is the picture's fault
    except Exception as error:
        kind: ImageErrorKind = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageError(kind, str(error) or type(error).__name__) from None
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with _without_warnings():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    # damaged metadata of every sort raises its own error, and the picture is good without it
    except Exception:
        return None
    return _TURN_OF_ORIENTATION.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GREY:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError(
                "unsupported_mode", f"{image.mode} pixels outside the 16-bit range 0 to 65535"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    # Pillow converts floats too, but by clipping them at 255
    if image.mode == "F":
        raise ImageError("unsupported_mode", "float pixels, which have no defined range")
    # with it Pillow would look for a colour to stand for what is see-through
    image.info.pop("transparency", None)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported_mode", f"{image.mode} pixels: {error}") from None
