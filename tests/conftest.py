"""What every test shares: one torch thread, the folder of real photos and weights, --spark."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spark",
        nargs="?",
        const="one",
        choices=("one", "all"),
        help="bring up a Spark cluster here: one road to it, or all roads and the kills (minutes)",
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, annotations and ImageNet weights; the test is skipped where they are absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BACKLIGHT_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real photos and weights at {path}; set BACKLIGHT_DATA to their folder")
    return path
