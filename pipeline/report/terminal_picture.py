"""A picture in the terminal itself, where the terminal can show one."""

import io
import sys

from PIL import Image
from rich.console import Console


def show_in_terminal(content: bytes) -> bool:
    """Show a picture of pixels on stdout; False where that is no terminal that can.

    The terminal is asked whether it knows Kitty's protocol or Sixel. Coarse blocks of characters
    would not do.
    """
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        return False
    # Asks the terminal when it is imported.
    from textual_image.renderable import Image as Shown
    from textual_image.renderable import SixelImage, TGPImage

    if not issubclass(Shown, SixelImage | TGPImage):
        return False
    with Image.open(io.BytesIO(content)) as picture:
        Console().print(Shown(picture.convert("RGB"), width="auto"))
    return True
