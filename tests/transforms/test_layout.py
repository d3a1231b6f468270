"""A layer is read as what it is: its layout is found from the network, and maps are exact in it."""

import functools
from collections.abc import Callable

import pytest
import torch
from networks import (
    ANYWHERE,
    small,
    small_convnext,
    small_maxvit,
    small_swin,
    small_vit,
)
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from transforms.engine import Explainer
from transforms.geometry import Axis, Geometry
from transforms.layout import (
    ChannelsFirst,
    ChannelsLast,
    Layout,
    LayoutError,
    Tokens,
    parse_layout,
    parse_layouts,
)
from transforms.layout_probe import Unknown, find_layouts, follow_outputs
from transforms.methods import METHODS
from transforms.receptive_field import layer_geometry, trace_geometry
from transforms.taps import LayerError, Taps
from transforms.variant_maps import explain_variants
from transforms.variants import Meta

PLAIN = [name for name in ANYWHERE if METHODS[name].rule == "plain"]
SIDE = 64
TARGETS = torch.tensor([[0, 3], [2, 1]])


@functools.cache
def timm_vit() -> nn.Module:
    """timm's ViT with a class token and four registers."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=16, embed_dim=24, depth=3, num_heads=2, num_classes=5,
        reg_tokens=4, dynamic_img_size=True,
    )  # fmt: skip
    return model.double().eval()


@functools.cache
def network(make: Callable[[], nn.Module]) -> nn.Module:
    return make()


FIRST, LAST = "[B, C, h, w]", "[B, h, w, C]"
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[Layout, int, int]]]] = {
    "vit": (
        small_vit,
        {
            "conv_proj": (ChannelsFirst(), 24, 4),
            "encoder.layers.encoder_layer_1": (Tokens((16, 16), leading=1), 24, 4),
            "encoder.layers.encoder_layer_1.mlp.0": (Tokens((16, 16), leading=1), 32, 4),
        },
    ),
    "swin": (
        small_swin,
        {
            "features.1": (ChannelsLast(), 8, 16),
            "features.3.1.attn": (ChannelsLast(), 16, 8),
            "features.4.norm": (ChannelsLast(), 64, 4),
            "norm": (ChannelsLast(), 32, 4),
            "permute": (ChannelsFirst(), 32, 4),
        },
    ),
    "maxvit": (
        small_maxvit,
        {"stem": (ChannelsFirst(), 8, 32), "blocks.0": (ChannelsFirst(), 8, 16)},
    ),
    "convnext": (
        small_convnext,
        {
            "features.1.0.block.0": (ChannelsFirst(), 8, 16),
            "features.1.0.block.2": (ChannelsLast(), 8, 16),
            "features.1.0.block.3": (ChannelsLast(), 32, 16),
            "features.3": (ChannelsFirst(), 16, 8),
        },
    ),
    "timm's vit with registers": (
        timm_vit,
        {
            "patch_embed": (ChannelsLast(), 24, 4),
            "blocks.0": (Tokens((16, 16), leading=5), 24, 4),
            "blocks.2.norm1": (Tokens((16, 16), leading=5), 24, 4),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layout_is_found_from_the_network(case: str) -> None:
    make, expected = CASES[case]
    found = find_layouts(network(make), list(expected), (SIDE, SIDE))
    assert found == {layer: layout for layer, (layout, _, _) in expected.items()}


def by_autograd(model: nn.Module, layer: str, batch: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient there, by a hook of this test and plain autograd."""
    kept: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        logits = model(batch.clone().requires_grad_())
    finally:
        handle.remove()
    score = logits[torch.arange(len(batch)), TARGETS[:, k]].sum()
    (g,) = torch.autograd.grad(score, kept[0])
    return kept[0].detach(), g


def as_map(t: Tensor, layout: Layout, channels: int, side: int) -> Tensor:
    """`[B, C, h, w]`, cell by cell, with no code of the package."""
    grid = t.new_empty(len(t), channels, side, side)
    for i in range(side):
        for j in range(side):
            if isinstance(layout, Tokens):
                grid[:, :, i, j] = t[:, layout.leading + side * i + j]
            elif isinstance(layout, ChannelsLast):
                grid[:, :, i, j] = t[:, i, j]
            else:
                grid[:, :, i, j] = t[:, :, i, j]
    return grid


