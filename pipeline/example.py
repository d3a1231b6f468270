"""What every source yields and everything after it reads: one image, its labels and its objects."""

from dataclasses import dataclass

from transforms.pixels import Box, Size


@dataclass(frozen=True)
class Region:
    """One annotated object.

    Attributes:
        class_name: the dataset's class name.
        box: in pixels of the original image. VOC's corners, which count from 1 and are inclusive,
            become xmin - 1, ymin - 1, xmax, ymax.
        rle: COCO compressed RLE counts (ASCII) of the object's mask over the whole image, whose
            size is that of the example; `None`: the box is the region.
        difficult: VOC's flag: hard to recognise, left out of the scores.
        crowd: COCO's flag: a group of objects under one mask.
    """

    class_name: str
    box: Box
    rle: str | None = None
    difficult: bool = False
    crowd: bool = False


@dataclass(frozen=True)
class Example:
    """One image of a dataset.

    Attributes:
        image_id: unique in the set; usable as a file name and as a WebDataset key.
        path: relative to the source's root, posix.
        labels: dataset class names (or class index, or synset, as written) present in the image,
            unique, in order of first appearance.
        regions: the annotated objects, in the annotation's order.
        size: (height, width) in pixels, where the annotation states it.
        problem: why the image cannot be used, such as a broken annotation: its error row has this
            message. Empty: nothing is wrong.
    """

    image_id: str
    path: str
    labels: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    size: Size | None = None
    problem: str = ""
