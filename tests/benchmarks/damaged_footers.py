"""Does a damaged Parquet file end the process that reads it?

    uv run python tests/benchmarks/damaged_footers.py [--seconds 180] [--seed 0]

Arrow is C++: what it does not check may abort the process. Real files of maps and of scores are
damaged in their footers (bits turned, bytes replaced, the end cut off, the length changed) and read
as Backlight reads them, in child processes. Prints how many were read, refused in words, or ended
the child, and for each end the signal, and the file in hexadecimal positions. Exit 1 where a child
ended, or hung for ten seconds.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "pipeline")]

from pipeline.errors import UnreadableFileError  # noqa: E402
from pipeline.store.parquet import count_rows, opened, read_rows  # noqa: E402

HANGS = 10.0  # seconds
FILTERS = {"maps": {"method": ["gradient"], "layer": ["late"]}, "scores": {"layer": ["late"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(Path(asked.child[0]), int(asked.child[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        end, at = time.monotonic() + asked.seconds, asked.seed * 1_000_000
        first, ends = at, []
        while time.monotonic() < end:
            (folder / "at").write_text(str(at))
            process = subprocess.Popen(
                [sys.executable, __file__, "--child", str(folder), str(at)],
                stderr=subprocess.PIPE,
                text=True,
            )
            how = watched(process, folder / "at", end)
            at = int((folder / "at").read_text()) + 1
            if how:
                said = (process.stderr.read() if process.stderr else "").strip()[-300:]
                ends.append(f"{damage(folder, at - 1)[1]}: {how}: {said}")
                print(ends[-1], flush=True)
        outcomes = Counter((folder / "outcomes").read_text().split())
        print(f"{at - first} damaged footers: {dict(outcomes)}, {len(ends)} ended the process")
        sys.exit(bool(ends))


def make_files(folder: Path) -> None:
    """A file of maps and one of scores, by a run of the tests' network."""
    from tiny_network import boxed_config, draw_boxed_set

    from pipeline.generate import generate

    out = folder / "out"
    config = boxed_config(draw_boxed_set(folder / "set", 3), evaluate=["class_sensitivity"])
    generate(config, str(out))
    for kind in FILTERS:
        (path,) = (out / kind).iterdir()
        path.rename(folder / f"{kind}.parquet")


def watched(process: "subprocess.Popen[str]", at: Path, end: float) -> str:
    """How the child ended by itself; empty: it was ended because the time is over."""
    before, since = "", time.monotonic()
    while process.poll() is None:
        now = at.read_text()
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > HANGS:
            process.kill()
            process.wait()
            return "hangs"
        if time.monotonic() > end:
            process.kill()
            process.wait()
            return ""
        time.sleep(0.05)
    code = process.returncode
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def child(folder: Path, at: int) -> None:
    """Try one damage after the other, and note which before each."""
    noted = os.open(folder / "at", os.O_WRONLY)
    outcomes = os.open(folder / "outcomes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    path = folder / "damaged.parquet"
    while True:
        os.pwrite(noted, str(at).encode(), 0)
        content, _, kind = damage(folder, at)
        path.write_bytes(content)
        for read in (
            lambda: read_rows(str(path)),
            lambda kind=kind: read_rows(str(path), filters=FILTERS[kind]),
            lambda: count_rows(str(path)),
            lambda: schema(str(path)),
        ):
            try:
                read()
                outcome = "read"
            except (UnreadableFileError, OSError):
                outcome = "refused"
            os.write(outcomes, f"{outcome}\n".encode())
        at += 1


def schema(path: str) -> object:
    with opened(path) as parquet:
        return parquet.schema_arrow.metadata


def damage(folder: Path, at: int) -> tuple[bytes, str, str]:
    """The damaged file with this number, what was done, and which kind of file it is."""
    draw = random.Random(at)
    kind = draw.choice(list(FILTERS))
    content = bytearray((folder / f"{kind}.parquet").read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    done = []
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(footer, len(content))
        match draw.randrange(5):
            case 0 | 1:
                content[place] ^= 1 << draw.randrange(8)
                done.append(f"bit at {place}")
            case 2:
                content[place] = draw.choice((0, 0x7F, 0x80, 0xFF))
                done.append(f"byte at {place}")
            case 3:
                length = draw.randrange(1, 40)
                del content[place - length : place]
                footer = min(footer, len(content) - 1)
                done.append(f"{length} bytes before {place} gone")
            case _:
                content[-8:-4] = draw.randbytes(4) if draw.random() < 0.2 else content[-8:-4]
                content[place : place + 4] = draw.randbytes(4)
                done.append(f"4 bytes at {place}")
    return bytes(content), f"number {at}, {kind}, {', '.join(done)}", kind


if __name__ == "__main__":
    main()
