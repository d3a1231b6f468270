"""From a decoded photo to the network's input: each way to prepare it, and the normalisation.

PyTorch and Pillow are imported when the first photo is prepared: the table is also read by what
only names its entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transforms.pixels import Size, View

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

CHANNEL_ORDERS = ("rgb", "bgr")

INTERPOLATIONS = {
    "nearest": "NEAREST",
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
    "hamming": "HAMMING",
    "box": "BOX",
}
"""How photos are resized, with antialiasing: the name here, and the one in Pillow."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelsError(ValueError):
    """A photo would have more pixels once prepared than Pillow allows a photo to have."""


@dataclass(frozen=True)
class InputRules:
    """How the photos of a set of weights are prepared, where the user does not say it.

    Attributes:
        source: whose rules they are, in words.
        input_size: pixels of the network's square input.
        resize_size: pixels of a photo's shortest side before `center_crop` cuts it.
        interpolation: how photos are resized, a name in `INTERPOLATIONS`.
        mean, std: of the normalisation, per channel, RGB.
        preprocess: the name in `PREPROCESSES`; None: by the source of the photos.
    """

    source: str
    input_size: int = 224
    resize_size: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    preprocess: str | None = None

    def for_size(self, input_size: int) -> "InputRules":
        """The same for another input, with the resize in proportion."""
        resize_size = round(input_size * self.resize_size / self.input_size)
        return replace(self, input_size=input_size, resize_size=resize_size)


STANDARD = InputRules("the standard for ImageNet")
"""What most networks take, and what is assumed of those that say nothing."""


@dataclass(frozen=True)
class Sizing:
    """How a photo is brought to the size of the network's input.

    Attributes:
        input_size: pixels of the network's input, or of its shortest side.
        resize_size: pixels of the shortest side before `center_crop` cuts; None where nothing does.
        interpolation: a name in `INTERPOLATIONS`.
    """

    input_size: int
    resize_size: int | None
    interpolation: str


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
        prepare: RGB photo and sizes to the network's input.
        description: what it does, in words.
        is_proportional: whether inputs have the proportions of their photos, and not one shape.
        crops: whether it cuts a photo that was resized to `resize_size`.
        interpolations: the ways to resize that it has.
    """

    prepare: "Callable[[Image.Image, Sizing], Prepared]"
    description: str
    is_proportional: bool = False
    crops: bool = False
    interpolations: tuple[str, ...] = tuple(INTERPOLATIONS)

    def input_shape(self, photo: Size, input_size: int) -> Size:
        """Height and width of the input that a photo of this height and width becomes."""
        return proportional(photo, input_size) if self.is_proportional else (input_size,) * 2


def center_crop(photo: "Image.Image", sizing: Sizing) -> Prepared:
    """Central square of the photo, its shortest side resized before; torchvision's standard.

    Equal bit for bit to `torchvision.transforms._presets.ImageClassification` with the same sizes
    and interpolation, before its normalisation.
    """
    size = sizing.input_size
    resized = _resize(photo, proportional(_size(photo), sizing.resize_size or size), sizing)
    width, height = resized.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    cut = resized.crop((left, top, left + size, top + size))
    across, down = photo.width / width, photo.height / height
    return Prepared(_to_tensor(cut), (left * across, top * down, size * across, size * down))


def stretch(photo: "Image.Image", sizing: Sizing) -> Prepared:
    """The whole photo as a square, whatever its proportions."""
    return _whole(photo, (sizing.input_size, sizing.input_size), sizing)


def shortest_side(photo: "Image.Image", sizing: Sizing) -> Prepared:
    """The whole photo in proportion, its shortest side `input_size`; the paper's way."""
    return _whole(photo, proportional(_size(photo), sizing.input_size), sizing)


def shortest_side_aliased(photo: "Image.Image", sizing: Sizing) -> Prepared:
    """As `shortest_side`, bilinear without antialiasing, as Caffe's models saw their photos.

    Source: TorchRay, `torchray/benchmark/models.py::get_transform`.
    """
    from torch.nn.functional import interpolate

    size = proportional(_size(photo), sizing.input_size)
    _check_pixels(photo, size)
    resized = interpolate(_to_tensor(photo)[None], size=size, mode="bilinear")[0]
    return Prepared(resized, _whole_view(photo))


PREPROCESSES: dict[str, Preprocess] = {
    "center_crop": Preprocess(
        center_crop, "the central square, as torchvision takes it", crops=True
    ),
    "stretch": Preprocess(stretch, "the whole photo, stretched to a square"),
    "shortest_side": Preprocess(
        shortest_side, "the whole photo, its shortest side as given", is_proportional=True
    ),
    "shortest_side_aliased": Preprocess(
        shortest_side_aliased,
        "the same without antialiasing, as Caffe's models saw their photos",
        is_proportional=True,
        interpolations=("bilinear",),
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
        name: of the row of `PREPROCESSES`.
        sizing: the sizes, and how photos are resized.
        channel_order: `rgb` or `bgr`; `mean` and `std` have the same order.
        mean, std: of the normalisation, per channel.
    """

    name: str
    sizing: Sizing
    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def preprocess(self) -> Preprocess:
        """The row of `PREPROCESSES`."""
        return PREPROCESSES[self.name]

    @property
    def input_size(self) -> int:
        """Pixels of the network's input, or of its shortest side."""
        return self.sizing.input_size

    def __str__(self) -> str:
        """What becomes of a photo, in words."""
        sizing = self.sizing
        resized = f", shortest side to {sizing.resize_size} px before" if sizing.resize_size else ""
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{self.name} to {sizing.input_size} px{resized}, {sizing.interpolation}, "
            f"{self.channel_order.upper()} less {mean} by {std}"
        )

    def prepare(self, photo: "Image.Image") -> Prepared:
        """The network's input, before the normalisation.

        Raises:
            PixelsError: it would have too many pixels.
        """
        return self.preprocess.prepare(photo, self.sizing)

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


def _whole(photo: "Image.Image", size: Size, sizing: Sizing) -> Prepared:
    return Prepared(_to_tensor(_resize(photo, size, sizing)), _whole_view(photo))


def _whole_view(photo: "Image.Image") -> View:
    return 0.0, 0.0, float(photo.width), float(photo.height)


def _resize(photo: "Image.Image", size: Size, sizing: Sizing) -> "Image.Image":
    from PIL import Image

    _check_pixels(photo, size)
    height, width = size
    return photo.resize((width, height), Image.Resampling[INTERPOLATIONS[sizing.interpolation]])


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
