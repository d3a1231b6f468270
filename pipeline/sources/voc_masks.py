"""Pascal VOC's masks: palette PNGs, which only the images of the segmentation sets have.

`SegmentationObject/ID.png` has the number of the object at each pixel, from 1, in the order of the
annotation's objects. `SegmentationClass/ID.png` has the number of its class, in the alphabetical
order of VOC's classes. In both, 0 is background, and 255 is the border of an object, which is of no
object here. Source: the VOC2012 development kit.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import files
from transforms.pixels import Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.uint8]

OBJECTS, CLASSES = "SegmentationObject", "SegmentationClass"

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_BORDER = 255


@dataclass(frozen=True)
class Masks:
    """The masks of one image.

    Attributes:
        rles: of each annotated object, as COCO's compressed RLE counts; `None` where it has no
            pixel.
        size: of the masks.
    """

    rles: Sequence[str | None]
    size: Size


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a year's folder.

    Attributes:
        year: the folder.
        objects: the names of the files in `SegmentationObject`.
        classes: the names of the files in `SegmentationClass`.
    """

    year: str
    objects: frozenset[str]
    classes: frozenset[str]

    @classmethod
    def below(cls, year: str) -> "MaskFiles":
        """Those that there are, found by listing both folders once."""
        found = (
            frozenset(files.below(os.path.join(year, folder))) for folder in (OBJECTS, CLASSES)
        )
        return cls(year, *found)

    def of_image(self, name: str, class_names: Sequence[str], size: Size | None) -> Masks | None:
        """The masks of the annotated objects of image `name`; `None` where it has no file.

        `class_names` are the objects' classes in the annotation's order. Without a file of objects,
        or where that numbers more objects than are annotated, each object has the mask of its
        class.

        Raises:
            ValueError: a file is neither a palette or grey PNG nor in VOC's colours, is not of the
                annotated `size`, or numbers more objects than are annotated and there is no file
                of classes.
        """
        file = f"{name}.png"
        if file in self.objects:
            path = os.path.join(self.year, OBJECTS, file)
            numbers = _read(path, size)
            highest = int(numbers[numbers != _BORDER].max(initial=0))
            if highest <= len(class_names):
                rles = [_rle(numbers == i + 1) for i in range(len(class_names))]
                return Masks(rles, numbers.shape)
            if file not in self.classes:
                raise ValueError(
                    f"{path} numbers {highest} objects, and the annotation has "
                    f"{len(class_names)}; add the file of {CLASSES}, or delete this one"
                )
        if file in self.classes:
            numbers = _read(os.path.join(self.year, CLASSES, file), size)
            number_of = {class_name: i + 1 for i, class_name in enumerate(VOC_CLASSES)}
            of_class = {
                class_name: _rle(numbers == number_of[class_name])
                for class_name in set(class_names) & number_of.keys()
            }
            return Masks([of_class.get(class_name) for class_name in class_names], numbers.shape)
        return None


def _read(path: str, size: Size | None) -> "Numbers":
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(files.read_bytes(path))) as image:
            mode, numbers = image.mode, np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError(f"cannot read the masks {path}: it is no picture") from None
    # whatever else a decoder raises, the file is at fault
    except Exception as error:
        raise ValueError(f"cannot read the masks {path}: {error}") from error
    if mode in ("RGB", "RGBA"):
        numbers = _of_colours(numbers, path)
    elif mode not in ("P", "L"):
        raise ValueError(
            f"{path} has mode {mode}; masks are PNGs whose values are numbers of objects or "
            "classes, or VOC's colours"
        )
    if size is not None and numbers.shape != size:
        raise ValueError(
            f"{path} is of {numbers.shape[1]} x {numbers.shape[0]} px, and the annotation says "
            f"{size[1]} x {size[0]}"
        )
    return numbers


def _of_colours(pixels: "NDArray[np.uint8]", path: str) -> "Numbers":
    """The numbers of VOC's palette at the colours `[h, w, 3 or 4]`.

    Bit 0, 3 and 6 of a number are the highest bits of its red, bit 1, 4 and 7 of its green, and
    bit 2 and 5 of its blue. Source: `VOClabelcolormap.m` of the development kit.
    """
    import numpy as np

    number = np.arange(_BORDER + 1)
    colour = np.zeros(len(number), dtype=np.int64)
    for bit in range(8):
        colour |= (number >> bit & 1) << 8 * (2 - bit % 3) + 7 - bit // 3
    order = np.argsort(colour)
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    found = red << 16 | green << 8 | blue
    place = np.searchsorted(colour[order], found).clip(max=_BORDER)
    if not np.array_equal(colour[order][place], found):
        raise ValueError(f"{path} has colours that are not those of VOC's palette; save it with it")
    return number[order][place].astype(np.uint8)


def _rle(pixels: "NDArray[np.bool_]") -> str | None:
    import numpy as np
    from pycocotools import mask

    if not pixels.any():
        return None
    counts: bytes = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"]
    return counts.decode("ascii")
