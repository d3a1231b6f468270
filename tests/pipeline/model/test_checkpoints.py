"""Weights files as training scripts write them: fitted, or refused in words that say what to do."""

import argparse
import io
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import odd_networks
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import mnasnet0_75, resnet18

from pipeline.errors import SettingsError
from pipeline.model.checkpoints import fit, read_states
from pipeline.model.models import ModelSpec
from pipeline.notes import Notes

State = dict[str, Tensor]


class Network(nn.Module):
    """A network with batch norm, whose state has counters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)


def trained(seed: int = 1) -> State:
    torch.manual_seed(seed)
    return Network().state_dict()


STATE = trained()
OTHER = trained(2)


def written(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def fitted(content: object, key: str | None = None) -> tuple[State, list[str]]:
    """The state of a network after its weights are loaded, and what is said."""
    model, notes = Network(), Notes()
    data = content if isinstance(content, bytes) else written(content)
    fit(model, read_states(data, "w.pth"), "w.pth", "net", notes, key=key)
    return model.state_dict(), [str(note) for note in notes.all()]


def is_state(found: State, expected: State) -> bool:
    return all(found[key].equal(value) for key, value in expected.items())


def prefixed(prefix: str, state: State = STATE) -> State:
    return {prefix + key: value for key, value in state.items()}


def refused(content: object, key: str | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        fitted(content, key)
    message = str(error.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "torch.load" not in message
    assert "w.pth" in message
    return message


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, []),
        (lambda s: {"state_dict": s, "epoch": 3}, ["under the key 'state_dict'"]),
        (
            lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": s["conv.weight"]}}}},
            ["'model'"],
        ),
        (lambda s: {"model_state_dict": s, "loss": torch.tensor(0.1)}, ["'model_state_dict'"]),
        (lambda s: {"net": s}, ["'net'"]),
        (lambda s: {"params": s}, ["'params'"]),
        (lambda s: {"checkpoint": {"model": s}}, ["'checkpoint.model'"]),
        (lambda s: prefixed("module.", s), ["the prefix 'module.'"]),
        (lambda s: prefixed("_orig_mod.", s), ["the prefix '_orig_mod.'"]),
        (lambda s: prefixed("module._orig_mod.", s), ["the prefix 'module._orig_mod.'"]),
        (lambda s: {"state_dict": prefixed("model.", s)}, ["'state_dict'", "'model.'"]),
        (lambda s: {"model": s, "model_ema": OTHER}, ["'model_ema'.*not those under model "]),
        (lambda s: {"state_dict": s, "state_dict_ema": OTHER}, ["'state_dict_ema'.*state_dict "]),
        (lambda s: {"ema": OTHER, "model": s}, ["'ema'.*not those under model "]),
        (lambda s: {"model": s, "swa_model": OTHER}, ["'swa_model'.*not those under model "]),
        (lambda s: (3, s), ["under the key '1'"]),
        (lambda s: {"a": {"b": {"c": {"d": s}}}}, ["under the key 'a.b.c.d'"]),
        (lambda s: {**s, "epoch": 3, "arch": "net"}, ["2 values .* left out.*epoch; arch"]),
        (
            lambda s: {
                "conv.module.weight": s["conv.weight"],
                "conv.module.bias": s["conv.bias"],
                **{k: v for k, v in s.items() if "conv" not in k},
            },
            ["the parts 'module' and '_orig_mod' of the names"],
        ),
        (
            lambda s: {k if "head" in k else f"module.{k}": v for k, v in s.items()},
            ["the parts 'module' and '_orig_mod' of the names"],
        ),
        (
            lambda s: {"state_dict": {**prefixed("model.", s), "criterion.weight": torch.ones(3)}},
            ["'state_dict.model'", "'model.'", "1 value .*left out.*criterion.weight"],
        ),
        (
            lambda s: {**prefixed("model.", s), **prefixed("ema.", OTHER)},
            ["'ema'.*not those under model ", "'ema.'", "9 values .*left out"],
        ),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, []),
        (
            lambda s: {
                **s,
                "conv.num_batches_tracked": torch.tensor(1),
                "total_ops": torch.ones(1),
            },
            ["2 values .*left out: the model has none, and needs none"],
        ),
        (lambda s: {k: nn.Parameter(v) if v.dim() > 1 else v for k, v in s.items()}, []),
        (lambda s: {k: v.half() if v.dim() else v for k, v in s.items()}, ["float16"]),
        (lambda s: {k: v.bfloat16() if v.dim() else v for k, v in s.items()}, ["bfloat16"]),
        (lambda s: {k: v.double() if v.dim() else v for k, v in s.items()}, ["float64"]),
    ],
)
def test_the_state_dict_that_fits_is_taken_and_what_was_done_is_said(
    wrap: Callable[[State], object], said: list[str]
) -> None:
    content = wrap(STATE)
    state, notes = fitted(content)
    averaged = isinstance(content, dict) and any(re.match("(.*_)?ema|swa", key) for key in content)
    halves = any(half in " ".join(said) for half in ("float16",))
    for key, value in (OTHER if averaged else STATE).items():
        tolerance = 0.01 if halves else 0.0
        torch.testing.assert_close(state[key], value, rtol=tolerance, atol=tolerance)
        assert state[key].dtype == value.dtype
    assert len(notes) == len(said)
    assert all(re.search(pattern, note) for pattern, note in zip(said, notes, strict=True))


def test_a_key_chooses_the_state_dict_that_is_taken() -> None:
    content = {"model": STATE, "model_ema": OTHER, "best": {"net": trained(3)}}
    assert is_state(fitted(content, "model")[0], STATE)
    assert is_state(fitted(content, "model_ema")[0], OTHER)
    assert is_state(fitted(content, "best.net")[0], trained(3))
    assert is_state(fitted(content, "net")[0], trained(3))
    assert "unknown weights key 'models'; did you mean model" in refused(content, "models")


def test_two_state_dicts_that_fit_are_refused_with_their_keys() -> None:
    message = refused({"generator": STATE, "critic": OTHER})
    assert "2 state dicts of w.pth fit the model, under the keys generator, critic" in message
    assert "--weights-key KEY" in message


def test_two_state_dicts_that_fit_are_refused_where_their_values_are_the_same_too() -> None:
    message = refused({"generator": STATE, "critic": dict(STATE)})
    assert "under the keys generator, critic; choose one" in message


def test_of_several_state_dicts_the_one_that_fits_is_taken() -> None:
    content = {"critic": {"weight": torch.ones(2)}, "generator": STATE}
    state, notes = fitted(content)
    assert is_state(state, STATE)
    assert "under the key 'generator'" in notes[0]


def test_an_averaged_model_of_pytorch_fits_without_its_counter() -> None:
    model = Network()
    model.load_state_dict(STATE)
    state, notes = fitted(AveragedModel(model).state_dict())
    assert is_state(state, STATE)
    assert notes == ["the prefix 'module.' of the names in w.pth is dropped"]


def test_safetensors_fit_as_other_files_do() -> None:
    state, notes = fitted(safetensors.torch.save(prefixed("model.")))
    assert is_state(state, STATE)
    assert notes == ["the prefix 'model.' of the names in w.pth is dropped"]
    assert "damaged safetensors" in refused(safetensors.torch.save(STATE)[:300])


def test_what_a_modules_own_loader_takes_is_taken() -> None:
    """MNASNet tells its versions by the metadata of the state dict."""
    model = mnasnet0_75()
    state = model.state_dict()
    assert state._metadata[""]["version"] == 2
    copied = OrderedDict(prefixed("module.", state))
    copied._metadata = {"module": state._metadata[""]}
    fit(model, read_states(written(copied), "w.pth"), "w.pth", "net", Notes())
    old = OrderedDict(state)
    old._metadata = {"": {"version": 9}}
    with pytest.raises(SettingsError, match="9"):
        fit(model, read_states(written(old), "w.pth"), "w.pth", "net", Notes())


class Stateful(Network):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 7}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_the_extra_state_of_a_module_is_loaded_too() -> None:
    model = Stateful()
    fit(model, read_states(written(model.state_dict()), "w.pth"), "w.pth", "net", Notes())
    assert model.steps == 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda v: (v * 100).to(torch.int8),
            "conv.weight is int8, and the model computes in float32",
        ),
        (lambda v: v.to(torch.complex64), "conv.weight is complex64"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "conv.weight is qint8"),
        (lambda v: v.to_sparse(), "conv.weight is sparse"),
        (
            lambda v: v[:2],
            r"1 of another shape \(conv.weight \[2, 3, 3, 3\] instead of \[6, 3, 3, 3\]",
        ),
    ],
)
def test_values_that_are_no_weights_are_refused(
    spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    spoilt = {**STATE, "conv.weight": spoil(STATE["conv.weight"])}
    assert re.search(message, refused(spoilt))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = odd_networks.plain().state_dict()
    state["head.bias"][1] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        SettingsError, match=r"not finite: 1 of their tensors, the first is head.bias"
    ):
        ModelSpec("odd_networks:plain", str(tmp_path / "w.pth")).load()


class Tied(nn.Module):
    """Two convolutions with one weight, a buffer that is not saved, and one part for all."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({name: nn.Conv2d(3, 3, 3, bias=False) for name in ("a", "b")})
        self.net.b.weight = self.net.a.weight
        self.register_buffer("scale", torch.ones(3), persistent=False)


