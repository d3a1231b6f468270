"""The memory of planning, at a small size; `scale_simulation.py` measures the full size."""

from pathlib import Path

import pytest
from scale_simulation import measure, steps, write_set, write_settings

IMAGES = 1_000, 6_000


@pytest.mark.slow
def test_planning_takes_less_than_a_kilobyte_per_image(tmp_path: Path) -> None:
    own = []
    for images in IMAGES:
        folder = tmp_path / str(images)
        write_set(folder / "set", images)
        settings = write_settings(folder, images, images // 100)
        own.append(measure(steps(folder, settings, 1)["plan"]).main.own)
        assert (folder / "out/_meta/manifest.parquet").is_file()
    assert own[1] - own[0] < 1000 * (IMAGES[1] - IMAGES[0])
