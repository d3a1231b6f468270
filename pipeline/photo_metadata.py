"""What stands in a photo's file beside its pixels, taken out where it keeps the photo from opening.

Pillow reads text, profiles and thumbnails before the pixels, and gives up on a photo whose text is
too long or whose profile is broken. The pixels are good without them.
"""

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf")

_JPEG = b"\xff\xd8"
_EXIF, _ADOBE, _COMMENT, _START_OF_SCAN = 0xE1, 0xEE, 0xFE, 0xDA
_APPLICATIONS = range(0xE0, 0xF0)
_ADOBE_BYTES = 16  # marker, length, `Adobe`, version, flags and the colour transform


def without_metadata(content: bytes) -> bytes | None:
    """The file of a PNG or JPEG with its pixels and its EXIF alone; None for other formats."""
    if content.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(content))
    if content.startswith(_JPEG):
        return _JPEG + b"".join(_jpeg_segments(content))
    return None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """A chunk is its length, its name, that many bytes, and four of a checksum."""
    at = len(_PNG)
    while at < len(content):
        size = 12 + int.from_bytes(content[at : at + 4])
        if content[at + 4 : at + 8] in _PNG_KEPT:
            yield content[at : at + size]
        at += size


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """A segment is 0xff, its marker, its length with the two bytes of it, and its bytes."""
    at = len(_JPEG)
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker = content[at + 1]
        if marker == _START_OF_SCAN:
            break
        size = 2 + int.from_bytes(content[at + 2 : at + 4])
        is_application = marker in _APPLICATIONS or marker == _COMMENT
        has_colours = marker == _ADOBE and size >= _ADOBE_BYTES
        if not is_application or marker == _EXIF or has_colours:
            yield content[at : at + size]
        at += size
    yield content[at:]