def test_a_shared_tensor_needs_one_name_and_may_not_have_two_values() -> None:
    """safetensors keeps one name of a shared tensor."""
    values, notes = torch.randn(3, 3, 3, 3), Notes()
    for state in ({"net.b.weight": values}, {"a.weight": values, "b.weight": values.clone()}):
        model = Tied()
        fit(model, read_states(written(state), "w.pth"), "w.pth", "net", notes)
        assert model.net.a.weight is model.net.b.weight
        assert model.net.a.weight.equal(values)
    assert [str(note) for note in notes.all()] == [
        "the prefix 'net.' is put before the names in w.pth"
    ]
    two = {"net.a.weight": values, "net.b.weight": values + 1}
    with pytest.raises(SettingsError, match=r"net.a.weight and net.b.weight are one tensor"):
        fit(Tied(), read_states(written(two), "w.pth"), "w.pth", "net", Notes())


def test_a_saved_buffer_of_the_models_own_is_left_out_where_it_has_its_value() -> None:
    notes, state = Notes(), {"net.a.weight": torch.ones(3, 3, 3, 3), "scale": torch.ones(3)}
    fit(Tied(), read_states(written(state), "w.pth"), "w.pth", "net", notes)
    assert "1 value of w.pth left out" in str(notes.all()[0])
    state["scale"] = torch.zeros(3)
    with pytest.raises(SettingsError, match=r"1 unexpected \(scale\); give weights of this model"):
        fit(Tied(), read_states(written(state), "w.pth"), "w.pth", "net", Notes())


