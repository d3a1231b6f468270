"""Models by name, with their weights."""

import pytest
import torch
from tiny_network import tiny

from pipeline.model.models import ModelSpec


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (
        ModelSpec("tiny_network:tiny", f"random:{seed}").load().state_dict() for seed in (3, 3, 4)
    )
    assert torch.get_rng_state().equal(before)
    assert all(one[key].equal(same[key]) for key in one)
    assert not one["head.weight"].equal(other["head.weight"])


def test_a_loaded_model_is_in_eval_mode_with_the_weights_of_the_file(tmp_path):
    torch.manual_seed(1)
    state = tiny(4).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    model = ModelSpec("tiny_network:tiny", str(tmp_path / "weights.pth"), num_classes=4).load()
    assert not any(module.training for module in model.modules())
    assert all(model.state_dict()[key].equal(state[key]) for key in state)


def test_the_digest_is_of_the_content_of_the_weights_not_of_their_place(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    torch.manual_seed(5)
    torch.save(tiny().state_dict(), tmp_path / "c.pth")
    a, b, c = (ModelSpec("tiny_network:tiny", str(tmp_path / f"{n}.pth")).digest() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2", "DEFAULT"])
def test_the_names_of_torchvisions_weights_are_known_without_a_download(weights, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    spec = ModelSpec("resnet50", weights)
    assert spec.located() == spec
    assert len(spec.digest()) == 16
    assert spec.digest() != ModelSpec("resnet50", "random:0").digest()


def test_real_weights_load(shared_data):
    path = shared_data / "weights" / "squeezenet1_1-imagenet.pth"
    model = ModelSpec("squeezenet1_1", str(path)).load()
    state = torch.load(path, weights_only=True)
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())
