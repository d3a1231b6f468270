"""What the README promises of the demo, measured on a demo that has been run.

uv run backlight demo OUT && uv run pytest tests/pipeline/demo/test_findings.py --demo OUT
"""

from pathlib import Path

import pytest
import torch

from pipeline.demo import cnn
from pipeline.demo.run import LAYERS
from pipeline.store import MapDataset


@pytest.fixture(scope="module")
def demo(request: pytest.FixtureRequest) -> Path:
    out = request.config.getoption("--demo")
    if out is None:
        pytest.skip("no demo to measure: run `backlight demo OUT` and pass --demo OUT")
    return Path(out)


def values(demo: Path, metric: str, statistic: str, role: str, method: str) -> dict[str, float]:
    """One statistic of a method by layer, over all classes."""
    wanted = {"metric": metric, "statistic": statistic, "role": role, "method": method}
    rows = MapDataset(str(demo / "maps")).statistics().to_pylist()
    return {
        row["layer"]: row["value"]
        for row in rows
        if not row["class_name"] and row.items() >= wanted.items()
    }


def test_the_network_reaches_the_accuracy_that_saliency_needs(demo: Path) -> None:
    model = cnn.small_cnn()
    model.load_state_dict(torch.load(demo / "small_cnn.pth", weights_only=True))
    reached = cnn.accuracy(model, demo / "photos")
    assert reached.top1 > 0.85
    assert reached.mean_average_precision > 0.8


def test_grad_cam_localises_at_late_layers_and_selective_normgrad_at_all(demo: Path) -> None:
    def pointing(method: str) -> dict[str, float]:
        return values(demo, "pointing_game", "class_mean", "label", method)

    grad_cam, selective = pointing("grad_cam"), pointing("normgrad_selective")
    best = max(grad_cam.values())
    assert best > 0.75
    assert max(grad_cam[layer] for layer in LAYERS[:3]) < best - 0.15
    assert min(selective[layer] for layer in LAYERS) > best - 0.12


def test_guided_backprop_hardly_changes_with_the_class(demo: Path) -> None:
    def correlation(method: str) -> float:
        return values(demo, "class_sensitivity", "mean", "top-least", method)["input"]

    assert correlation("guided_backprop_sum") > 0.8
    assert correlation("guided_backprop_sum") > correlation("gradient_sum") + 0.3
