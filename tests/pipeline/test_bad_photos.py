"""A photo that cannot be used costs one error row; odd but good ones give maps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_network import draw_photo, run_config

from pipeline.errors import TooManyErrorsError
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.store.verify import verify

BAD = {
    "corrupt": "corrupt",
    "truncated": "truncated",
    "empty": "empty",
    "text": "not_an_image",
    "one_pixel": "too_small",
    "missing": "missing",
    "folder": "unreadable",
}


def spoil(path: Path, how: str) -> None:
    """Turn a good photo into a bad one."""
    content = path.read_bytes()
    match how:
        case "corrupt":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + b"\xff" * 200 + content[middle + 200 :])
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no picture")
        case "one_pixel":
            Image.new("RGB", (1, 1)).save(path)
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()


def listed(root: Path, count: int) -> Path:
    """`count` photos and the table that lists them: also those that will be missing."""
    for i in range(count):
        draw_photo(root / f"photo{i:02}.png", seed=i)
    rows = "".join(f"photo{i:02}.png,{i % 5}\n" for i in range(count))
    (root / "list.csv").write_text("path,label\n" + rows)
    return root


def config_of(root: Path, **changes: object):
    return run_config(
        root, source="table", annotations="list.csv", **{"shard_size": 4, "batch_size": 4} | changes
    )


def test_every_bad_photo_costs_one_error_row_and_nothing_else(tmp_path):
    root, out = listed(tmp_path / "set", 12), str(tmp_path / "out")
    for i, how in enumerate(BAD):
        spoil(root / f"photo{i:02}.png", how)
    with pytest.raises(TooManyErrorsError, match=r"7 of 12 images failed.*--max-error-rate") as r:
        generate(config_of(root), out)
    assert r.value.exit_code == 3
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    dataset = MapDataset(out)
    before = dataset.maps().to_pylist()
    errors = dataset.errors().to_pylist()
    assert {error["path"]: error["kind"] for error in errors} == {
        f"photo{i:02}.png": kind for i, kind in enumerate(BAD.values())
    }
    assert {error["stage"] for error in errors} == {"decode"}
    assert {error["planned_maps"] for error in errors} == {3 * 3 * 3}
    assert all(error["message"] for error in errors)
    assert dataset.images()["image_id"].to_pylist() == [f"photo{i:02}" for i in range(7, 12)]
    assert len(before) == 5 * 27

    summary = generate(config_of(root), out, max_error_rate=0.7)
    assert (summary.images, summary.errors, summary.maps) == (5, 7, 135)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert verify(out) == []
    assert MapDataset(out).maps().to_pylist() == before
    assert generate(config_of(root), out, max_error_rate=0.7).already_complete


def test_a_photo_that_the_disk_refuses_costs_one_error_row(tmp_path):
    """As the system does it: ELOOP on a photo and on a folder, ENAMETOOLONG, and EIO."""
    root, out = listed(tmp_path / "set", 2), str(tmp_path / "out")
    (root / "loop.png").symlink_to("loop.png")
    (root / "loop").symlink_to("loop")
    (root / "unmapped.png").symlink_to("/proc/self/mem")  # nothing can be read at its beginning
    long = "n" * 300 + ".png"
    refused = {
        "loop.png": "Too many levels of symbolic links",
        "loop/photo.png": "Too many levels of symbolic links",
        "unmapped.png": "Input/output error",
        long: "File name too long",
    }
    with (root / "list.csv").open("a") as file:
        file.writelines(f"{path},0\n" for path in refused)
    generate(config_of(root, follow_links=True), out, max_error_rate=0.7)
    errors = {error["path"]: error for error in MapDataset(out).errors().to_pylist()}
    assert errors.keys() == refused.keys()
    for path, why in refused.items():
        assert (errors[path]["kind"], why in errors[path]["message"]) == ("unreadable", True)
    assert MapDataset(out).images()["image_id"].to_pylist() == ["photo00", "photo01"]


def test_one_bad_photo_never_fails_a_run_unless_the_rate_is_zero(tmp_path):
    root = listed(tmp_path / "set", 4)
    spoil(root / "photo01.png", "empty")
    summary = generate(config_of(root), str(tmp_path / "out"))
    assert (summary.images, summary.errors) == (3, 1)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    with pytest.raises(TooManyErrorsError, match="1 of 4 images failed"):
        generate(config_of(root), str(tmp_path / "strict"), max_error_rate=0.0)
    with pytest.raises(TooManyErrorsError, match="1 of 4 images failed"):
        generate(config_of(root), str(tmp_path / "out"), max_error_rate=0.0)


@pytest.mark.parametrize(("bad", "rate", "fails"), [(2, 0.2, False), (3, 0.2, True)])
def test_the_rate_is_the_share_that_may_fail(tmp_path, bad, rate, fails):
    root = listed(tmp_path / "set", 10)
    for i in range(bad):
        spoil(root / f"photo{i:02}.png", "empty")
    config = config_of(root, methods=["gradient"], layers=["late"], roles=["top"])
    if fails:
        with pytest.raises(TooManyErrorsError):
            generate(config, str(tmp_path / "out"), max_error_rate=rate)
    else:
        assert generate(config, str(tmp_path / "out"), max_error_rate=rate).errors == bad


def test_a_shard_whose_photos_are_all_bad_is_committed_with_its_errors(tmp_path):
    root = listed(tmp_path / "set", 8)
    for i in range(4):
        spoil(root / f"photo{i:02}.png", "empty")
    config = config_of(root, format=["parquet", "webdataset"])
    summary = generate(config, str(tmp_path / "out"), max_error_rate=1.0)
    assert (summary.images, summary.errors) == (4, 4)
    assert MapDataset(str(tmp_path / "out")).maps().num_rows == 4 * 27


def test_a_bad_photo_leaves_the_maps_of_the_others_as_they_are(tmp_path):
    root = listed(tmp_path / "set", 4)
    config = config_of(root, map_dtype="float32")
    generate(config, str(tmp_path / "good"))
    bad = Path(shutil.copytree(root, tmp_path / "bad"))
    spoil(bad / "photo02.png", "truncated")
    generate(config_of(bad, map_dtype="float32"), str(tmp_path / "one_less"))
    good = MapDataset(str(tmp_path / "good")).maps().to_pylist()
    kept = [row for row in good if row["image_id"] != "photo02"]
    found = MapDataset(str(tmp_path / "one_less")).maps().to_pylist()
    assert len(found) == len(kept) == 81
    for one, other in zip(found, kept, strict=True):
        assert {k: one[k] for k in ("image_id", "role", "target")} == {
            k: other[k] for k in ("image_id", "role", "target")
        }
        np.testing.assert_allclose(one["map"], other["map"], rtol=1e-5, atol=1e-8)


def test_odd_but_good_photos_give_maps(tmp_path):
    root = listed(tmp_path / "set", 1)
    photo = Image.open(root / "photo00.png")
    grey = np.asarray(photo.convert("L"))
    listed_rows = ["photo00.png,0"]

    def add(name: str, image: Image.Image, **options: object) -> None:
        image.save(root / name, **options)
        listed_rows.append(f"{name},0")

    add("cmyk.jpg", photo.convert("CMYK"))
    add("grey.png", photo.convert("L"))
    add("grey16.png", Image.fromarray(grey.astype(np.uint16) * 257))
    add("palette.png", photo.convert("P"))
    add("one_bit.png", photo.convert("1"))
    add("alpha.png", photo.convert("RGBA"))
    add("grey_alpha.png", photo.convert("LA"))
    turned = Image.Exif()
    turned[0x0112] = 6
    add("turned.jpg", photo, exif=turned)
    add("webp.webp", photo)
    add("animation.gif", photo.convert("P"), save_all=True, append_images=[photo.convert("P")])
    (root / "list.csv").write_text("path,label\n" + "\n".join(listed_rows) + "\n")

    summary = generate(
        config_of(root, preprocess="shortest_side"), str(tmp_path / "out"), max_error_rate=0.0
    )
    assert (summary.images, summary.maps) == (11, 11 * 27)
    images = {
        row["image_id"]: row for row in MapDataset(str(tmp_path / "out")).images().to_pylist()
    }
    width, height = photo.size
    assert (images["turned"]["width"], images["turned"]["height"]) == (height, width)
    assert (images["turned"]["input_width"], images["turned"]["input_height"]) == (32, 38)
    for name in images.keys() - {"turned"}:
        assert (images[name]["width"], images[name]["height"]) == (width, height)
        assert (images[name]["input_width"], images[name]["input_height"]) == (38, 32)