@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_plain_autograd_in_every_layout(case: str) -> None:
    """Every plain extract and aggregate of the network equals that of a 1 × 1 layer's output."""
    make, expected = CASES[case]
    model = network(make)
    batch = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
    maps = Explainer(model, list(expected), PLAIN)(batch, TARGETS)
    for layer, (layout, channels, side) in expected.items():
        for k in (0, 1):
            x, g = (as_map(t, layout, channels, side) for t in by_autograd(model, layer, batch, k))
            by_hand = {
                "gradient": g.abs().amax(1),
                "gradient_sum": g.sum(1),
                "linear_approx": (x * g).sum(1),
                "normgrad": x.square().sum(1).sqrt() * g.square().sum(1).sqrt(),
                "normgrad_selective": (x * g).clamp_min(0).square().sum(1).sqrt(),
                "grad_cam": (x * g.mean((2, 3), keepdim=True)).sum(1),
                "layer_cam": (x * g.clamp_min(0)).sum(1),
                "hires_cam": (x * g).sum(1),
            }
            for method, values in by_hand.items():
                found = maps[method, layer][:, k]
                # Before a layer norm these sums over the channels cancel.
                terms = {"gradient_sum": g, "linear_approx": x * g, "hires_cam": x * g}
                scale = terms[method].abs().sum(1).max() if method in terms else values.abs().max()
                assert (found - values).abs().max() <= 1e-10 * scale, (layer, method)
                assert scale > 0, (layer, method)


@pytest.mark.parametrize(("method", "kind"), [("grad_cam", GradCAM), ("layer_cam", LayerCAM)])
@pytest.mark.parametrize("case", ["vit", "swin"])
def test_cams_are_pytorch_grad_cams_with_its_reshape(case: str, method: str, kind: type) -> None:
    def vit(tensor: Tensor, height: int = 4, width: int = 4) -> Tensor:
        # As its documentation has it for ViT, and below for Swin.
        result = tensor[:, 1:, :].reshape(tensor.size(0), height, width, tensor.size(2))
        return result.transpose(2, 3).transpose(1, 2)

    def swin(tensor: Tensor) -> Tensor:
        return tensor.transpose(2, 3).transpose(1, 2)

    make, layer, reshape = {
        "vit": (small_vit, "encoder.layers.encoder_layer_1", vit),
        "swin": (small_swin, "features.3", swin),
    }[case]
    model = network(make)
    batch = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)).double()
    found = Explainer(model, [layer], [method])(batch, TARGETS)[method, layer][:, 0].clamp_min(0)
    with kind(model=model, target_layers=[model.get_submodule(layer)],
              reshape_transform=reshape) as cam:  # fmt: skip
        targets = [ClassifierOutputTarget(int(t)) for t in TARGETS[:, 0]]
        cam(input_tensor=batch, targets=targets)
        x, g = cam.activations_and_grads.activations[0], cam.activations_and_grads.gradients[0]
        own = torch.from_numpy(
            cam.get_cam_image(
                batch, model.get_submodule(layer), targets, x.numpy(), g.numpy(), False
            )
        ).clamp_min(0)
    torch.testing.assert_close(found, own, rtol=1e-6, atol=1e-9)  # it computes in float32 there


def test_the_grid_of_tokens_follows_the_shape_of_each_batch() -> None:
    model = timm_vit()
    with Explainer(model, ["blocks.0"], ["normgrad"]) as explainer:
        for height, width in ((64, 64), (48, 96), (96, 32)):
            batch = torch.randn(1, 3, height, width, dtype=torch.float64)
            maps = explainer(batch, torch.tensor([[1]]))["normgrad", "blocks.0"]
            assert maps.shape == (1, 1, height // 16, width // 16)


def test_a_patch_of_the_photo_is_its_own_cell() -> None:
    """Before any attention, changing one patch changes the activation in its cell alone."""
    model = timm_vit()
    batch = torch.zeros(1, 3, 48, 96, dtype=torch.float64)
    changed = batch.clone()
    changed[:, :, 16:32, 64:80] = 1
    taps = Taps(model, ["blocks.0.norm1"], layouts={"blocks.0.norm1": Tokens((16, 16), leading=5)})
    x = []
    with taps, torch.no_grad():
        for b in (batch, changed):
            model(taps.start(b))
            x.append(taps.shared_activations()[0].x)
    differs = (x[0] != x[1]).any(1)[0]
    assert differs.nonzero().tolist() == [[1, 4]]


def test_meta_and_spread_work_on_tokens() -> None:
    model = network(small_vit)
    layer = "encoder.layers.encoder_layer_0"
    batch = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)).double()
    with Explainer(model, [layer], ["normgrad"]) as explainer:
        metas = [Meta(0.01), Meta(0.01, second_order=True)]
        found = explain_variants(explainer, batch, torch.tensor([[1]]), metas)
        x, _ = by_autograd(model, layer, batch, 0)
        cells = as_map(x, Tokens((16, 16), leading=1), 24, 4)
        spread = (cells - cells.mean((2, 3), keepdim=True)).abs().mean()
        torch.testing.assert_close(found["base"].spreads[layer][0], spread)
    assert {maps["normgrad", layer].shape for maps in found.values()} == {(1, 1, 4, 4)}


