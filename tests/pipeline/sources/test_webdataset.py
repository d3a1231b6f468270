import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tiny_network import draw_photo, run_config

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.example import Example, Region
from pipeline.generate import generate
from pipeline.notes import Notes
from pipeline.photo_bytes import read_photo
from pipeline.sources import read_examples
from pipeline.sources.columns import NO_COLUMNS, Columns
from pipeline.store import MapDataset
from pipeline.store.verify import verify

Members = dict[str, bytes]

pytestmark = pytest.mark.usefixtures("without_beam")


def tar(path: Path, members: Members, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def read(
    root: Path | str, split: str | None = None, columns: Columns = NO_COLUMNS
) -> tuple[list[Example], list[str]]:
    notes = Notes()
    examples = read_examples("webdataset", root, split=split, notes=notes, columns=columns)
    return list(examples), [str(note) for note in notes.all()]


def labels(examples: list[Example]) -> dict[str, tuple[str, ...]]:
    return {example.image_id: example.labels for example in examples}


def content(root: Path, example: Example) -> bytes:
    return read_photo(os.path.join(root, example.path))


def test_a_sample_is_a_photo_and_its_class_under_its_key(tmp_path: Path) -> None:
    boxes = {"label": "cow", "boxes": [{"label": "cow", "box": [1, 2, 3, 4]}]}
    members = {
        "a.jpg": b"first",
        "a.cls": b"7",
        "dir/b.x.PNG": b"second",
        "dir/b.json": json.dumps({"labels": ["dog", 3]}).encode(),
        "c.json": json.dumps(boxes).encode(),
        "c.webp": b"third",
        "d.jpeg": b"fourth",
    }
    tar(tmp_path / "0.tar", members)
    examples, notes = read(tmp_path)
    assert labels(examples) == {"a": ("7",), "dir__b": ("dog", "3"), "c": ("cow",), "d": ()}
    assert examples[2].regions == (Region("cow", (1, 2, 3, 4)),)
    assert [content(tmp_path, e) for e in examples] == [b"first", b"second", b"third", b"fourth"]
    assert notes == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_says_in_every_format(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "n" * 60
    names = ["short.jpg", f"{long}.jpg", "caf\u00e9.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names.append("x" * 180 + ".jpg")
    path = tar(tmp_path / "0.tar", {n: n.encode() for n in names}, format=format)
    examples, notes = read(tmp_path)
    with tarfile.open(path) as file:
        places = [f"0.tar#{m.offset_data}+{m.size}" for m in file]
    assert [example.path for example in examples] == places
    assert [content(tmp_path, e).decode() for e in examples] == names
    assert notes == []


def test_shards_of_the_webdataset_library_are_read(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=2, verbose=0) as writer:
        for i in range(5):
            writer.write({"__key__": f"{i:03}", "jpg": b"%d" % i, "cls": i, "json": {"n": i}})
    examples, notes = read(tmp_path)
    reference = webdataset.WebDataset(
        [str(path) for path in sorted(tmp_path.glob("*.tar"))], shardshuffle=False
    )
    for example, sample in zip(examples, reference, strict=True):
        assert example.image_id == sample["__key__"]
        assert content(tmp_path, example) == sample["jpg"]
        assert example.labels == (sample["cls"].decode(),)
    assert notes == []


def test_shards_are_chosen_by_folder_name_wildcard_and_braces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train-000", "train-001", "train-002", "val-000"):
        tar(tmp_path / f"set/{name}.tar", {f"{name}.jpg": b"x"})
    monkeypatch.chdir(tmp_path)
    train = ["train-000", "train-001", "train-002"]
    for root, split, chosen in (
        ("set", None, [*train, "val-000"]),
        ("set/", "train", train),
        ("set", "train-{001..002}.tar", train[1:]),
        ("set", "val-*.tar", ["val-000"]),
        (f"{tmp_path}/set/train-{{000..002}}.tar", None, train),
        ("set/{val-000,train-001}.tar", None, ["val-000", "train-001"]),
        ("set/train-*.tar", None, train),
        ("set/val-000.tar", None, ["val-000"]),
        ("{set,set}/val-000.tar", None, ["val-000"]),
    ):
        examples, _ = read(root, split)
        assert [example.image_id for example in examples] == chosen, (root, split)
    with pytest.raises(SettingsError, match=r"1 of the 4 shards .*: train-003\.tar"):
        read("set/train-{000..003}.tar")
    with pytest.raises(SettingsError, match=r"no shard of split 'test' .*train-000"):
        read("set", "test")
    with pytest.raises(SettingsError, match="leave out --split"):
        read("set/*.tar", "train")
    with pytest.raises(SettingsError, match="braces"):
        read("set/train-{000..002.tar")


@pytest.mark.parametrize("name", ["set[1]", "{set}", "set.tar"])
def test_a_folder_is_itself_whatever_its_name_has(tmp_path: Path, name: str) -> None:
    tar(tmp_path / name / "train-0.tar", {"a.jpg": b"x"})
    for split in (None, "train", "*.tar"):
        (example,), _ = read(tmp_path / name, split)
        assert content(tmp_path / name, example) == b"x"


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.jpg": b"x"}).rename(tmp_path / "0.tar.gz")
    with pytest.raises(SettingsError, match=r"compressed .*unpack them to .tar"):
        read(tmp_path)


def test_keys_that_two_shards_share_have_ids_with_the_shard(tmp_path: Path) -> None:
    tar(tmp_path / "s/0.tar", {"a.jpg": b"x", "b.jpg": b"y"})
    tar(tmp_path / "s/1.tar", {"a.jpg": b"z"})
    examples, notes = read(tmp_path)
    assert [example.image_id for example in examples] == ["s__0__a", "s__0__b", "s__1__a"]
    assert "ids begin with its name" in notes[0]


def test_what_repeats_or_is_no_part_of_a_sample_is_noted(tmp_path: Path) -> None:
    members = {
        "a.jpg": b"x",
        "a.seg.png": b"mask",
        "a.txt": b"a caption",
        "b.jpg": b"x",
        "b.png": b"y",
        "c.cls": b"1",
        "._d.jpg": b"hidden",
    }
    path = tar(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as file:
        for name in ("e.jpg", "e.jpg", "f.jpg", "e.jpg"):
            file.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("g.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        file.addfile(link)
    examples, notes = read(tmp_path)
    assert [content(tmp_path, e) for e in examples] == [b"x", b"x", b"", b""]
    assert sorted(notes) == [
        "1 member left out: a link, or no plain file (0.tar: g.jpg)",
        "1 member left out: hidden (0.tar: ._d.jpg)",
        "1 member left out: its sample has one already (0.tar: e.jpg)",
        "1 member not read: .png (0.tar: b.png)",
        "1 member not read: .seg.png (0.tar: a.seg.png)",
        "1 member not read: .txt (0.tar: a.txt)",
        "1 sample left out: its shard has the key already (0.tar: e)",
        "1 sample left out: no photo (0.tar: c)",
        "1 sample with several photos, of which the first is taken; --image-column names another "
        "(0.tar: b: jpg, png)",
    ]
    (other,) = read(tmp_path, columns=Columns(image="png"))[0]
    assert content(tmp_path, other) == b"y"


@pytest.mark.parametrize("labels", ['{"label": [0, 1, 0]}', '{"labels": [0, 1, 0]}', "[0, 1, 0]"])
def test_flags_of_classes_are_no_labels(tmp_path: Path, labels: str) -> None:
    tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.json": labels.encode()})
    with pytest.raises(SettingsError, match=r"each list of labels is 3 numbers that are 0 or 1"):
        read_examples("webdataset", tmp_path)


def test_the_label_column_names_a_member_or_a_key_of_json(tmp_path: Path) -> None:
    sample = {"a.jpg": b"x", "a.cls": b"7", "a.txt": b"tabby cat", "a.json": b'{"kind": "cat"}'}
    tar(tmp_path / "0.tar", sample)
    text = ("tabby cat",)
    wanted = {None: ("7",), "txt": text, ".TXT": text, "kind": ("cat",), "cls": ("7",)}
    for label, expected in wanted.items():
        assert read(tmp_path, columns=Columns(label=label))[0][0].labels == expected
    assert read(tmp_path, columns=Columns(label="none"))[0][0].labels == ()
    with pytest.raises(SettingsError, match=r"no sample .* has the label 'absent'"):
        read(tmp_path, columns=Columns(label="absent"))
    tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.json": b'{"target": 3}'})
    with pytest.raises(
        SettingsError, match=r"target of json looks like labels.*--label-column targ"
    ):
        read(tmp_path)


def numpy_file(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value))
    return file.getvalue()


@pytest.mark.parametrize(
    ("written", "label"),
    [
        (numpy_file(3), "3"),
        (numpy_file([7]), "7"),
        (numpy_file("dog"), "dog"),
        (b"\xef\xbb\xbfdog\n", "dog"),
        (numpy_file([1, 2]), None),
        (numpy_file(3)[:40], None),
        ((3).to_bytes(8, "little"), None),
        ("caf\u00e9".encode("latin-1"), None),
    ],
)
def test_a_class_is_text_or_an_array_of_one_number(
    tmp_path: Path, written: bytes, label: str | None
) -> None:
    tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.cls": written, "b.jpg": b"y", "b.cls": b"1"})
    (first, second), _ = read(tmp_path)
    assert first.labels == (() if label is None else (label,))
    assert ("0.tar: a: its labels cannot be read" in first.problem) is (label is None)
    assert second.labels == ("1",)


def test_a_compressed_shard_that_is_named_as_another_is_said(tmp_path: Path) -> None:
    tar(tmp_path / "1.tar", {"a.jpg": b"x"})
    packed = gzip.compress((tmp_path / "1.tar").read_bytes())
    (tmp_path / "0.tar").write_bytes(packed)
    examples, notes = read(tmp_path)
    assert len(examples) == 1
    assert notes == ["1 shard left out: it is compressed; unpack it (0.tar)"]


def test_splits_that_are_read_together_are_said(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "val-0"):
        tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"x"})
    examples, notes = read(tmp_path)
    assert len(examples) == 3
    assert notes == ["3 shards of train, val read as one set, since no --split is given"]
    assert read(tmp_path, "train")[1] == []


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", b'{"label": [1.5]}'])
def test_labels_that_cannot_be_read_cost_their_own_sample(tmp_path: Path, bad: bytes) -> None:
    tar(
        tmp_path / "0.tar", {"a.jpg": b"x", "a.json": bad, "b.jpg": b"y", "b.json": b'{"label": 1}'}
    )
    (first, second), _ = read(tmp_path)
    assert "0.tar: a: its labels cannot be read" in first.problem
    assert (second.problem, second.labels) == ("", ("1",))


def test_a_shard_that_is_broken_at_its_end_keeps_the_rest(tmp_path: Path) -> None:
    members = {f"{i}.jpg": b"x" * 2000 for i in range(3)}
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "whole.tar").unlink()
    size = 512 + 2048
    for kept, cut, said in (
        (2, whole[: 3 * size - 900], "the shard ends within it (0.tar: 2.jpg)"),
        (2, whole[: 2 * size], "without an end mark"),
        (2, whole[: 2 * size + 100], "0.tar, byte 5120"),
        (2, whole[: 2 * size] + b"junk" * 500, "no header of a member (0.tar, byte 5120)"),
        (1, whole[:size] + bytes(1024) + whole[size:], "its end mark, after which more follows"),
    ):
        (tmp_path / "0.tar").write_bytes(cut)
        examples, notes = read(tmp_path)
        assert len(examples) == kept
        assert len(notes) == 1
        assert said in notes[0]


def test_a_run_on_shards_equals_the_run_on_the_files(tmp_path: Path) -> None:
    members: Members = {}
    rows = []
    for i in range(5):
        draw_photo(tmp_path / f"photos/{i}.png", seed=i)
        members |= {f"{i}.png": (tmp_path / f"photos/{i}.png").read_bytes(), f"{i}.cls": b"%d" % i}
        rows.append(f"{i}.png,{i}\n")
    members["4.png"] = b"broken"
    tar(tmp_path / "set/0.tar", dict(list(members.items())[:6]))
    tar(tmp_path / "set/1.tar", dict(list(members.items())[6:]))
    (tmp_path / "photos/list.csv").write_text("path,label\n" + "".join(rows))
    (tmp_path / "photos/4.png").write_bytes(b"broken")
    small = {"layers": ["late"], "methods": ["gradient"]}
    config = run_config(Path(f"{tmp_path}/set/{{0..1}}.tar"), source="webdataset", **small)
    assert generate(config, str(tmp_path / "out")).errors == 1
    table = run_config(tmp_path / "photos", source="table", annotations="list.csv", **small)
    generate(table, str(tmp_path / "plain"))
    found, reference = (MapDataset(str(tmp_path / name)).maps() for name in ("out", "plain"))
    assert found["image_id"] == reference["image_id"]
    assert found["map"] == reference["map"]
    assert generate(config, str(tmp_path / "out")).already_complete
    evaluate(str(tmp_path / "out"), replicates=10)
    assert verify(str(tmp_path / "out")) == []
