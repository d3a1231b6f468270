"""Upsampling, smoothing and placing, against hand-computed values, NumPy and SciPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from transforms.geometry import Axis, Geometry
from transforms.resize import BetweenCentres, place, smooth, upsample, view_pixels
from transforms.upsampling import UPSAMPLINGS


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


def spread_evenly(height: int, width: int, input_size: tuple[int, int]) -> Geometry:
    """What `align_corners=False` takes for granted: cells that share the input out evenly."""
    strides = [length / cells for length, cells in zip(input_size, (height, width), strict=True)]
    return Geometry(*(Axis(stride, (stride - 1) / 2, stride) for stride in strides))


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (480, 333), (3, 2)])
@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (1, 1), (64, 96)])
def test_cells_that_share_the_input_out_evenly_are_upsampled_as_by_align_corners_false(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    by_cells = BetweenCentres(spread_evenly(*shape, (64, 96)), (64, 96))
    maps = random_maps(3, *shape)
    expected = upsample(maps, size)
    torch.testing.assert_close(by_cells(maps, size), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(by_cells(maps.float(), size), expected.float(), atol=1e-6, rtol=0)


def test_each_cell_is_at_its_centre_with_straight_lines_between() -> None:
    # Cells at pixels 0, 32, ..., 192 of 224, as of a chain of k3-s2-p1, and at 3, 7, ..., 19.
    geometry = Geometry(Axis(32.0, 0.0, 63.0), Axis(4.0, 3.0, 7.0))
    maps = random_maps(2, 7, 5)
    found = BetweenCentres(geometry, (224, 23))(maps, (224, 23))
    torch.testing.assert_close(found[:, 0:193:32, 3:20:4], maps, atol=1e-14, rtol=0)
    down = np.array([np.interp(np.arange(224), 32 * np.arange(7), c) for c in maps[0].numpy().T])
    both = [np.interp(np.arange(23), 3 + 4 * np.arange(5), row) for row in down.T]
    np.testing.assert_allclose(found[0].numpy(), both, atol=1e-14)
    assert (found[:, 192:] == found[:, 192:193]).all()
    assert (found[:, :, :4] == found[:, :, 3:4]).all()


def test_a_pixel_of_the_input_is_where_the_view_shows_it() -> None:
    # Input pixel p of 8 over a view of 16 pixels from 10 on is at 10 + (p + 0.5) * 2 - 0.5; the
    # centres at pixels 1 and 5 of the input are half-way between 12 and 13, and 20 and 21.
    geometry = Geometry(Axis(4.0, 1.0, 3.0), Axis(4.0, 1.0, 3.0))
    maps = torch.tensor([[[0.0, 8.0], [0.0, 8.0]]], dtype=torch.float64)
    view = (10.0, 20.0, 16.0, 16.0)
    placed = place(maps, view, 40, 30, -1.0, BetweenCentres(geometry, (8, 8)))
    expected = np.interp(np.arange(10, 26), [12.5, 20.5], [0.0, 8.0])
    np.testing.assert_allclose(placed[0, 20:36, 10:26].numpy(), np.tile(expected, (16, 1)))
    placed[:, 20:36, 10:26] = -1.0
    assert (placed == -1.0).all()


@pytest.mark.parametrize("view", [(3.0, 2.0, 8.0, 6.0), (2.6, 1.7, 8.3, 6.4)])
def test_a_map_of_the_input_is_placed_alike_by_every_upsampling(
    view: tuple[float, float, float, float],
) -> None:
    pixel = Axis(1.0, 0.0, 1.0)
    maps = random_maps(2, 24, 32)
    by_name = [
        place(maps, view, 10, 13, 0.0, entry.make(Geometry(pixel, pixel), (24, 32)))
        for entry in UPSAMPLINGS.values()
    ]
    assert len(by_name) == 2
    torch.testing.assert_close(by_name[0], by_name[1], atol=1e-12, rtol=0)


def test_a_layer_without_a_geometry_is_upsampled_only_by_bilinear() -> None:
    maps = random_maps(1, 3, 3)
    found = UPSAMPLINGS["bilinear"].make(None, (9, 9))(maps, (9, 9))
    assert torch.equal(found, upsample(maps, (9, 9)))
    with pytest.raises(ValueError, match="needs the geometry"):
        UPSAMPLINGS["receptive-field"].make(None, (9, 9))
    assert [name for name, entry in UPSAMPLINGS.items() if entry.needs_geometry] == [
        "receptive-field"
    ]


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


@pytest.mark.parametrize("shape", [(7, 7), (14, 20), (55, 27), (112, 112), (4, 6), (3, 40)])
@pytest.mark.parametrize("size", [(224, 224), (480, 640), (97, 385)])
def test_float32_maps_are_upsampled_to_the_bits_of_torch_alone_and_in_a_batch(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = random_maps(3, *shape).float()
    expected = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    found = upsample(maps, size)
    assert torch.equal(found, expected)
    assert torch.equal(torch.cat([upsample(one[None], size) for one in maps]), found)


def test_an_infinite_cell_spoils_the_pixels_around_it_alone() -> None:
    maps = torch.ones(1, 5, 5)
    maps[0, 0, 0] = torch.inf
    found = upsample(maps, (40, 40))
    assert not found[0, :4, :4].isfinite().any()
    assert (found[0, 12:, 12:] == 1).all()


def test_the_gradient_goes_through_an_upsampled_map() -> None:
    maps = torch.rand(1, 5, 5, requires_grad=True)
    (g,) = torch.autograd.grad(upsample(maps, (40, 40)).sum(), maps)
    assert float(g.sum()) == pytest.approx(40 * 40)
