import io
import os
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from pipeline.images import IMAGE_ERROR_KINDS, ImageError, decode, prepare, upright_size
from pipeline.photo_formats import FORMAT_OF_SUFFIX
from pipeline.preprocess import PREPROCESSES, Preparation, Sizing, center_crop, normalise


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})
    return file.getvalue()


def with_orientation(image: Image.Image, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, exif=exif, **options)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed)


PHOTO = Image.fromarray(noise(40, 30))
JPEG = encoded(PHOTO, format="JPEG")
SIZING = Sizing(224, 256, "bilinear")
PNG = encoded(PHOTO)
IN_TIFF = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), format="TIFF")


def with_broken_pixels(png: bytes) -> bytes:
    start = png.index(b"IDAT") + 20
    return png[:start] + bytes(40) + png[start + 40 :]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("empty", b""),
        ("not_an_image", b"<html>404</html>"),
        ("not_an_image", JPEG[:2]),
        ("not_an_image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("truncated", JPEG[: len(JPEG) // 2]),
        ("truncated", PNG[: len(PNG) // 2]),
        ("truncated", encoded(PHOTO, format="BMP")[:500]),
        ("corrupt", with_broken_pixels(PNG)),
        ("too_small", encoded(Image.new("RGB", (1, 1)))),
        ("too_small", encoded(Image.new("RGB", (9, 1)))),
        ("too_large", png_header(12000, 12000)),  # Pillow would only warn
        ("too_large", png_header(60000, 60000)),
        ("unsupported_mode", IN_TIFF),
        (
            "unsupported_mode",
            encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), format="TIFF"),
        ),
    ],
)
def test_a_bad_photo_fails_with_its_kind(kind: str, content: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode(content)
    assert caught.value.kind == kind
    assert kind in IMAGE_ERROR_KINDS
    assert caught.value.message


def test_a_path_without_a_file_and_a_folder_fail_with_their_kind(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing: no file .*absent\.jpg"):
        decode(str(tmp_path / "absent.jpg"))
    with pytest.raises(ImageError, match="unreadable"):
        decode(str(tmp_path))


def test_a_path_and_its_bytes_decode_alike(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(JPEG)
    assert decode(str(path)).tobytes() == decode(JPEG).tobytes()


def test_rgb_pixels_come_out_as_they_are() -> None:
    image = decode(PNG)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), noise(40, 30))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_is_the_same_in_all_three_channels(mode: str) -> None:
    grey = Image.fromarray(noise(16, 9, channels=1)).convert(mode)
    pixels = np.asarray(decode(encoded(grey)))
    expected = np.asarray(grey.convert("L"))
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=-1))


def test_16_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 255, 256], [300, 32768, 65535]], np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values))))
    assert pixels[..., 0].tolist() == [[0, 0, 1], [1, 128, 255]]


@pytest.mark.parametrize("byte_order", [">u2", "<u2"])
def test_16_bit_tiff_of_either_byte_order_is_scaled(byte_order: str) -> None:
    values = np.arange(64, dtype=byte_order).reshape(8, 8) * 1000
    pixels = np.asarray(decode(encoded(Image.fromarray(values), format="TIFF")))
    assert np.array_equal(pixels[..., 0], np.arange(64).reshape(8, 8) * 1000 // 256)


def test_16_bit_pgm_is_scaled() -> None:
    values = np.array([[0, 20000, 65535], [1, 2, 300]], ">u2")
    pixels = np.asarray(decode(b"P5 3 2 65535\n" + values.tobytes()))
    assert pixels[..., 2].tolist() == [[0, 78, 255], [0, 0, 1]]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    pixels = np.asarray(decode(encoded(red, format="JPEG", quality=95))).astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() <= 3


def test_alpha_is_dropped_and_the_colour_below_kept() -> None:
    pixels = noise(8, 6, channels=4)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(pixels)))), pixels[..., :3])


