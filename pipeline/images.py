"""From a photo's file to the network's input: decode to RGB, then prepare by a named way.

Every photo comes out the same way, or fails with an `ImageError` that becomes its row in `errors/`;
anything else that is raised here is a fault of the program or of the machine.
"""

import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import functional

from pipeline.store import files

ImageErrorKind = Literal[
    "missing",  # no file at the path
    "unreadable",  # a folder, or no permission
    "empty",  # zero bytes
    "not_an_image",  # no known format
    "truncated",  # the file ends before the picture does
    "corrupt",  # a known format, wrong inside
    "too_small",  # a side below 2 px: there is nothing to localise
    "too_large",  # more pixels than Pillow's Image.MAX_IMAGE_PIXELS, decoded or prepared
    "unsupported_mode",  # pixels without a defined range, e.g. float TIFF
    "size_mismatch",  # not the size that the annotation states, so its boxes fit no pixel
]
IMAGE_ERROR_KINDS: tuple[str, ...] = get_args(ImageErrorKind)

FORMAT_OF_SUFFIX = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jp2": "JPEG2000",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Suffixes (lower case) by which folders are searched, and the formats that are decoded.

The content decides the format of a file, whatever its suffix.
"""

SMALLEST_SIDE = 2  # px

View = tuple[float, float, float, float]
"""Left, top, width, height, in pixels of the original image: the part that the input shows."""


class ImageError(Exception):
    """A photo cannot be used; `kind` is one of `IMAGE_ERROR_KINDS`."""

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Prepared:
    """A photo as the network's input.

    Args:
        tensor: float32 [3, H, W] in [0, 1], not normalised.
        view: the part of the original image that `tensor` shows.
    """

    tensor: Tensor
    view: View


Preprocess = Callable[[Image.Image, int], Prepared]
"""`(RGB photo, input size in pixels)` to the network's input."""


def decode(photo: str | bytes, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode a photo to 8-bit RGB, upright.

    CMYK, grey, palette, 1-bit and 16-bit pictures are converted (16 bits keep their high byte, for
    grey as Pillow does for colour); alpha is dropped, as by torchvision's image loader; of an
    animation the first frame is taken. The picture is turned upright by its EXIF orientation,
    unless only the unturned picture has the annotated size: then the annotations are in its pixels.

    Args:
        photo: path or URL of the file, or its content.
        size: (width, height) in pixels that the annotation states, if any.

    Raises:
        ImageError: the photo cannot be used.
    """
    image = _load(photo if isinstance(photo, bytes) else _read(photo))
    turn = _turn(image)
    upright = image.size if turn not in _SIDEWAYS else image.size[::-1]
    if turn is not None and size in (None, upright):
        image = image.transpose(turn)
    elif size not in (None, image.size):
        raise ImageError(
            "size_mismatch",
            f"the picture has {upright[0]} x {upright[1]} px, its annotation states {size}",
        )
    return _to_rgb(image)


def center_crop(photo: Image.Image, input_size: int) -> Prepared:
    """Central square: shortest side to 256/224 of the input size, then cut; torchvision's standard.

    Equal bit for bit to `torchvision.transforms._presets.ImageClassification` with
    `resize_size = round(input_size * 256 / 224)`, bilinear, before its normalisation.
    """
    resized = _resize(photo, proportional(photo.size, round(input_size * 256 / 224)))
    width, height = resized.size
    left, top = round((width - input_size) / 2), round((height - input_size) / 2)
    cut = resized.crop((left, top, left + input_size, top + input_size))
    across, down = photo.width / width, photo.height / height
    return Prepared(
        _to_tensor(cut), (left * across, top * down, input_size * across, input_size * down)
    )


def stretch(photo: Image.Image, input_size: int) -> Prepared:
    """Return the whole photo as a square, whatever its proportions."""
    return _whole(photo, (input_size, input_size))


def shortest_side(photo: Image.Image, input_size: int) -> Prepared:
    """Return the whole photo in proportion, its shortest side `input_size`; the paper's way."""
    return _whole(photo, proportional(photo.size, input_size))


def shortest_side_aliased(photo: Image.Image, input_size: int) -> Prepared:
    """As `shortest_side`, bilinear without antialiasing; as Caffe's models saw their photos.

    Source: TorchRay, `torchray/benchmark/models.py::get_transform`.
    """
    width, height = proportional(photo.size, input_size)
    _check_pixels(photo, (width, height))
    resized = interpolate(_to_tensor(photo)[None], size=(height, width), mode="bilinear")[0]
    return Prepared(resized, _whole_view(photo))


PREPROCESS: dict[str, Preprocess] = {
    "center_crop": center_crop,
    "stretch": stretch,
    "shortest_side": shortest_side,
    "shortest_side_aliased": shortest_side_aliased,
}
PROPORTIONAL = ("shortest_side", "shortest_side_aliased")
"""Those whose inputs have the photo's own proportions."""


def proportional(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Width and height with the shortest side given; the other rounded down, as in torchvision."""
    longest = int(shortest * max(size) / min(size))
    return (shortest, longest) if size[0] <= size[1] else (longest, shortest)


def normalise(
    batch: Tensor, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb"
) -> Tensor:
    """Return `(batch - mean) / std`, channel by channel; `[..., C, H, W]` with C means and stds.

    `batch` is RGB; with `channel_order` `bgr` the result is BGR, and so are `mean` and `std`.
    """
    if channel_order == "bgr":
        batch = batch.flip(-3)
    channels = [
        torch.as_tensor(values, dtype=batch.dtype, device=batch.device) for values in (mean, std)
    ]
    centre, scale = (values[:, None, None] for values in channels)
    return (batch - centre) / scale


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


def _read(path: str) -> bytes:
    try:
        return files.read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing", f"no file {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError("unreadable", str(error)) from None


def _load(content: bytes) -> Image.Image:
    if not content:
        raise ImageError("empty", "the file has zero bytes")
    formats = sorted(set(FORMAT_OF_SUFFIX.values()))
    try:
        with _without_warnings():
            image: Image.Image = Image.open(io.BytesIO(content), formats=formats)
        if min(image.size) < SMALLEST_SIDE:
            raise ImageError("too_small", f"{image.width} x {image.height} px")
        image.load()
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not_an_image", f"none of {', '.join(formats)}") from None
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


def _whole(photo: Image.Image, size: tuple[int, int]) -> Prepared:
    return Prepared(_to_tensor(_resize(photo, size)), _whole_view(photo))


def _whole_view(photo: Image.Image) -> View:
    return 0.0, 0.0, float(photo.width), float(photo.height)


def _resize(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    _check_pixels(photo, size)
    return photo.resize(size, Image.Resampling.BILINEAR)


def _check_pixels(photo: Image.Image, size: tuple[int, int]) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise ImageError(
            "too_large",
            f"{photo.width} x {photo.height} px would be resized to {size[0]} x {size[1]} px",
        )


def _to_tensor(photo: Image.Image) -> Tensor:
    tensor: Tensor = functional.convert_image_dtype(functional.pil_to_tensor(photo), torch.float32)
    return tensor
