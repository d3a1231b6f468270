"""Models as their authors write them: made ready to be explained, or refused with the cause."""

import os
import re
import warnings

import odd_networks
import pytest
import torch
from torch import nn

from pipeline.errors import SettingsError
from pipeline.model.function_check import TOLERANCE, best_memory_format, check_takes, noise
from pipeline.model.models import ModelSpec, check_same_again
from pipeline.notes import Notes

IMAGE = noise((odd_networks.SIZE, odd_networks.SIZE), seed=3)


def loaded(name: str) -> tuple[nn.Module, list[str]]:
    notes = Notes()
    spec = ModelSpec(f"odd_networks:{name}", input_size=odd_networks.SIZE)
    return spec.load(notes), [str(note) for note in notes.all()]


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(IMAGE)


PLAIN = logits(odd_networks.plain())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", []),
        ("parallel", ["DataParallel is taken off the model"]),
        ("averaged", ["AveragedModel is taken off the model"]),
        pytest.param(
            *("compiled", ["torch.compile is taken off the model"]),
            marks=pytest.mark.slow,  # the import of the compiler
        ),
        pytest.param("compiled_in_place", [], marks=pytest.mark.slow),
        ("as_dict", []),
        ("as_named_tuple", []),
        ("as_tuple_of_one", []),
        ("as_tuple_with_maps", []),
        ("squeezed", []),
        ("double", ["the model is float64; its maps are computed in float32"]),
    ],
)
def test_a_wrapped_model_gives_the_logits_and_has_the_layers_of_the_plain_one(name, said):
    model, notes = loaded(name)
    assert notes == said
    assert list(dict(model.named_modules())) == list(dict(odd_networks.plain().named_modules()))
    torch.testing.assert_close(logits(model), PLAIN)


