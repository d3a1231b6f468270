"""Weights or photos that are replaced while a run goes on are an error that names the file."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from output_hashes import hashes
from tiny_network import draw_photo, draw_set, run_config, tiny

from pipeline.errors import InputChangedError
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.store.verify import verify


def save_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(tiny().state_dict(), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_set(tmp_path / "set", 6)


def replace_photo(path: Path) -> None:
    draw_photo(path, seed=99)


def lose(out: Path, *shards: int) -> None:
    """As if the run had been killed before these shards were committed."""
    for index in shards:
        (out / f"_meta/shards/0000{index}.json").unlink()
        for folder in ("maps", "images", "errors"):
            (out / folder / f"{folder}-0000{index}-of-00003.parquet").unlink()
    (out / "_SUCCESS").unlink()


def test_weights_replaced_after_the_plan_was_made_are_named(root, tmp_path):
    weights, out = tmp_path / "weights.pth", tmp_path / "out"
    save_weights(weights, 0)
    config = run_config(root, weights=str(weights))
    with pytest.raises(InputChangedError, match=rf"the weights {weights}, .* are not those"):
        generate(config, str(out), on_start=lambda plan, before: save_weights(weights, 1))
    assert not list((out / "_meta" / "shards").glob("*"))
    save_weights(weights, 0)
    assert generate(config, str(out)).images == 6


def test_the_hash_of_every_photo_is_stored(root, tmp_path):
    out = tmp_path / "out"
    generate(run_config(root, limit=3), str(out))
    for row in MapDataset(str(out)).images().select(["path", "photo_sha256"]).to_pylist():
        content = (root / row["path"]).read_bytes()
        assert row["photo_sha256"] == hashlib.sha256(content).hexdigest()


def test_a_photo_replaced_before_its_shard_is_made_is_stored_with_the_hash_of_what_was_explained(
    root, tmp_path
):
    out, replaced = tmp_path / "out", tmp_path / "replaced"
    config = run_config(root, limit=2)
    (photo,) = root.rglob("photo0.png")
    generate(config, str(out), on_start=lambda plan, before: replace_photo(photo))
    row = MapDataset(str(out)).images().to_pylist()[0]
    assert row["photo_sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert verify(str(out)) == []
    generate(config, str(replaced))
    assert hashes(out) == hashes(replaced)


def test_photos_replaced_between_two_runs_are_named_before_work(root, tmp_path):
    out = tmp_path / "out"
    config = run_config(root)
    generate(config, str(out))
    lose(out, 1)
    kept = hashes(out)
    for path in root.rglob("*.png"):
        replace_photo(path)
    with pytest.raises(InputChangedError, match=r"the photo 0/photo0\.png is not the one"):
        generate(config, str(out))
    assert hashes(out) == kept


def test_a_shard_made_anew_names_the_photo_that_is_another(root, tmp_path):
    out = tmp_path / "out"
    config = run_config(root)
    generate(config, str(out))
    (path,) = MapDataset(str(out)).images().slice(2, 1)["path"].to_pylist()
    (out / "_meta/shards/00001.json").unlink()
    content = (root / path).read_bytes()
    replace_photo(root / path)
    with pytest.raises(InputChangedError, match=rf"the photo {path} is not the one"):
        generate(config, str(out))
    (root / path).write_bytes(b"")
    with pytest.raises(
        InputChangedError, match=rf"the photo {path}, .* cannot be used any more \(empty"
    ):
        generate(config, str(out))
    (root / path).write_bytes(content)
    generate(config, str(out))
    assert verify(str(out)) == []


def test_failed_images_are_tried_again_when_asked(root, tmp_path):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    config = run_config(root, evaluate=["class_sensitivity"])
    generate(config, str(undisturbed))
    photo = next(iter(sorted(root.rglob("*.png"))))
    content = photo.read_bytes()
    photo.write_bytes(content[:80])
    generate(config, str(out), max_error_rate=0.5)
    before = {path: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    photo.write_bytes(content)
    assert generate(config, str(out)).already_complete
    summary = generate(config, str(out), retry_errors=True)
    assert (summary.retried, summary.errors, summary.images) == (1, 0, 6)
    again = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert again == {"maps-00000-of-00003.parquet"}
    assert hashes(out) == hashes(undisturbed)
    assert generate(config, str(out), retry_errors=True).retried == 0


def test_what_fails_is_told_without_the_folder_of_the_set(root, tmp_path):
    (root / "0" / "photo0.png").write_bytes(b"")
    (root / "1" / "photo1.png").unlink()
    (root / "1" / "photo1.png").mkdir()
    generate(run_config(root), str(tmp_path / "out"), max_error_rate=1)
    told = MapDataset(str(tmp_path / "out")).errors()
    assert told.num_rows
    assert str(tmp_path) not in json.dumps(told.to_pylist())


def test_the_identity_and_the_card_hold_no_path_of_this_machine(root, tmp_path):
    weights, out = tmp_path / "weights.pth", tmp_path / "out"
    save_weights(weights, 0)
    generate(run_config(root, weights=str(weights), limit=2), str(out))
    stored = json.loads((out / "_meta/plan.json").read_text())
    assert str(tmp_path) in stored["settings"]["root"]
    assert str(tmp_path) in stored["settings"]["weights"]
    del stored["settings"]["root"], stored["settings"]["weights"]
    assert str(tmp_path) not in json.dumps(stored)
    for path in ("README.md", "_meta/dataset_info.json", "_SUCCESS", "_meta/shards/00000.json"):
        assert str(tmp_path) not in (out / path).read_text()
    shutil.rmtree(out)
