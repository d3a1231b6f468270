"""From a decoded photo to the network's input: each way to prepare it, and the normalisation.

PyTorch and Pillow are imported when the first photo is prepared: the table is also read by what
only names its entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.pixels import Size, View

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHANNEL_ORDERS = ("rgb", "bgr")


class PixelsError(ValueError):
    """A photo would have more pixels once prepared than Pillow allows a photo to have."""


@dataclass(frozen=True)
class Prepared:
    """A photo as the network's input.

    Attributes:
        tensor: float32 `[3, H, W]` in [0, 1], not normalised.
        view: the part of the original image that `tensor` shows.
    """

    tensor: "Tensor"
    view: View


@dataclass(frozen=True)
class Preprocess:
    """What a row of `PREPROCESSES` says of a way to prepare photos.

    Attributes:
        prepare: (RGB photo, input size in pixels) to the network's input.
        description: what it does, in words.
        is_proportional: whether inputs have the proportions of their photos, and not one shape.
    """

    prepare: "Callable[[Image.Image, int], Prepared]"
    description: str
    is_proportional: bool = False

    def input_shape(self, photo: Size, input_size: int) -> Size:
        """Height and width of the input that a photo of this height and width becomes."""
        return proportional(photo, input_size) if self.is_proportional else (input_size,) * 2


def center_crop(photo: "Image.Image", input_size: int) -> Prepared:
    """Central square: shortest side to 256/224 of the input size, then cut; torchvision's standard.

    Equal bit for bit to `torchvision.transforms._presets.ImageClassification` with
    `resize_size = round(input_size * 256 / 224)`, bilinear, before its normalisation.
    """
    resized = _resize(photo, proportional(_size(photo), round(input_size * 256 / 224)))
    width, height = resized.size
    left, top = round((width - input_size) / 2), round((height - input_size) / 2)
    cut = resized.crop((left, top, left + input_size, top + input_size))
    across, down = photo.width / width, photo.height / height
    return Prepared(
        _to_tensor(cut), (left * across, top * down, input_size * across, input_size * down)
    )


def stretch(photo: "Image.Image", input_size: int) -> Prepared:
    """The whole photo as a square, whatever its proportions."""
    return _whole(photo, (input_size, input_size))


def shortest_side(photo: "Image.Image", input_size: int) -> Prepared:
    """The whole photo in proportion, its shortest side `input_size`; the paper's way."""
    return _whole(photo, proportional(_size(photo), input_size))


def shortest_side_aliased(photo: "Image.Image", input_size: int) -> Prepared:
    """As `shortest_side`, bilinear without antialiasing, as Caffe's models saw their photos.

    Source: TorchRay, `torchray/benchmark/models.py::get_transform`.
    """
    from torch.nn.functional import interpolate

    size = proportional(_size(photo), input_size)
    _check_pixels(photo, size)
    resized = interpolate(_to_tensor(photo)[None], size=size, mode="bilinear")[0]
    return Prepared(resized, _whole_view(photo))


PREPROCESSES: dict[str, Preprocess] = {
    "center_crop": Preprocess(center_crop, "the central square, as torchvision takes it"),
    "stretch": Preprocess(stretch, "the whole photo, stretched to a square"),
    "shortest_side": Preprocess(
        shortest_side, "the whole photo, its shortest side as given", is_proportional=True
    ),
    "shortest_side_aliased": Preprocess(
        shortest_side_aliased,
        "the same without antialiasing, as Caffe's models saw their photos",
        is_proportional=True,
    ),
}


def proportional(photo: Size, shortest: int) -> Size:
    """Height and width with this shortest side; the other is rounded down, as torchvision does."""
    longest = int(shortest * max(photo) / min(photo))
    height, width = photo
    return (longest, shortest) if width <= height else (shortest, longest)


@dataclass(frozen=True)
class Preparation:
    """How the photos of a run become the network's input.

    Attributes:
        preprocess: the row of `PREPROCESSES`.
        input_size: pixels of the network's input, or of its shortest side.
        channel_order: `rgb` or `bgr`; `mean` and `std` have the same order.
        mean, std: of the normalisation, per channel.
    """

    preprocess: Preprocess
    input_size: int
    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, photo: "Image.Image") -> Prepared:
        """The network's input, before the normalisation.

        Raises:
            PixelsError: it would have too many pixels.
        """
        return self.preprocess.prepare(photo, self.input_size)

    def input_shape(self, photo: Size) -> Size:
        """Height and width of the input that a photo of this height and width becomes."""
        return self.preprocess.input_shape(photo, self.input_size)

    def normalise(self, batch: "Tensor") -> "Tensor":
        """RGB inputs `[B, 3, H, W]` normalised, in the channel order of the network."""
        return normalise(batch, self.mean, self.std, self.channel_order)


def normalise(
    batch: "Tensor", mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb"
) -> "Tensor":
    """`(batch - mean) / std` per channel; `[..., C, H, W]` with C means and stds.

    `batch` is RGB. With `channel_order` `bgr` the result is BGR, and so are `mean` and `std`.
    """
    if channel_order == "bgr":
        batch = batch.flip(-3)
    centre, scale = (batch.new_tensor(values)[:, None, None] for values in (mean, std))
    return (batch - centre) / scale


def _size(photo: "Image.Image") -> Size:
    return photo.height, photo.width


def _whole(photo: "Image.Image", size: Size) -> Prepared:
    return Prepared(_to_tensor(_resize(photo, size)), _whole_view(photo))


def _whole_view(photo: "Image.Image") -> View:
    return 0.0, 0.0, float(photo.width), float(photo.height)


def _resize(photo: "Image.Image", size: Size) -> "Image.Image":
    from PIL import Image

    _check_pixels(photo, size)
    height, width = size
    return photo.resize((width, height), Image.Resampling.BILINEAR)


def _check_pixels(photo: "Image.Image", size: Size) -> None:
    from PIL import Image

    height, width = size
    if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
        raise PixelsError(
            f"{photo.width} x {photo.height} px would be resized to {width} x {height} px"
        )


def _to_tensor(photo: "Image.Image") -> "Tensor":
    import torch
    from torchvision.transforms import functional

    tensor: Tensor = functional.convert_image_dtype(functional.pil_to_tensor(photo), torch.float32)
    return tensor
