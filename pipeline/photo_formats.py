"""The formats of photos: by which suffixes folders are searched, and which are decoded."""

import os

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
"""Suffix (lower case) -> Pillow's name of the format.

The content decides the format of a file, whatever its suffix.
"""


def is_photo_name(path: str) -> bool:
    """Whether the file's suffix is that of a photo, in letters of either case."""
    return os.path.splitext(path)[1].lower() in FORMAT_OF_SUFFIX
