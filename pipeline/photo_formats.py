"""The formats of photos: by which suffixes folders are searched, and which are decoded."""

import os

FORMAT_OF_SUFFIX = {
    ".apng": "PNG",
    ".avif": "AVIF",
    ".avifs": "AVIF",
    ".blp": "BLP",
    ".bmp": "BMP",
    ".bw": "SGI",
    ".cur": "CUR",
    ".dcx": "DCX",
    ".dds": "DDS",
    ".dib": "DIB",
    ".fit": "FITS",
    ".fits": "FITS",
    ".flc": "FLI",
    ".fli": "FLI",
    ".ftc": "FTEX",
    ".ftu": "FTEX",
    ".gbr": "GBR",
    ".gif": "GIF",
    ".icb": "TGA",
    ".icns": "ICNS",
    ".ico": "ICO",
    ".iim": "IPTC",
    ".im": "IM",
    ".j2c": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".jpc": "JPEG2000",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpf": "JPEG2000",
    ".jpg": "JPEG",
    ".jpx": "JPEG2000",
    ".mpo": "JPEG",
    ".msp": "MSP",
    ".pbm": "PPM",
    ".pcd": "PCD",
    ".pcx": "PCX",
    ".pfm": "PPM",
    ".pgm": "PPM",
    ".pjp": "JPEG",
    ".pjpeg": "JPEG",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".psd": "PSD",
    ".pxr": "PIXAR",
    ".qoi": "QOI",
    ".ras": "SUN",
    ".rgb": "SGI",
    ".rgba": "SGI",
    ".sgi": "SGI",
    ".tga": "TGA",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".vda": "TGA",
    ".vst": "TGA",
    ".webp": "WEBP",
    ".xbm": "XBM",
    ".xpm": "XPM",
}
"""Suffix (lower case) -> Pillow's name of the format: all that Pillow decodes by itself.

EPS needs Ghostscript, and of BUFR, GRIB, HDF5, MPEG and WMF Pillow only knows the name. The content
decides the format of a file, whatever its suffix.
"""


def is_photo_name(path: str) -> bool:
    """Whether the file's suffix is that of a photo, in letters of either case."""
    return os.path.splitext(path)[1].lower() in FORMAT_OF_SUFFIX