@pytest.mark.parametrize("transparency", [1, bytes([0, 128, 255])])
def test_a_palette_with_transparency_gives_its_colours(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 2))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 2, 1, 0])
    content = encoded(image, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = np.asarray(decode(content))
    assert pixels[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert np.array_equal(pixels[1], pixels[0, ::-1])


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert decode(content).getpixel((3, 2)) == (255, 0, 0)


# where the pixel at the top left of the stored picture stands in the upright one (EXIF 2.3, 4.6.4)
UPRIGHT_CORNER = {
    1: (0, 0),
    2: (-1, 0),
    3: (-1, -1),
    4: (0, -1),
    5: (0, 0),
    6: (-1, 0),
    7: (-1, -1),
    8: (0, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_photo_is_turned_upright(orientation: int, format: str) -> None:
    stored = Image.new("RGB", (32, 16))
    stored.paste((255, 255, 255), (0, 0, 8, 8))
    upright = decode(with_orientation(stored, orientation, format=format))
    assert upright.size == ((32, 16) if orientation < 5 else (16, 32))
    column, row = UPRIGHT_CORNER[orientation]
    assert np.asarray(upright)[row, column].min() > 200
    assert np.asarray(upright).sum() / 255 / 3 == pytest.approx(64, rel=0.05)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_the_size_by_the_head_is_that_of_the_upright_photo(orientation: int, format: str) -> None:
    content = with_orientation(PHOTO, orientation, format=format)
    photo = decode(content)
    assert upright_size(io.BytesIO(content)) == (photo.height, photo.width)
    assert (photo.width > photo.height) is (orientation < 5)


def test_the_size_by_the_head_is_known_beside_text_that_keeps_it_from_opening() -> None:
    at = PNG.index(b"IDAT") - 4
    content = PNG[:at] + ODD_PNG["long compressed text"] + PNG[at:]
    assert upright_size(io.BytesIO(content)) == (30, 40)
    assert upright_size(io.BytesIO(b"no photo")) is None


def test_a_photo_stays_unturned_where_only_then_it_has_the_annotated_size() -> None:
    content = with_orientation(PHOTO, 6)
    assert decode(content, size=(40, 30)).size == (30, 40)
    assert decode(content, size=(30, 40)).tobytes() == PHOTO.tobytes()


def test_a_photo_of_another_size_than_the_annotated_one_is_a_mismatch() -> None:
    for content in (PNG, with_orientation(PHOTO, 6)):
        with pytest.raises(ImageError, match=r"size_mismatch.*states 41 x 30 px"):
            decode(content, size=(30, 41))
    assert decode(PNG, size=(30, 40)).size == (40, 30)


ODD_EXIF = {
    "no TIFF header": b"garbage!",
    "ends in the header": b"II*\0",
    "directory beyond the end": b"II*\0\xff\xff\0\0",
    "value beyond the end": b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xf4\x01\0\0\x90\x5f\x01\0"
    + bytes(4),
    "two orientations": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x01\0\x01\0" + bytes(4),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", ODD_EXIF.values(), ids=ODD_EXIF.keys())
def test_odd_exif_neither_costs_the_photo_nor_warns(format: str, exif: bytes) -> None:
    content = encoded(PHOTO, format=format, exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(content).size == (40, 30)
    assert caught == []


def test_threads_that_overlap_leave_the_warning_filters_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = list(warnings.filters)
    pillows_open, begun, seconds = Image.open, threading.Event(), [0.05, 0.15]

    def slow_open(*args: Any, **options: Any) -> Image.Image:
        pause = seconds.pop(0)
        begun.set()
        time.sleep(pause)
        return pillows_open(*args, **options)

    monkeypatch.setattr(Image, "open", slow_open)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(decode, JPEG)
        begun.wait()
        second = pool.submit(decode, PNG)
    assert first.result().size == second.result().size == (40, 30)
    assert warnings.filters == before


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 427), (97, 61), (256, 256)])
@pytest.mark.parametrize(
    ("input_size", "resize_size", "interpolation"),
    [
        *((224, 256, "bilinear"), (299, 342, "bilinear"), (64, 73, "bilinear")),
        *((224, 232, "bilinear"), (300, 320, "bicubic"), (384, 384, "bicubic")),
        (64, 64, "nearest"),
    ],
)
def test_center_crop_and_normalise_equal_torchvision_bit_for_bit(
    size: tuple[int, int], input_size: int, resize_size: int, interpolation: str
) -> None:
    photo = Image.fromarray(noise(*size))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preset = ImageClassification(
        crop_size=input_size,
        resize_size=resize_size,
        interpolation=InterpolationMode(interpolation),
    )
    sizing = Sizing(input_size, resize_size, interpolation)
    ours = normalise(center_crop(photo, sizing).tensor[None], mean, std)
    assert torch.equal(ours[0], preset(photo))


@pytest.mark.parametrize(
    ("name", "size", "shape", "view"),
    [
        ("center_crop", (512, 256), (224, 224), (144.0, 16.0, 224.0, 224.0)),
        ("center_crop", (1024, 512), (224, 224), (288.0, 32.0, 448.0, 448.0)),
        ("stretch", (512, 256), (224, 224), (0.0, 0.0, 512.0, 256.0)),
        ("shortest_side", (512, 256), (224, 448), (0.0, 0.0, 512.0, 256.0)),
        ("shortest_side", (256, 512), (448, 224), (0.0, 0.0, 256.0, 512.0)),
    ],
)
def test_each_way_gives_its_shape_and_view(
    name: str, size: tuple[int, int], shape: tuple[int, int], view: tuple[float, ...]
) -> None:
    prepared = PREPROCESSES[name].prepare(Image.new("RGB", size, "white"), SIZING)
    assert prepared.tensor.shape == (3, *shape)
    assert prepared.tensor.dtype == torch.float32
    assert prepared.tensor.unique().tolist() == [1.0]
    assert prepared.view == view


@pytest.mark.parametrize("name", PREPROCESSES)
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (101, 77)])
@pytest.mark.parametrize("where", [(0.5, 0.5), (0.3, 0.4), (0.6, 0.7)])
def test_a_marked_place_is_found_where_the_view_says(
    name: str, size: tuple[int, int], where: tuple[float, float]
) -> None:
    # a Gaussian spot, whose centre of mass survives resizing
    centre_x, centre_y = where[0] * size[0], where[1] * size[1]
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    spread = 0.03 * min(size)
    distance = ((columns - centre_x) ** 2 + (rows - centre_y) ** 2) / (2 * spread**2)
    spot = (255 * np.exp(-distance)).round().astype(np.uint8)
    prepared = PREPROCESSES[name].prepare(Image.fromarray(spot).convert("RGB"), SIZING)
    seen = prepared.tensor[0].double()
    height, width = seen.shape
    x = (seen.sum(0) * (torch.arange(width) + 0.5)).sum() / seen.sum()
    y = (seen.sum(1) * (torch.arange(height) + 0.5)).sum() / seen.sum()
    left, top, view_width, view_height = prepared.view
    assert left + x.item() * view_width / width == pytest.approx(centre_x, abs=0.05)
    assert top + y.item() * view_height / height == pytest.approx(centre_y, abs=0.05)


