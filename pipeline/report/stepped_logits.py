"""The logits of a model after a meta step, which are computed here: maps have those of the base.

The step is made for one image and class by itself (`transforms.variant_maps`), on the CPU.
"""

import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.func import functional_call

from pipeline import images
from pipeline.errors import BacklightError
from pipeline.plan import Plan, check_weights
from pipeline.store.records import ImageRecord
from transforms.model_state import evaluating, full_float32
from transforms.targets import probabilities
from transforms.variant_maps import meta_steps
from transforms.variants import Meta


class Likely(NamedTuple):
    """How likely a class is to a model.

    Attributes:
        logit: before the softmax.
        probability: after it.
    """

    logit: float
    probability: float


class NoStepError(Exception):
    """The step cannot be made any more: the message says why."""


def logits_after_step(
    plan: Plan, image: ImageRecord, meta: Meta, targets: Iterable[int]
) -> dict[int, Likely]:
    """The logit and the probability of each target after the step on that target.

    Raises:
        NoStepError: the photo or the weights are not there any more, or are others.
    """
    try:
        check_weights(plan)
        photo = images.decode(os.path.join(plan.root, image.path), (image.height, image.width))
        prepared = images.prepare(photo, plan.preparation)
        model = plan.model.load()
    except (BacklightError, images.ImageError) as error:
        raise NoStepError(str(error)) from error
    batch = plan.preparation.normalise(prepared.tensor[None])
    batch = batch.contiguous(memory_format=plan.model.memory_format)
    found = {}
    with evaluating(model), full_float32(), torch.enable_grad():
        for target, _, parameters in meta_steps(model, batch, list(targets), [meta.lr]):
            with torch.no_grad():
                scores = functional_call(model, parameters, (batch.clone(),))
            logits = (scores if scores.dim() == 2 else scores.mean((2, 3)))[0]
            likely = probabilities(logits)
            found[target] = Likely(float(logits[target]), float(likely[target]))
    return found
