"""WebDataset shards, read by webdataset and tarfile alone."""

import tarfile
from glob import glob
from urllib.parse import unquote

import made_shards
import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from pipeline.files import HashedFile
from pipeline.store.tar_maps import key_of, member_of, misfit, write_tar


def tars(run: str) -> list[str]:
    return sorted(glob(f"{run}/tars/*.tar"))


def test_webdataset_and_a_data_loader_read_every_map(run):
    written = {
        (image.image_id, m.key.role, m.key.class_name, m.key.method, m.key.layer): m
        for index in (0, 1)
        for image, records in made_shards.shard_contents(index)[0]
        for m in records
    }
    dataset = webdataset.WebDataset(tars(run), shardshuffle=False).decode()
    seen = 0
    for sample in DataLoader(dataset, batch_size=None, num_workers=2):
        facts = sample["json"]
        assert unquote(sample["__key__"]) == facts["image_id"]
        for layer, of_layer in facts["layers"].items():
            array = np.asarray(sample[of_layer["member"]])
            assert array.dtype == np.float16
            for t, target in enumerate(facts["targets"]):
                for m, method in enumerate(of_layer["methods"]):
                    key = (facts["image_id"], target["role"], target["class_name"], method, layer)
                    scale = of_layer["map_scale"][0][t][m]
                    np.testing.assert_allclose(
                        array[0, t, m].astype(np.float32) * scale,
                        written[key].values,
                        rtol=2**-11,
                        atol=scale * 2**-25,
                    )
                    assert facts["relu_on_read"][method] == written[key].relu_on_read
                    assert target["logit"] == [np.float32(written[key].logit)]
                    seen += 1
    assert seen == len(written)


def test_every_sample_has_the_same_members(run):
    dataset = webdataset.WebDataset(tars(run), shardshuffle=False)
    members = [{name for name in sample if not name.startswith("__")} for sample in dataset]
    assert members == [{"json", "layer4.npy", "mixed-layer3.npy"}] * 4


def test_an_image_without_maps_has_no_sample(run):
    with tarfile.open(tars(run)[0]) as tar:
        keys = {name.split(".")[0] for name in tar.getnames()}
    assert keys == {"z/first%2Ev2", "a%25odd"}


def test_no_member_tells_when_or_by_whom_it_was_written(run):
    for path in tars(run):
        with tarfile.open(path, "r:") as tar:  # "r:" fails on a compressed tar
            facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
        assert facts == {(0, 0, 0, "bigdata", "bigdata", 0o444)}


@pytest.mark.parametrize("image_id", ["a.b", "a%2Eb", "..", "__x__/y", "größe", "n/" + "k" * 300])
def test_any_image_id_comes_back_from_its_key(tmp_path, image_id):
    path = str(tmp_path / "one.tar")
    with HashedFile(path) as file:
        write_tar(file, [(made_shards.image(image_id), made_shards.maps(0))], "float16", {})
    (sample,) = webdataset.WebDataset(path, shardshuffle=False).decode()
    assert unquote(sample["__key__"]) == sample["json"]["image_id"] == image_id


def test_two_images_never_share_a_key():
    ids = ["a.b", "a_b", "a%2Eb", "a%b", "_a", "%5Fa", "a"]
    assert len({key_of(image_id) for image_id in ids}) == len(ids)


def test_layers_that_would_share_a_member_are_refused():
    assert [member_of("layer4.0"), member_of("input")] == ["layer4-0.npy", "input.npy"]
    assert misfit(["layer4.0", "input"], ()) == ""
    assert "'Block' and 'block' would both be block.npy" in misfit(["Block", "block"], ())
    own = "cascade(x,own_classes)"
    assert f"{own} has classes of its own" in misfit(["block"], [own])


def test_a_missing_map_is_refused_by_name(tmp_path):
    records = made_shards.maps(0)
    gone = records.pop()
    with (
        HashedFile(str(tmp_path / "one.tar")) as file,
        pytest.raises(ValueError, match=f"image one, layer {gone.key.layer}.*{gone.key.method}"),
    ):
        write_tar(file, [(made_shards.image("one"), records)], "float16", {})


def test_layers_may_have_different_methods(tmp_path):
    records = [
        m
        for m in made_shards.maps(0)
        if (m.key.method, m.key.layer) != ("normgrad", "Mixed.layer3")
    ]
    path = str(tmp_path / "one.tar")
    with HashedFile(path) as file:
        write_tar(file, [(made_shards.image("one"), records)], "float16", {})
    (sample,) = webdataset.WebDataset(path, shardshuffle=False).decode()
    assert sample["mixed-layer3.npy"].shape == (1, 4, 1, 5, 7)
    assert sample["layer4.npy"].shape == (1, 4, 2, 3, 3)