# What is no map, or cannot be told


class _Made(nn.Module):
    """A convolution of stride 4, then what a test makes of its output, then a head."""

    def __init__(self, make: Callable[[Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.conv, self.tap, self.make = nn.Conv2d(3, channels, 4, 4), nn.Identity(), make

    def forward(self, images: Tensor) -> Tensor:
        x = self.tap(self.make(self.conv(images)))
        return x.flatten(1).mean(1, keepdim=True) * torch.arange(1.0, 4)


MADE: dict[str, tuple[Callable[[Tensor], Tensor], Layout | str]] = {
    "as many channels as columns": (lambda x: x, ChannelsFirst()),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), ChannelsLast()),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2), Tokens((4, 4))),
    "tokens unfolded from the map": (
        lambda x: nn.functional.unfold(x, 2, padding=1, stride=2).mT,
        Tokens((8, 8)),
    ),
    "windows that overlap, as tokens": (
        lambda x: x.unfold(2, 2, 1).unfold(3, 2, 1).flatten(4).permute(0, 2, 3, 1, 4).flatten(3)
        .flatten(1, 2),
        Tokens((4, 4)),
    ),
    "unfolded columns first": (
        lambda x: nn.functional.unfold(x.mT, 2, stride=2).mT,
        "another order than row by row",
    ),
    "class token at the end": (
        lambda x: torch.cat([x.flatten(2).mT, x.new_zeros(len(x), 1, 4)], 1),
        Tokens((4, 4), trailing=1),
    ),
    "tokens on both sides, one taken away again": (
        lambda x: torch.cat(
            [x.new_zeros(len(x), 3, 4), x.flatten(2).mT, x.new_ones(len(x), 4, 4)], 1
        )[:, 1:],
        Tokens((4, 4), leading=2, trailing=4),
    ),
    "pieces of the grid are joined": (
        lambda x: torch.cat([x[:, :, :2], x[:, :, 2:]], 2),
        ChannelsFirst(),
    ),
    "tokens first": (lambda x: x.flatten(2).permute(2, 0, 1), "are counted by dimension 1"),
    "channels before tokens": (lambda x: x.flatten(2), "channels; rows, columns"),
    "columns first": (lambda x: x.mT.flatten(2).mT, "another order than row by row"),
    "turned": (lambda x: x.mT, "dimensions count"),
    "windows": (
        lambda x: x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).reshape(
            -1, 4, 4
        ),
        "the image in windows",
    ),
    "windows in the second dimension": (
        lambda x: x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).reshape(
            len(x), 4, 4, 4
        ),
        "dimensions count",
    ),
    "shifted": (lambda x: x.roll(1, 2), "dimensions count"),
    "mirrored": (lambda x: x.flip(3), "turns the order of columns"),
    "shuffled tokens": (
        lambda x: x.flatten(2).mT[:, torch.randperm(x[0, 0].numel())],
        "picks among rows, columns",
    ),
    "repeated tokens": (lambda x: x.flatten(2).mT.repeat(1, 2, 1), "repeats rows, columns"),
    "one vector": (lambda x: x.mean((2, 3)), "not a feature map"),
    "video": (lambda x: x[:, :, None], "not a feature map"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_order_of_cells_is_found_or_refused(name: str) -> None:
    make, expected = MADE[name]
    model = _Made(make)
    if isinstance(expected, str):
        with pytest.raises(LayerError, match=f"layer 'tap'.*{expected}"):
            find_layouts(model, ["tap"], (16, 16))
    else:
        assert find_layouts(model, ["tap"], (16, 16)) == {"tap": expected}


def unknown(x: Tensor) -> Tensor:
    """An operation of which it is not known here how it orders the cells."""
    return x.cumsum(1)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (unknown, ChannelsFirst()),
        (lambda x: unknown(x).permute(0, 2, 3, 1), ChannelsLast()),
    ],
)
def test_what_cannot_be_followed_is_told_by_images_of_other_shapes(
    make: Callable[[Tensor], Tensor], expected: Layout
) -> None:
    assert find_layouts(_Made(make), ["tap"], (16, 16)) == {"tap": expected}


