"""Every kind of bad input, and the message that the user gets.

    uv run python tests/benchmarks/bad_inputs.py [--rounds 200] [--seed 0] > bad_inputs.md

Spoils each file that Backlight reads, in its bytes and in its parts, as
`tests/pipeline/test_mutated_files.py` does, and photos as `test_bad_photos.py` does. Two messages
are of one kind where they differ in names and numbers alone; the first of each is shown. Prints a
table in Markdown, and on stderr the counts. Exit 1 where something else than a message was raised.
"""

import argparse
import contextlib
import io
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "pipeline")]

import test_bad_photos  # noqa: E402
import torch  # noqa: E402
from test_mutated_files import EXPECTED, READERS, make_inputs, spoiled  # noqa: E402
from tiny_network import draw_photo  # noqa: E402

from pipeline.images import ImageError, decode  # noqa: E402
from pipeline.store.problems import PROBLEM_KINDS  # noqa: E402

LONGEST = 240  # characters of a message
VARYING = re.compile(
    r"""'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | /\S+ | [-+]?[\d.]+(?:e[-+]?\d+)?""", re.VERBOSE
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    faults: list[str] = []
    first: dict[tuple[str, str], str] = {}
    times: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for what, said in (*photos(folder / "bad"), *files(folder, asked, faults)):
            kind = what, kind_of(said)
            first.setdefault(kind, shown(said, folder))
            times[kind] += 1
    print("| input | message | times |\n|---|---|---|")
    for kind, said in first.items():
        print(f"| {kind[0]} | {said} | {times[kind]} |")
    inputs = len({what for what, _ in first})
    print(
        f"{len(first)} kinds of messages for {inputs} inputs, {sum(times.values())} refusals, "
        f"{len(faults)} faults; {len(PROBLEM_KINDS)} kinds of problems of an OUT by verify",
        *faults,
        sep="\n",
        file=sys.stderr,
    )
    sys.exit(bool(faults))


def photos(folder: Path) -> list[tuple[str, str]]:
    found = []
    for how in test_bad_photos.BAD:
        path = folder / f"{how}.png"
        draw_photo(path, seed=0)
        test_bad_photos.spoil(path, how)
        try:
            decode(str(path))
        except ImageError as error:
            found.append(("photo", str(error)))
    return found


def files(folder: Path, asked: argparse.Namespace, faults: list[str]) -> list[tuple[str, str]]:
    make_inputs(folder)
    found = []
    for name, reader in READERS.items():
        draw = random.Random(f"{asked.seed} {name}")
        path = folder / reader.path
        whole = path.read_bytes()
        for _ in range(asked.rounds):
            path.write_bytes(spoiled(whole, reader, draw))
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # some are commands
                    reader.read(folder)
            except EXPECTED as refused:
                found.append((name, str(refused)))
            except Exception as error:
                faults.append(f"{name}: {type(error).__name__}: {error}")
        path.write_bytes(whole)
    return found


def kind_of(said: str) -> str:
    """The message without what is quoted, paths and numbers."""
    return re.sub(r"\W+", " ", VARYING.sub("#", said))[:80]


def shown(said: str, folder: Path) -> str:
    text = " ".join(said.replace(f"{folder}/", "").split()).replace("|", "\\|")
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


if __name__ == "__main__":
    main()