@pytest.mark.parametrize("name", ["center_crop", "shortest_side"])
def test_a_strip_that_would_be_resized_to_gigabytes_is_too_large(name: str) -> None:
    preparation = Preparation(name, SIZING, "rgb", (0, 0, 0), (1, 1, 1))
    strip = Image.new("RGB", (65000, 2))
    with pytest.raises(ImageError, match=r"too_large.*65000 x 2"):
        prepare(strip, preparation)


def test_real_photos_have_their_annotated_sizes_and_modes(shared_data: Path) -> None:
    photos = sorted((shared_data / "imagenet" / "images").glob("*.JPEG"))
    assert len(photos) == 100
    assert {decode(str(path)).mode for path in photos[::5]} == {"RGB"}
    grey = np.asarray(decode(str(next(p for p in photos if "pencil_sharpener" in p.name))))
    assert np.array_equal(grey[..., 0], grey[..., 2])


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


LONG = zlib.compress(b"a" * (5 << 20))
ODD_PNG = {
    "long compressed text": png_chunk(b"zTXt", b"k\0\0" + LONG),
    "long international text": png_chunk(b"iTXt", b"k\0\1\0\0\0" + LONG),
    "much text": b"".join(png_chunk(b"tEXt", b"k\0" + bytes(1 << 20)) for _ in range(70)),
    "unknown compression": png_chunk(b"zTXt", b"k\0\5text"),
    "empty profile": png_chunk(b"iCCP", b""),
    "long profile": png_chunk(b"iCCP", b"k\0\0" + LONG),
    "short gamma": png_chunk(b"gAMA", b"\0"),
    "short resolution": png_chunk(b"pHYs", b"\0"),
    "wrong checksum": png_chunk(b"tEXt", b"k\0v")[:-4] + b"none",
}
ODD_JPEG = {
    "short profile": jpeg_segment(0xE2, b"ICC_PROFILE\0"),
    "short JFIF": jpeg_segment(0xE0, b"JFIF\0"),
    "short Adobe": jpeg_segment(0xEE, b"Adobe\0"),
    "broken index of frames": jpeg_segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x02\0"),
    "broken Photoshop": jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10x"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("chunks", ODD_PNG.values(), ids=ODD_PNG.keys())
def test_what_stands_beside_the_pixels_of_a_png_does_not_cost_it(
    chunks: bytes, after: bool
) -> None:
    at = PNG.index(b"IEND" if after else b"IDAT") - 4
    assert np.array_equal(np.asarray(decode(PNG[:at] + chunks + PNG[at:])), noise(40, 30))


@pytest.mark.parametrize("segment", ODD_JPEG.values(), ids=ODD_JPEG.keys())
def test_what_stands_beside_the_pixels_of_a_jpeg_does_not_cost_it(segment: bytes) -> None:
    turned = with_orientation(PHOTO, 6, format="JPEG")
    for jpeg in (JPEG, turned):
        assert decode(jpeg[:2] + segment + jpeg[2:]).tobytes() == decode(jpeg).tobytes()


def test_a_photo_whose_pixels_are_bad_keeps_its_first_error_without_its_metadata() -> None:
    broken = with_broken_pixels(PNG)
    at = broken.index(b"IDAT") - 4
    with pytest.raises(ImageError, match="MAX_TEXT_CHUNK"):
        decode(broken[:at] + ODD_PNG["long compressed text"] + broken[at:])


def test_a_path_that_the_disk_refuses_fails_with_its_kind(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("loop.jpg", "pipe.jpg", "x" * 300 + ".jpg"):
        with pytest.raises(ImageError, match="unreadable"):
            decode(str(tmp_path / name))
    for name in ("a\0b.jpg", "absent/a.jpg"):
        with pytest.raises(ImageError, match="missing"):
            decode(str(tmp_path / name))


def test_the_suffixes_of_photos_are_those_that_pillow_decodes_by_itself() -> None:
    Image.init()
    by_other_programs_or_in_name_alone = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
    of_pillow = {
        suffix
        for suffix, format in Image.registered_extensions().items()
        if format in Image.OPEN.keys() - by_other_programs_or_in_name_alone
    }
    of_browsers_and_cameras = {".pjp", ".pjpeg", ".mpo"}
    assert FORMAT_OF_SUFFIX.keys() == of_pillow | of_browsers_and_cameras
