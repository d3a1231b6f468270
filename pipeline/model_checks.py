"""The model of a run, made ready for its photos and checked before any work."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.explain import is_large, prepared_photo
from pipeline.images import ImageError
from pipeline.input_settings import with_input_settings
from pipeline.model.function_check import (
    best_memory_format,
    check_function,
    check_takes,
    logits_if_taken,
    noise,
)
from pipeline.model.models import ModelSpec, check_same_again
from pipeline.notes import Notes
from pipeline.plan import Plan, model_of
from pipeline.preprocess import PREPROCESSES, normalise
from pipeline.store.records import PlannedExample

ONE_SIZE = "stretch"
"""The preprocess of whole photos for a model that takes one size only."""

_TRIED = 8


def model_for_photos(
    config: RunConfig, notes: Notes
) -> tuple[RunConfig, ModelSpec, nn.Module, str]:
    """The settings with those of the input, the model, its network, and whose rules the input has.

    Raises:
        SettingsError: unknown model or weights, a wrong setting of the input, or a model that does
            not take such images.
    """
    rules = model_of(config).input_rules
    asked = with_input_settings(config, rules)
    model = model_of(asked)
    network = model.load(notes)
    check_same_again(model, network)
    side = model.input_size
    square, long = (_like_a_photo(asked, width) for width in (side, side + side // 2 + 1))
    seen = [(square, check_takes(network, model.name, square))]
    if PREPROCESSES[str(asked.preprocess)].is_proportional:
        logits = logits_if_taken(network, long)
        if logits is not None:
            seen.append((long, logits))
        else:
            asked = with_input_settings(_with_one_size(config, asked, model.name), rules)
            notes.say(
                f"{model.name} takes no images of {side} × {long.shape[3]} px: photos are "
                f"stretched to {side} × {side} px (--preprocess)"
            )
    model = replace(model, memory_format=best_memory_format(network, seen))
    return asked, model, network, rules.source


def check_on_photos(
    network: nn.Module, plan: Plan, planned: Sequence[PlannedExample], notes: Notes
) -> None:
    """Check that the network is a function of the image, on the first photos that can be read.

    Raises:
        SettingsError: as `pipeline.model.function_check.check_function`.
    """
    photos: list[tuple[str, Tensor]] = []
    for example in planned[:_TRIED]:
        try:
            photo = prepared_photo(plan, example)
        except (ImageError, MemoryError):
            continue
        if not is_large(plan, photo):
            photos.append((example.example.path, photo.prepared.tensor))
        if len(photos) == 2:
            break
    side = plan.preparation.input_size
    path, first = photos[0] if photos else ("an image of noise", _pixels(side, side)[0])
    # A photo of another shape cannot be in its batch.
    others = [t for _, t in photos[1:] if t.shape == first.shape] or [first.flip(-1)]
    images = plan.preparation.normalise(torch.stack([first, others[0]]))
    images = images.contiguous(memory_format=plan.model.memory_format)
    check_function(network, plan.model.name, images, path, notes, in_batch=plan.batch_size > 1)


def _pixels(height: int, width: int) -> Tensor:
    return noise((height, width)).sigmoid()


def _like_a_photo(asked: RunConfig, width: int) -> Tensor:
    """An image of random pixels that is normalised as photos are: a model may check its range."""
    pixels = _pixels(int(asked.input_size or width), width)
    return normalise(pixels, asked.mean or (), asked.std or (), str(asked.channel_order))


def _with_one_size(config: RunConfig, asked: RunConfig, name: str) -> RunConfig:
    if config.preprocess is None:
        return replace(config, preprocess=ONE_SIZE)
    squares = (name for name, entry in PREPROCESSES.items() if not entry.is_proportional)
    raise SettingsError(
        f"{name} takes images of {asked.input_size} × {asked.input_size} px and fails on others, "
        f"and preprocess {asked.preprocess} keeps a photo's proportions; valid: "
        f"{', '.join(squares)}"
    )