def test_parallel_modules_inside_keep_their_names_and_are_called_as_they_are():
    model, _ = loaded("parallel_inside")
    assert "between.module" in dict(model.named_modules())
    assert model.between.device_ids == []


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_a_model_in_half_precision_is_computed_in_float32(name):
    model, notes = loaded(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert notes == [
        f"the model is {'float16' if name == 'half' else name}; its maps are computed in float32"
    ]
    torch.testing.assert_close(logits(model), PLAIN, rtol=0.02, atol=0.02)


def test_lazy_modules_get_the_shapes_of_the_input_and_the_weights_of_the_seed():
    spec = ModelSpec("odd_networks:lazy", "random:4", input_size=odd_networks.SIZE)
    notes = Notes()
    one, same = spec.load(notes), spec.load()
    assert one[3].weight.shape == (3, 6 * 8 * 8)
    assert one[3].weight.equal(same[3].weight)
    assert "lazy modules" in str(notes.all()[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scripted", "gives a TorchScript module, whose layers cannot be tapped; give the Python"),
        ("on_meta", "parameters have no values .*conv.weight.*give it values"),
        ("raises", "odd_networks:raises fails: the file of weights is not here$"),
        ("raises_in_words_of_ours", "fails: no weights$"),
        ("raises_nothing_to_say", r"fails: assertion error in odd_networks.py, line \d+$"),
        ("leaves", "ends the program .*and gives no model; give a function"),
        ("downloads", "fails: <urlopen error"),
        ("no_eval", "cannot be put into eval mode: Calling .*; give a model whose eval"),
        ("aborts", "fails: no licence$"),
        ("needs_a_width", "'width'; give a function that can be called with no argument"),
        ("needs_classes", "'num_classes'; give --num-classes N"),
        ("gives_nothing", "gave None, not a module"),
        ("gives_the_class", "gave the class Odd itself, not a module"),
        ("gives_a_tuple", "gave a tuple, not a module; give a function"),
        ("instance", "is a module, not a factory of one; give a function"),
        ("plane", "unknown name in odd_networks 'plane'; did you mean plain"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused_in_one_line(name, message):
    with pytest.raises(SettingsError) as refused:
        loaded(name)
    assert re.search(message, str(refused.value))
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_callable_that_ends_the_program_is_no_model():
    with pytest.raises(SettingsError, match=r"builtins:exit fails: it ends the program"):
        ModelSpec("builtins:exit").load()


def test_a_module_that_fails_when_it_is_imported_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "ends_early.py").write_text("import sys\nsys.exit('usage: train.py')")
    (tmp_path / "breaks_early.py").write_text("def net(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"cannot import .*ends the program"):
        ModelSpec("ends_early:net").load()
    with pytest.raises(SettingsError, match=r"cannot import .*invalid syntax"):
        ModelSpec("breaks_early:net").load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_channel", "takes images of 1 channel .*'conv'.*photos have 3; give a model"),
        (
            "fails_in_code",
            r"fails on an image of 3 × 32 × 32: key error 'features' in odd_networks.py, line",
        ),
        ("casting_half", "'conv'.*give a model that casts no tensor to float16: all is float32"),
        ("as_nothing", "the model returns None; give a model that returns logits"),
        ("as_classes", "must give logits of real numbers, and gives bool; give a model"),
        ("as_complex", "must give logits of real numbers, and gives complex64"),
        ("cut_off", r"gives logits without a gradient; give a model whose logits no detach"),
        ("checkpointed", "torch.utils.checkpoint.*leave checkpointing out"),
        ("called", "returns a dict from a __call__ of its own; give a model whose forward"),
        ("hooking_the_gradient", r"; give a model whose forward asks for no gradient \(register_h"),
        ("as_text", "the model returns a str; give a model that returns logits"),
        ("as_ambiguous_tuple", "returns a tuple with 2 tensors that may be its logits"),
    ],
)
def test_a_model_that_fails_on_photos_is_refused_with_the_cause_and_no_other(name, message):
    model, _ = loaded(name)
    with pytest.raises(SettingsError) as refused:
        check_takes(model, name, IMAGE)
    assert re.search(message, str(refused.value))
    assert "--input-size" not in str(refused.value)


def test_what_a_factory_sets_for_the_process_is_put_back():
    def settings():
        return (
            *(torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
            *(torch.is_autocast_enabled("cpu"), torch.get_default_device(), os.getcwd()),
            list(warnings.filters),
        )

    before = settings()
    model, notes = loaded("sets_global_state")
    assert settings() == before
    assert notes == ["the model is float64; its maps are computed in float32"]
    assert check_takes(model, "sets_global_state", IMAGE).dtype == torch.float32


def test_a_model_made_in_inference_mode_has_gradients():
    model, _ = loaded("in_inference_mode")
    check_takes(model, "in_inference_mode", IMAGE)
    model.head.weight.requires_grad_()
    assert torch.autograd.grad(model(IMAGE).sum(), model.head.weight)[0].any()
    torch.testing.assert_close(logits(model), PLAIN)


def test_a_factory_that_stays_in_inference_mode_is_refused():
    try:
        with pytest.raises(SettingsError, match=r"leaves torch\.inference_mode on"):
            loaded("stays_in_inference_mode")
    finally:
        odd_networks.entered.pop().__exit__(None, None, None)


def test_a_model_without_gradient_below_a_layer_is_taken():
    model, _ = loaded("frozen_below")
    assert check_takes(model, "frozen_below", IMAGE).shape == (1, odd_networks.CLASSES)
    assert not any(p.requires_grad is False for p in model.parameters())


def test_factories_draw_from_seeded_generators_or_are_refused():
    for name in ("plain", "of_numpy", "partial"):
        spec = ModelSpec(f"odd_networks:{name}", input_size=odd_networks.SIZE)
        check_same_again(spec, spec.load())
        assert spec.digest()
    spec = ModelSpec("odd_networks:of_the_call", input_size=odd_networks.SIZE)
    with pytest.raises(SettingsError, match=r"another model each time.*head.bias.*--weights FILE"):
        check_same_again(spec, spec.load())


def test_a_model_of_another_size_is_refused_with_the_sizes_that_it_takes():
    model, _ = loaded("flattened")
    with pytest.raises(SettingsError) as refused:
        check_takes(model, "flattened", noise((64, 64)))
    assert "at module 'head' (Linear)" in str(refused.value)
    assert "it takes images of 32 px (--input-size)" in str(refused.value)


def test_channels_last_is_taken_where_the_logits_are_the_same_in_it():
    formats = {}
    for name in ("plain", "flattened", "viewed"):
        model, _ = loaded(name)
        seen = [(IMAGE, logits(model))]
        formats[name] = best_memory_format(model, seen)
        found = model(IMAGE.contiguous(memory_format=formats[name]))
        assert (found - seen[0][1]).abs().max() <= TOLERANCE * seen[0][1].abs().max()
        assert name != "viewed" or model.conv[0].weight.is_contiguous()
    assert formats == {
        "plain": torch.channels_last,
        "flattened": torch.channels_last,
        "viewed": torch.contiguous_format,
    }
