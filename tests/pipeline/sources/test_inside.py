"""No photo is read from outside of the root: by a path, by a link, or by a cell of a table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SettingsError
from pipeline.photo_bytes import cell, read_photo
from pipeline.sources import read_examples


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_links_that_lead_out_are_refused_with_their_number_unless_a_setting_allows_them(
    tmp_path: Path,
) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    touch(root / "dog/a.jpg", elsewhere / "b.jpg", elsewhere / "c.jpg")
    (root / "cat").symlink_to(elsewhere)
    (root / "dog/d.jpg").symlink_to(elsewhere / "b.jpg")
    with pytest.raises(SettingsError, match=r"3 photos not below --root, by a link \(cat") as r:
        read_examples("imagefolder", root)
    assert "--follow-links" in str(r.value)
    assert len(read_examples("imagefolder", root, follow_links=True)) == 4


def test_links_inside_the_root_and_a_root_that_is_a_link_are_as_good_as_folders(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "real/photos/a.jpg")
    (tmp_path / "real/dog").symlink_to(tmp_path / "real/photos")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    assert len(read_examples("imagefolder", tmp_path / "set")) == 1


def test_a_link_to_a_file_of_the_system_is_not_read_by_way_of_a_table(tmp_path: Path) -> None:
    root = tmp_path / "set"
    touch(root / "b.jpg")
    (root / "a.jpg").symlink_to("/etc/hostname")
    (root / "list.csv").write_text("path,label\na.jpg,0\nb.jpg,1\n")
    with pytest.raises(SettingsError, match=r"1 photo not below --root, by a link \(a"):
        read_examples("table", root, annotations="list.csv")


def test_a_list_of_voc_does_not_lead_out(tmp_path: Path) -> None:
    year = tmp_path / "set/VOC2007"
    for name in ("a", "../../../secret"):
        touch(year / f"JPEGImages/{name}.jpg", year / f"Annotations/{name}.xml")
        (year / f"Annotations/{name}.xml").write_text("<annotation></annotation>")
    lists = year / "ImageSets/Main/test.txt"
    touch(lists)
    lists.write_text("a\n../../../secret\n")
    with pytest.raises(SettingsError, match="1 path not below --root"):
        read_examples("voc", tmp_path / "set", split="test")


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.jpg", 7])
def test_a_cell_that_names_a_file_elsewhere_is_an_error_of_that_photo(
    tmp_path: Path, path: object
) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    table = tmp_path / "set/data.parquet"
    table.parent.mkdir()
    pq.write_table(pa.table({"image": [{"bytes": None, "path": path}]}), table)
    with pytest.raises(PermissionError, match="not below the folder"):
        read_photo(cell(str(table), "image", 0))
