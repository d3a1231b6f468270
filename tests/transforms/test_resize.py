"""Upsampling, smoothing and placing, against hand-computed values, NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from transforms.resize import place, smooth, upsample, view_pixels


def random_maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tent_weights(length: int, target: int) -> np.ndarray:
    """Bilinear weights [target, length]: pixel centres at (i + 1/2) length / target - 1/2."""
    centres = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(length)))


def test_two_pixels_upsampled_to_four_are_a_quarter_from_the_edges() -> None:
    row = upsample(torch.tensor([[[0.0, 1.0]]], dtype=torch.float64), (1, 4))
    assert row.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]


@pytest.mark.parametrize("size", [(7, 7), (20, 31), (14, 6)])
def test_upsampling_is_separable_linear_interpolation_between_pixel_centres(
    size: tuple[int, int],
) -> None:
    maps = random_maps(3, 7, 5)
    expected = tent_weights(7, size[0]) @ maps.numpy() @ tent_weights(5, size[1]).T
    np.testing.assert_allclose(upsample(maps, size).numpy(), expected, atol=1e-12)


def test_no_maps_upsample_to_no_maps() -> None:
    assert upsample(torch.zeros(0, 7, 7), (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("sigma", [0.25, 0.75, 1.25, 4.5])
@pytest.mark.parametrize("shape", [(40, 31), (3, 5), (1, 1)])
def test_smoothing_is_scipys_gaussian_filter_cut_at_four_sigma(
    sigma: float, shape: tuple[int, int]
) -> None:
    maps = random_maps(2, *shape)
    expected = [gaussian_filter(m, sigma, mode="nearest", truncate=4) for m in maps.numpy()]
    np.testing.assert_allclose(smooth(maps, sigma).numpy(), expected, atol=1e-12)


def test_a_view_of_the_whole_image_is_exactly_the_upsampled_map() -> None:
    maps = random_maps(2, 7, 7).float()
    placed = place(maps, (0.0, 0.0, 33.0, 21.0), 21, 33, fill=-1.0)
    assert torch.equal(placed, upsample(maps, (21, 33)))


def test_a_cropped_view_is_the_upsampled_map_inside_and_fill_outside() -> None:
    maps = random_maps(2, 4, 4)
    placed = place(maps, (3.0, 2.0, 8.0, 6.0), 10, 13, fill=-torch.inf)
    assert torch.equal(placed[:, 2:8, 3:11], upsample(maps, (6, 8)))
    placed[:, 2:8, 3:11] = -torch.inf
    assert placed.shape == (2, 10, 13)
    assert (placed == -torch.inf).all()


@pytest.mark.parametrize(
    ("view", "pixels"),
    [
        ((80.0, 0.0, 480.0, 480.0), (0, 480, 80, 560)),
        ((80.4, 0.3, 480.0, 479.0), (0, 479, 80, 560)),
        ((80.5, 0.0, 479.0, 480.0), (0, 480, 81, 560)),
        ((160.0000001, 0.0, 480.0, 480.0), (0, 480, 160, 640)),
        ((12.6, 3.1, 0.3, 0.2), (3, 4, 12, 13)),
    ],
)
def test_fractional_views_go_to_the_nearest_pixel_edges(
    view: tuple[float, float, float, float], pixels: tuple[int, int, int, int]
) -> None:
    assert view_pixels(view, height=480, width=640) == pixels


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((-1.0, 0.0, 10.0, 10.0), "outside"),
        ((0.0, 475.0, 10.0, 6.0), "outside"),
        ((635.0, 0.0, 6.0, 10.0), "outside"),
        ((0.0, 0.0, 0.0, 10.0), "no area"),
        ((0.0, 0.0, float("nan"), 10.0), "no area"),
    ],
)
def test_a_view_that_is_no_part_of_the_image_is_refused(
    view: tuple[float, float, float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(torch.zeros(1, 2, 2), view, 480, 640, 0.0)
