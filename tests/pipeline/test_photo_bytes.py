import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.photo_bytes import cell, file_of, part, read_photo


def parquet(path: Path, values: list[bytes | None], group: int) -> str:
    structs = [{"bytes": value, "path": None} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "raw": pa.array(values, pa.binary())})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def test_the_bytes_of_a_tar_member_are_read_at_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first")
    (tmp_path / "b.jpg").write_bytes(b"the second")
    path = str(tmp_path / "x.tar")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
        tar.add(tmp_path / "b.jpg", "b.jpg")
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    assert [read_photo(part(path, *place)) for place in places] == [b"first", b"the second"]
    with pytest.raises(OSError, match="ends before byte"):
        read_photo(part(path, 0, 1 << 20))


@pytest.mark.parametrize("column", ["image", "raw"])
@pytest.mark.parametrize("group", [7, 64, 1000])
def test_any_row_of_a_parquet_file_is_read_in_any_order(
    tmp_path: Path, column: str, group: int
) -> None:
    values = [b"%d" % i * (i % 5 + 1) for i in range(200)]
    path = parquet(tmp_path / "x.parquet", values, group)
    order = [0, 1, 2, 199, 3, 64, 63, 40, *range(100, 180), 179, 5]
    assert [read_photo(cell(path, column, row)) for row in order] == [values[r] for r in order]
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda row: read_photo(cell(path, column, row)), range(200))
        assert list(found) == values


def test_a_cell_without_bytes_is_the_file_that_its_path_names(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"beside")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}]
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), path)
    assert read_photo(cell(path, "image", 0)) == b"beside"
    with pytest.raises(FileNotFoundError, match="no bytes"):
        read_photo(cell(path, "image", 1))
    with pytest.raises(FileNotFoundError, match="no row 2"):
        read_photo(cell(path, "image", 2))


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", [b"old"], 1)
    assert read_photo(cell(path, "raw", 0)) == b"old"
    parquet(tmp_path / "x.parquet", [b"newer"], 1)
    assert read_photo(cell(path, "raw", 0)) == b"newer"


def test_an_address_names_its_file_and_a_plain_path_is_its_own() -> None:
    assert file_of(part("s/0.tar", 512, 9)) == "s/0.tar"
    assert file_of(cell("d/x.parquet", "a[b]", 3)) == "d/x.parquet"
    for path in ("a#1+2.jpg", "dog/a.tar#b.jpg", "x.parquet.jpg", "a[3].png"):
        assert file_of(path) == path


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="a pipe or a device"):
        read_photo(str(tmp_path / "pipe.jpg"))
    with pytest.raises(OSError, match="a pipe or a device"):
        read_photo("/dev/zero")