@pytest.mark.parametrize(
    "make",
    [
        lambda x: unknown(x).flatten(2).mT,  # tokens, by an order that is not known
        lambda x: unknown(x).view(len(x), 4, 4, 4),  # a network for one size alone
    ],
)
def test_what_nothing_tells_is_refused_and_may_be_named(make: Callable[[Tensor], Tensor]) -> None:
    model = _Made(make).double()
    with pytest.raises(LayerError, match=r"cannot be told.*--layout tap=LAYOUT.*channels_last"):
        find_layouts(model, ["tap"], (16, 16))
    named = {"tap": Tokens((4, 4)) if make(torch.zeros(1, 4, 4, 4)).dim() == 3 else ChannelsFirst()}
    batch = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    maps = Explainer(model, ["tap"], ["gradient"], layouts=named)(batch, torch.tensor([[1], [1]]))
    assert maps["gradient", "tap"].shape == (2, 1, 4, 4)


def test_a_named_layout_that_does_not_fit_is_refused() -> None:
    model, batch = network(small_vit), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    layer, targets = "encoder.layers.encoder_layer_0", torch.tensor([[0]])
    for layout, message in (
        (ChannelsLast(), r"gives \[1, 17, 24\], not a feature map \[B, h, w, C\]"),
        (Tokens((8, 8), leading=1), "its 17 tokens are not 1 and a grid of 8 × 8"),
    ):
        with pytest.raises(LayerError, match=message):
            Explainer(model, [layer], ["gradient"], layouts={layer: layout})(batch, targets)


def test_a_layer_that_reaches_the_logits_by_its_class_token_alone_is_refused() -> None:
    model, layer = network(small_vit), "encoder.layers.encoder_layer_2"
    batch = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    with pytest.raises(LayerError, match="by its class or register tokens alone"):
        Explainer(model, [layer], ["gradient"])(batch, torch.tensor([[0]]))


def test_windows_inside_an_attention_are_refused_and_its_other_layers_are_maps() -> None:
    outputs = follow_outputs(network(small_maxvit), (SIDE, SIDE))
    inside = outputs["blocks.0.layers.0.layers.window_attention.attn_layer"]
    assert len(inside.shape) == 4
    assert isinstance(inside.layout, Unknown)
    assert outputs["blocks.0.layers.0.layers.window_attention"].layout == ChannelsFirst()


def test_tokens_lie_at_the_centres_of_their_patches() -> None:
    layer = "encoder.layers.encoder_layer_1"
    layouts = {layer: Tokens((16, 16), leading=1)}
    axis = Axis(16, 7.5, SIDE)
    assert trace_geometry(network(small_vit), [layer], (SIDE, SIDE), layouts) == {
        layer: Geometry(axis, axis)
    }
    last = {"features.0.2": ChannelsLast()}
    found = trace_geometry(network(small_swin), ["features.0.2"], (SIDE, SIDE), last)
    assert found == {"features.0.2": Geometry(Axis(4, 1.5, 4), Axis(4, 1.5, 4))}
    assert layer_geometry(network(small_swin), ["features.0.0"], (SIDE, SIDE)) == {
        "features.0.0": Geometry(Axis(4, 1.5, 4), Axis(4, 1.5, 4))
    }


# How layouts are written


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (ChannelsFirst(), "channels_first"),
        (ChannelsLast(), "channels_last"),
        (Tokens((16, 16)), "tokens(patch=16)"),
        (Tokens((14, 16.5), 1, 2), "tokens(patch=14x16.5,leading=1,trailing=2)"),
    ],
)
def test_a_layout_is_read_as_it_is_written(layout: Layout, text: str) -> None:
    assert str(layout) == text
    assert parse_layout(text) == layout
    assert parse_layouts([f"a.b={text}"]) == {"a.b": layout}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("features", "is not LAYER=LAYOUT"),
        ("=channels_last", "is not LAYER=LAYOUT"),
        ("a=channel_last", "did you mean channels_last"),
        ("a=tokens", "valid: channels_first"),
        ("a=tokens(patch=0)", "unknown layout"),
    ],
)
def test_a_wrong_layout_is_answered_with_the_valid_ones(entry: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        parse_layouts([entry])


def test_patches_that_reach_over_the_border_count_on_both_axes_or_on_none() -> None:
    layout = Tokens((16, 16), leading=1)
    assert layout.grid(1 + 2 * 3, (40, 56)) == (2, 3)
    assert layout.grid(1 + 3 * 4, (40, 56)) == (3, 4)
    with pytest.raises(LayoutError, match="its 9 tokens are not 1 and a grid of 2 × 3"):
        layout.grid(1 + 2 * 4, (40, 56))


def test_the_usual_layout_needs_no_name() -> None:
    assert find_layouts(small(), ["input", "stem", "pool"], (16, 16)) == dict.fromkeys(
        ("input", "stem", "pool"), ChannelsFirst()
    )
