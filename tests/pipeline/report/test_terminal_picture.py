"""A picture is shown by a terminal that says that it can, and by no other."""

import base64
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo terminals are POSIX's")

CODE = """
import sys
from pathlib import Path
from pipeline.report.terminal_picture import show_in_terminal
print("shown:", show_in_terminal(Path(sys.argv[1]).read_bytes()))
"""

SIXEL = {rb"\x1b\[c": b"\x1b[?62;4c"}
KITTY = {
    rb"\x1b\[c": b"\x1b[?62;22c",
    rb"\x1b_G[^\x1b]*i=(\d+)[^\x1b]*a=q[^\x1b]*\x1b\\": b"\x1b_Gi=%b;OK\x1b\\",
}
PLAIN = {rb"\x1b\[c": b"\x1b[?62;22c"}


def in_terminal(path: Path, answers: Mapping[bytes, bytes]) -> bytes:
    """What a process writes to a terminal of 80 × 24 cells that gives these answers."""
    own, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 800, 480))
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(path)],
        stdin=child,
        stdout=child,
        stderr=child,
        cwd=root,
        close_fds=True,
    )
    os.close(child)
    written = b""
    answered: set[bytes] = set()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([own], [], [], 0.2)[0]:
            try:
                read = os.read(own, 65536)
            except OSError:  # the other side is closed
                break
            written += read
            for query, answer in answers.items():
                if query not in answered and (found := re.search(query, written)):
                    os.write(own, answer % found.groups() if found.groups() else answer)
                    answered.add(query)
    process.wait(10)
    os.close(own)
    return written


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "red.png"
    Image.new("RGB", (60, 40), (250, 10, 20)).save(path)
    return path


def test_a_terminal_with_sixel_shows_the_picture(picture: Path) -> None:
    written = in_terminal(picture, SIXEL)
    assert b"shown: True" in written
    # A palette in per cent, in which red is 98;4;8.
    (sixel,) = re.findall(rb"\x1bP[\d;]*q(.*?)\x1b\\", written, re.S)
    red, green, blue = map(int, re.search(rb"#\d+;2;(\d+);(\d+);(\d+)", sixel).groups())
    assert (red, green, blue) == pytest.approx((98, 4, 8), abs=3)


def test_a_terminal_with_kittys_protocol_shows_the_picture(picture: Path) -> None:
    written = in_terminal(picture, KITTY)
    assert b"shown: True" in written
    sent = re.findall(rb"\x1b_Gi=\d+,[^;\x1b]*f=100[^;\x1b]*;([^\x1b]+)\x1b", written)
    with Image.open(io.BytesIO(base64.b64decode(b"".join(sent)))) as shown:
        assert shown.convert("RGB").getpixel((9, 9)) == (250, 10, 20)


def test_another_terminal_shows_nothing(picture: Path) -> None:
    written = in_terminal(picture, PLAIN)
    assert b"shown: False" in written
    assert b"\x1bP" not in written
    assert b"\xe2\x96\x80" not in written  # a half block


def test_a_pipe_gets_nothing(picture: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", CODE, str(picture)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=root)
    assert done.stdout == b"shown: False\n"
