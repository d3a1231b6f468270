"""The demo's CNN learns; a seed decides its weights, which load without pickled code."""

from pathlib import Path

import pytest
import torch

from pipeline.demo import cnn
from pipeline.demo.photos import CLASSES, write_photos


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("few")
    write_photos(root, 16, seed=3, sides=(100, 130))
    return root


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = (cnn.Phase(48, 2, 8, 1e-2), cnn.Phase(cnn.INPUT_SIZE, 1, 8, 4e-3))
    monkeypatch.setattr(cnn, "PHASES", phases)


def test_stages_have_the_promised_strides() -> None:
    model = cnn.small_cnn().eval()
    x = torch.zeros(2, 3, 128, 128)
    for name, stride in zip(cnn.STAGES, (2, 4, 8, 16, 16), strict=True):
        x = model.get_submodule(name)(x)
        assert x.shape[2:] == (128 // stride, 128 // stride)
    assert model(torch.zeros(1, 3, 160, 96)).shape == (1, len(CLASSES))


@pytest.mark.usefixtures("short_training")
def test_the_seed_decides_the_weights(few_photos: Path) -> None:
    first, again, other = (cnn.train(few_photos, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stage3.conv1.weight"], other["stage3.conv1.weight"])


@pytest.mark.usefixtures("short_training")
def test_training_leaves_the_random_state_and_the_threads_alone(few_photos: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    steps: list[tuple[int, int]] = []
    cnn.train(few_photos, 0, progress=lambda done, total: steps.append((done, total)))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert steps == [(step, 6) for step in range(1, 7)]


@pytest.mark.usefixtures("short_training")
def test_weights_load_without_pickled_code(few_photos: Path, tmp_path: Path) -> None:
    weights = cnn.train(few_photos, 0)
    torch.save(weights, tmp_path / "cnn.pt")
    model = cnn.small_cnn()
    model.load_state_dict(torch.load(tmp_path / "cnn.pt", weights_only=True))
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])


def test_accuracy_of_scores_known_by_hand(few_photos: Path) -> None:
    """A model whose scores are the negative labels ranks the photos of a class last."""
    labels = cnn.read_photos(few_photos).labels

    class Oracle(torch.nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.sign * labels

    assert cnn.accuracy(Oracle(1), few_photos) == cnn.Accuracy(1.0, 1.0)
    backwards = cnn.accuracy(Oracle(-1), few_photos)
    assert backwards.top1 == 0.0
    assert backwards.mean_average_precision < 0.5


@pytest.mark.slow
def test_a_short_training_on_few_photos_is_far_above_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`test_findings.py` measures what the demo itself reaches."""
    short = (cnn.Phase(48, 30, 32, 1e-2), cnn.Phase(cnn.INPUT_SIZE, 4, 16, 4e-3))
    monkeypatch.setattr(cnn, "PHASES", short)
    write_photos(tmp_path / "train", 160, 1, cnn.TRAINING_SIDES)
    write_photos(tmp_path / "photos", 40, 0, cnn.TRAINING_SIDES)
    torch.manual_seed(1)  # or chance would depend on the tests before this one
    model = cnn.small_cnn()
    chance = cnn.accuracy(model, tmp_path / "photos").mean_average_precision
    model.load_state_dict(cnn.train(tmp_path / "train", 1))
    reached = cnn.accuracy(model, tmp_path / "photos").mean_average_precision
    assert chance < 0.35
    assert reached > 0.5
