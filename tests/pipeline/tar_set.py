"""A set of photos in two tar shards, with one photo that is broken and one that is cut off."""

import io
import tarfile
from pathlib import Path

from tiny_network import draw_photo

PHOTOS = 7
"""That a plan has: three of the first shard, and four of the second, whose last is cut off."""


def draw_shards(folder: Path) -> Path:
    """`train-000.tar` and `train-001.tar` in `folder`; photo 2 is no whole JPEG."""
    folder.mkdir(parents=True)
    for shard, numbers in enumerate((range(3), range(3, PHOTOS + 1))):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as file:
            for number in numbers:
                draw_photo(folder / "photo.jpg", number, (400, 300))
                photo = (folder / "photo.jpg").read_bytes()
                content = photo[:400] if number == 2 else photo
                for name, inside in ((f"{number}.cls", b"3"), (f"{number}.jpg", content)):
                    member = tarfile.TarInfo(name)
                    member.size = len(inside)
                    file.addfile(member, io.BytesIO(inside))
    (folder / "photo.jpg").unlink()
    last = folder / "train-001.tar"
    with tarfile.open(last) as file:
        end = file.getmembers()[-1].offset_data + 1000
    last.write_bytes(last.read_bytes()[:end])
    return folder
