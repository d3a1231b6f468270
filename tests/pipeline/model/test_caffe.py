"""Caffe's models: their details, and the names of TorchRay's files of weights."""

import pytest
import torch
from torchvision.models import resnet50

from pipeline.model import caffe
from pipeline.model.models import ModelSpec
from transforms.fully_convolutional import fully_convolutional


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_caffes_models_differ_from_torchvisions_where_they_should(name):
    with torch.device("meta"):
        model = getattr(caffe, name)(num_classes=3)
    twin = fully_convolutional(model)
    pools = [m for m in twin.modules() if isinstance(m, torch.nn.MaxPool2d)]
    assert all(pool.ceil_mode for pool in pools)
    x = torch.zeros(1, 3, 224, 297, device="meta")
    # 297 pixels: torchvision's give 9 (VGG) and 10 columns, rounding up gives 10 in both.
    assert twin(x).shape == (1, 3, 1, 4)
    if name == "resnet50":
        assert model.conv1.bias is not None
        assert pools[0].padding == 0
        first = [getattr(model, f"layer{i}")[0] for i in (1, 2, 3, 4)]
        assert [b.conv1.stride for b in first] == [(1, 1), (2, 2), (2, 2), (2, 2)]
        assert [b.conv2.stride for b in first] == [(1, 1)] * 4


def test_torchrays_names_and_shapes_of_vgg16_are_translated():
    with torch.device("meta"):
        model = caffe.vgg16(3)
    theirs = dict(model.state_dict())
    theirs["classifier.0.weight"] = theirs["classifier.0.weight"].unflatten(1, (512, 7, 7))
    for ours, number in ((3, 2), (6, 4)):
        weight = theirs.pop(f"classifier.{ours}.weight")
        theirs[f"classifier.{number}.weight"] = weight[:, :, None, None]
        theirs[f"classifier.{number}.bias"] = theirs.pop(f"classifier.{ours}.bias")
    _same_shapes(model.translate_state(theirs), model)
    _same_shapes(model.translate_state(model.state_dict()), model)


def _same_shapes(state: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    own = {key: values.shape for key, values in model.state_dict().items()}
    assert {key: values.shape for key, values in state.items()} == own


def test_a_file_of_torchrays_gives_the_logits_of_its_weights(tmp_path):
    """Against torchvision's ResNet-50, patched by hand."""
    torch.manual_seed(0)
    theirs = resnet50(num_classes=3)
    theirs.conv1.bias = torch.nn.Parameter(torch.randn(64))
    theirs.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True)
    for block in (theirs.layer2[0], theirs.layer3[0], theirs.layer4[0]):
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    state = {}
    for key, values in theirs.state_dict().items():
        module, _, parameter = key.rpartition(".")
        if isinstance(theirs.get_submodule(module), torch.nn.BatchNorm2d):
            module += ".0" if parameter.startswith("running") else ".1"
        if parameter != "num_batches_tracked":
            state[f"{module}.{parameter}"] = values
    assert "layer1.0.downsample.1.1.weight" in state
    torch.save(state, tmp_path / "resnet50_voc.pth.tar")
    spec = ModelSpec("pipeline.model.caffe:resnet50", str(tmp_path / "resnet50_voc.pth.tar"), 3)
    x = torch.rand(1, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(spec.load()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)