def test_parts_that_fit_alike_are_refused_with_their_keys() -> None:
    content = {"state_dict": {**prefixed("student."), **prefixed("teacher.", OTHER)}}
    assert "the keys state_dict.student, state_dict.teacher; choose one" in refused(content)
    state, _ = fitted(content, "teacher")
    assert is_state(state, OTHER)


def test_a_head_of_another_size_names_the_setting() -> None:
    state = {**STATE, "head.weight": torch.zeros(5, 6), "head.bias": torch.zeros(5)}
    assert "--num-classes N" in refused(state)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, ["argparse.Namespace"]),
        ({"state_dict": STATE, "best": np.float64(94.1)}, ["numpy"]),
        ({"state_dict": STATE, "args": SimpleNamespace(lr=0.1)}, ["SimpleNamespace"]),
        (resnet18(num_classes=3), ["a whole model", "torchvision.models.resnet.ResNet"]),
        ({"model": Network()}, ["a whole model", "Network"]),
    ],
)
def test_objects_in_a_file_are_named_and_never_made(content: object, names: list[str]) -> None:
    message = refused(content)
    assert all(name in message for name in names)
    assert "could run code" in message
    assert "torch.save(model.state_dict(), FILE)" in message


class Trap:
    """Its unpickling would leave a trace."""

    ran: list[bool] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Callable[..., object], tuple[bool]]:
        return Trap.ran.append, (True,)


@pytest.mark.parametrize("is_old", [False, True])
def test_no_code_of_a_file_is_run(is_old: bool) -> None:
    file = io.BytesIO()
    torch.save(
        {"state_dict": STATE, "trap": Trap()}, file, _use_new_zipfile_serialization=not is_old
    )
    refused(file.getvalue())
    assert not Trap.ran


def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path: Path) -> None:
    torch.jit.trace(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).save(str(tmp_path / "w.pt"))
    assert "a TorchScript archive" in refused((tmp_path / "w.pt").read_bytes())
    assert "a Git LFS pointer" in refused(b"version https://git-lfs.github.com/spec/v1\noid")
    assert "an HDF5 file" in refused(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "an empty file" in refused(b"")
    assert "text" in refused(b"<html>404</html>")
    assert "is damaged" in refused(written(STATE)[:1000])
    assert "no state dict" in refused([torch.zeros(2)])
    assert "no state dict" in refused({"epoch": 3})


def test_an_old_file_in_the_format_before_zip_fits() -> None:
    file = io.BytesIO()
    torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=False)
    assert is_state(fitted(file.getvalue())[0], STATE)
