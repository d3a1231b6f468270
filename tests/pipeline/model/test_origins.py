"""Models of torchvision and timm by name: as these build them, with the rules of their weights."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.models import densenet121, get_model, get_model_weights

from pipeline.errors import SettingsError
from pipeline.model.models import ModelSpec, any_weights
from pipeline.model.origins import origin_of
from pipeline.notes import Notes
from pipeline.preprocess import PREPROCESSES, STANDARD, Sizing, normalise

TIMM_MODEL = "timm:vit_tiny_patch16_224"


def photo(size: tuple[int, int] = (120, 90)) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def cached(name: str, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp: Path) -> None:
    """Put a state where torchvision looks for its downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp))
    url = get_model_weights(name).IMAGENET1K_V1.url
    (tmp / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp / "hub" / "checkpoints" / url.rpartition("/")[2])


@torch.no_grad()
def logits(model: nn.Module, size: int) -> Tensor:
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return model.eval()(x)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 96), ("inception_v3", 128)])
def test_a_model_with_transform_input_is_the_one_that_torchvision_builds(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = get_model(name, weights=None, init_weights=False).state_dict()
    cached(name, state, monkeypatch, tmp_path)
    expected = logits(get_model(name, weights="IMAGENET1K_V1"), size)
    torch.save(state, tmp_path / "whole.pth")
    without = {k: v for k, v in state.items() if not k.startswith(("aux", "AuxLogits"))}
    torch.save(without, tmp_path / "without.pth")
    for weights in ("IMAGENET1K_V1", str(tmp_path / "whole.pth"), str(tmp_path / "without.pth")):
        notes = Notes()
        found = logits(ModelSpec(name, weights).load(notes), size)
        torch.testing.assert_close(found, expected)
        assert any("transform_input" in str(n) for n in notes.all()) == weights.endswith(".pth")
    plain = logits(ModelSpec(name, "random:0").load(), size)
    assert not torch.allclose(plain, expected, rtol=0.01)


def test_the_old_names_of_densenet_load_by_torchvisions_own_loader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = densenet121(num_classes=3).state_dict()
    layer = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    old = {layer.sub(r"\1.\2.", k): v for k, v in state.items() if "num_batches" not in k}
    assert old.keys() - state.keys()
    torch.save({"state_dict": {f"module.{k}": v for k, v in old.items()}}, tmp_path / "old.pth")
    model = ModelSpec("densenet121", str(tmp_path / "old.pth"), num_classes=3).load()
    assert all(model.state_dict()[k].equal(v) for k, v in state.items())
    # In a model of the user's own, as CheXNet's file has it.
    whole = nn.ModuleDict({"densenet121": densenet121(num_classes=3)})
    origin_of("chexnet:build").load(whole, {f"densenet121.{k}": v for k, v in old.items()})
    assert all(whole["densenet121"].state_dict()[k].equal(v) for k, v in state.items())


@pytest.mark.parametrize(
    ("name", "weights", "sizes"),
    [
        ("resnet50", "IMAGENET1K_V1", (224, 256, "bilinear")),
        ("resnet50", "IMAGENET1K_V2", (224, 232, "bilinear")),
        ("resnet50", "ResNet50_Weights.DEFAULT", (224, 232, "bilinear")),
        ("resnet50", "random:0", (224, 256, "bilinear")),
        ("efficientnet_b3", "DEFAULT", (300, 320, "bicubic")),
        ("inception_v3", "random:0", (299, 342, "bilinear")),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", (384, 384, "bicubic")),
        ("vit_h_14", None, (518, 518, "bicubic")),
    ],
)
def test_the_rules_of_torchvision_are_those_of_the_weights(
    name: str, weights: str | None, sizes: tuple[int, int, str]
) -> None:
    rules = ModelSpec(name, weights).input_rules
    assert (rules.input_size, rules.resize_size, rules.interpolation) == sizes


def test_the_rules_have_the_mean_and_std_of_the_weights() -> None:
    rules = ModelSpec("efficientnet_v2_l", "DEFAULT").input_rules
    assert (rules.mean, rules.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert rules.source == "EfficientNet_V2_L_Weights.IMAGENET1K_V1"


def test_a_file_of_torchvision_is_known_by_its_hash() -> None:
    rules = origin_of("resnet50").rules
    assert rules("resnet50", None, "11ad3fa6" + "0" * 56).resize_size == 232
    assert rules("resnet50", None, "0676ba61" + "0" * 56).resize_size == 256
    assert rules("resnet50", None, "f" * 64).source == "ResNet50_Weights.IMAGENET1K_V1"


def test_a_factory_has_the_standard_rules() -> None:
    assert ModelSpec("tiny_network:tiny").input_rules == STANDARD
    assert any_weights("tiny_network:tiny") is None
    assert any_weights("resnet18") == any_weights(TIMM_MODEL) == "random:0"


def test_weights_by_name_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(SettingsError, match="leave --num-classes out"):
        ModelSpec("resnet18", "IMAGENET1K_V1", num_classes=5).load()
    with pytest.raises(SettingsError, match="are for 1000 classes, not 5; leave --num-classes out"):
        ModelSpec(TIMM_MODEL, "DEFAULT", num_classes=5).load()


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "resnet18.a1_in1k", "efficientnet_b1", "vit_base_patch16_siglip_224"],
)
@pytest.mark.parametrize("size", [(120, 90), (301, 475)])
def test_a_photo_for_timm_is_prepared_as_timm_does_it(name: str, size: tuple[int, int]) -> None:
    rules = ModelSpec(f"timm:{name}", "random:0").input_rules
    known = SimpleNamespace(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    data = resolve_model_data_config(known)
    assert data["input_size"][1] == rules.input_size
    expected = create_transform(**data, is_training=False)(photo(size))
    preprocess = PREPROCESSES[rules.preprocess or "center_crop"]
    sizing = Sizing(rules.input_size, rules.resize_size, rules.interpolation)
    found = normalise(preprocess.prepare(photo(size), sizing).tensor[None], rules.mean, rules.std)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)


def test_a_model_of_timm_with_the_weights_of_a_file_is_timms_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=12)
    file = io.BytesIO()
    torch.save({"state_dict": own.state_dict()}, file)
    (tmp_path / "w.pth").write_bytes(file.getvalue())
    model = ModelSpec(TIMM_MODEL, str(tmp_path / "w.pth"), num_classes=3).load()
    torch.testing.assert_close(logits(model, 224), logits(own, 224))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm:vit_tiny_patch16", "random:0", "unknown model of timm .*did you mean vit_tiny"),
        ("timm:resnet18.a9_in1k", "random:0", "unknown weights of resnet18 'a9_in1k'; did you"),
        (TIMM_MODEL, None, "has no weights: pass --weights FILE, a name of weights .DEFAULT, "),
        (
            TIMM_MODEL,
            "absent.pth",
            "cannot read weights 'absent.pth': No such file.*; valid: .*augreg_in21k_ft",
        ),
        ("timm:vit_small_patch14_dinov2", "random:0", "has no classifier; give --num-classes N"),
    ],
)
def test_what_timm_does_not_have_is_refused(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ModelSpec(name, weights).load()


def test_weights_that_timm_cannot_download_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SettingsError) as refused:
        ModelSpec(TIMM_MODEL, "augreg_in21k_ft_in1k").load()
    assert "cannot download the weights" in str(refused.value)
    assert "pass --weights FILE instead" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match=r"pip install 'backlight\[timm\]'"):
        ModelSpec(TIMM_MODEL, "random:0").load()
