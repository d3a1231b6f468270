"""Whether cores keep up with a GPU, beside figures that are worked out by hand."""

import pytest

from pipeline.estimate.costs import GpuCosts
from pipeline.estimate.gpu_costs import gpu_costs

# ResNet-50 with the paper's grid: 527 GFLOP and 3 core seconds per photo; 67 TFLOP/s · 0.25.
PAPER = {"images": 1000, "flops": 527e12, "cpu_seconds": 3000.0, "share": 0.25, "hours": 0.05}


def test_twelve_cores_starve_an_h100():
    found = gpu_costs("H100-SXM", cores=12, price=36.0, **PAPER)
    assert found.images_per_second == pytest.approx(31.783, rel=1e-4)  # 16.75e12 / 527e9
    assert found.cores == 96  # 31.783 · 3 = 95.3
    assert found.waits == pytest.approx(1 - 4 / 31.783, rel=1e-4)  # 12 cores: 4 photos per second
    assert found.hours == pytest.approx(250 / 3600)  # 3000 / 12
    assert found.by_turns_hours == pytest.approx((31.463 + 3000) / 3600, rel=1e-4)
    assert found.price == pytest.approx(2.5)  # 36 · 250 / 3600
    assert found.machines == 2  # 250 s of 180 s each


@pytest.mark.parametrize("cores", [96, 200])
def test_with_as_many_cores_as_it_needs_a_gpu_never_waits(cores):
    found = gpu_costs("H100-SXM", cores=cores, **PAPER)
    assert found.waits == 0
    assert found.hours == pytest.approx(31.463 / 3600, rel=1e-4)  # 527e12 / 16.75e12
    assert (found.cores, found.machines, found.price) == (96, 1, None)


def test_a_core_less_than_it_needs_and_it_waits():
    assert 0 < gpu_costs("H100-SXM", cores=95, **PAPER).waits < 0.01


def test_a_slow_gpu_needs_one_core_at_least():
    found = gpu_costs("T4", images=1, flops=8.1e14, cpu_seconds=1.0, share=1.0, cores=1, hours=24)
    assert (found.cores, found.waits) == (1, 0)
    assert found.hours == pytest.approx(100 / 3600)


def test_half_a_core_takes_twice_as_long_also_by_turns():
    found = gpu_costs("T4", images=1, flops=8.1e12, cpu_seconds=3.0, share=1.0, cores=0.5, hours=24)
    assert found.hours == pytest.approx(6 / 3600)
    assert found.by_turns_hours == pytest.approx(7 / 3600)


def test_where_nothing_is_left_no_gpu_waits():
    found = gpu_costs(
        "T4", images=0, flops=0.0, cpu_seconds=0.0, share=0.25, cores=2, hours=24, price=1.0
    )
    assert found == GpuCosts("T4", 0.0, 0, 0.0, 0.0, 0.0, 0, 0.0)


def test_where_maps_are_only_scored_the_cores_alone_take_time():
    found = gpu_costs(
        "T4", images=0, flops=0.0, cpu_seconds=7200.0, share=0.25, cores=2, hours=24, price=3.0
    )
    assert found == GpuCosts("T4", 0.0, 0, 0.0, 1.0, 2.0, 1, 3.0)
