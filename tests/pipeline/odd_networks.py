"""Networks as their authors write them, each with one thing that is not plain; small and seeded."""

import functools
import itertools
import os
import random
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from pipeline.errors import BacklightError

CLASSES = 3
SIZE = 32


class Odd(nn.Module):
    """Images `[B, 3, H, W]` → `then(logits)`, with `between` before the head."""

    def __init__(
        self,
        between: nn.Module | Callable[[Tensor], Tensor] = lambda features: features,
        then: Callable[[Tensor], object] = lambda logits: logits,
        classes: int = CLASSES,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.between = between
        self.head = nn.Linear(6, classes)
        self.then = then

    def forward(self, images: Tensor) -> object:
        features = self.between(self.conv(images).relu())
        return self.then(self.head(features.mean((2, 3))))


def odd(*args: object, **kwargs: object) -> Odd:
    torch.manual_seed(0)
    return Odd(*args, **kwargs)


def plain() -> nn.Module:
    return odd()


# Not a function of the image


def dropout() -> nn.Module:
    return odd(lambda x: F.dropout(x, 0.2))


class StillTraining(nn.Dropout):
    def train(self, mode: bool = True) -> "StillTraining":
        return super().train(True)


def dropout_module() -> nn.Module:
    return odd(StillTraining(0.2))


def batch_statistics() -> nn.Module:
    return odd(nn.BatchNorm2d(6, track_running_stats=False))


def batch_statistics_in_code() -> nn.Module:
    return odd(lambda x: F.batch_norm(x, None, None, training=True))


def mean_of_batch() -> nn.Module:
    return odd(then=lambda logits: logits - logits.mean(0))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def counting() -> nn.Module:
    return odd(Counting())


def flips_at_random() -> nn.Module:
    return odd(lambda x: x + torch.rand(()))


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e-3).log()


def by_place() -> nn.Module:
    return odd(lambda x: x * torch.arange(1, len(x) + 1).view(-1, 1, 1, 1))


def seeded_dropout() -> nn.Module:
    def between(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return F.dropout(x, 0.5)

    return odd(between)


def seldom() -> nn.Module:
    return odd(lambda x: x if torch.rand(()) < 0.8 else 2 * x)


def little_noise() -> nn.Module:
    return odd(lambda x: x + 1e-6 * torch.rand(()))


class Drifting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1e-7 * x.mean().detach()
        return x + self.seen


def drifting() -> nn.Module:
    return odd(Drifting())


def constant() -> nn.Module:
    return odd(then=lambda logits: 0 * logits)


def for_one_image() -> nn.Module:
    def between(x: Tensor) -> Tensor:
        assert len(x) == 1, "one image at a time"
        return x

    return odd(between)


def not_a_number() -> nn.Module:
    return odd(Log())


def infinite() -> nn.Module:
    return odd(lambda x: x / 0)


# What they return

Result = namedtuple("Result", ["logits", "features"])


def as_dict() -> nn.Module:
    return odd(then=lambda logits: {"loss": None, "logits": logits, "features": logits.exp()})


def as_named_tuple() -> nn.Module:
    return odd(then=lambda logits: Result(logits, logits.exp()))


def as_tuple_of_one() -> nn.Module:
    return odd(then=lambda logits: (logits, None))


def as_tuple_with_maps() -> nn.Module:
    return odd(then=lambda logits: (logits[:, :, None, None].expand(-1, -1, 2, 2), logits))


def as_ambiguous_tuple() -> nn.Module:
    return odd(then=lambda logits: (logits, logits.exp()))


def as_nothing() -> nn.Module:
    return odd(then=lambda logits: None)


def as_classes() -> nn.Module:
    return odd(then=lambda logits: logits > 0)


def as_complex() -> nn.Module:
    return odd(then=lambda logits: torch.complex(logits, logits))


class NoEval(Odd):
    def eval(self) -> "NoEval":
        raise NotImplementedError("Calling eval() is not supported")


def no_eval() -> nn.Module:
    return NoEval()


class Called(Odd):
    def __call__(self, images: Tensor) -> object:
        return {"logits": self.forward(images)}


def called() -> nn.Module:
    return Called()


def hooking_the_gradient() -> nn.Module:
    def between(x: Tensor) -> Tensor:
        x.register_hook(lambda g: None)
        return x

    return odd(between)


def cut_off() -> nn.Module:
    return odd(then=lambda logits: logits.detach())


def checkpointed() -> nn.Module:
    return odd(lambda x: checkpoint(torch.sin, x, use_reentrant=True))


class InRange(Odd):
    def forward(self, images: Tensor) -> object:
        if images.min() < 0 or images.max() > 1:
            raise ValueError("pixels must be in [0, 1]")
        return super().forward((images - 0.5) / 0.5)


def in_range() -> nn.Module:
    torch.manual_seed(0)
    return InRange()


class CastingHalf(Odd):
    def forward(self, images: Tensor) -> object:
        return super().forward(images.half())


def casting_half() -> nn.Module:
    torch.manual_seed(0)
    return CastingHalf().half()


class FrozenBelow(Odd):
    def forward(self, images: Tensor) -> object:
        with torch.no_grad():
            features = self.conv(images).relu()
        return self.head(features.mean((2, 3)))


def frozen_below() -> nn.Module:
    torch.manual_seed(0)
    return FrozenBelow()


def as_text() -> nn.Module:
    return odd(then=lambda logits: "a dog")


def squeezed() -> nn.Module:
    return odd(then=lambda logits: logits.squeeze())


def one_squeezed() -> nn.Module:
    return odd(classes=1, then=lambda logits: logits.squeeze())


def one_output() -> nn.Module:
    return odd(classes=1)


def probabilities() -> nn.Module:
    return odd(then=lambda logits: logits.softmax(1))


def sigmoids() -> nn.Module:
    return odd(then=lambda logits: logits.sigmoid())


def one_sigmoid() -> nn.Module:
    return odd(classes=1, then=lambda logits: logits.sigmoid())


def log_probabilities() -> nn.Module:
    return odd(then=lambda logits: logits.log_softmax(1))


# How they are wrapped


def parallel() -> nn.Module:
    return nn.DataParallel(odd())


def parallel_inside() -> nn.Module:
    return odd(nn.DataParallel(nn.Conv2d(6, 6, 1)))


def averaged() -> nn.Module:
    return AveragedModel(odd())


def compiled() -> nn.Module:
    return torch.compile(odd())


def compiled_in_place() -> nn.Module:
    model = odd()
    model.compile()
    return model


def scripted() -> nn.Module:
    return torch.jit.trace(odd(), torch.zeros(1, 3, SIZE, SIZE))


def half() -> nn.Module:
    return odd().half()


def bfloat16() -> nn.Module:
    return odd().bfloat16()


def double() -> nn.Module:
    return odd().double()


def lazy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LazyConv2d(6, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)
    )


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Odd()


# How they flatten


class Flat(nn.Module):
    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU())
        self.head = nn.Linear(6 * 8 * 8, CLASSES)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.conv(x)))


def viewed() -> nn.Module:
    torch.manual_seed(0)
    return Flat(lambda x: x.view(len(x), -1))


def flattened() -> nn.Module:
    torch.manual_seed(0)
    return Flat(lambda x: x.flatten(1))


# What else they do


def sets_global_state() -> nn.Module:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.set_num_threads(3)
    torch.set_default_device("meta")
    warnings.simplefilter("error")
    os.chdir("/")
    with torch.device("cpu"):
        return odd()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return odd()


def of_numpy() -> nn.Module:
    model = odd()
    model.head.bias.data += random.random() + float(np.random.rand())
    return model


calls = itertools.count()


def of_the_call() -> nn.Module:
    model = odd()
    model.head.bias.data += next(calls)
    return model


partial = functools.partial(odd)


# What is wrong with them


def stays_in_inference_mode() -> nn.Module:
    entered.append(torch.inference_mode())
    entered[0].__enter__()
    return odd()


entered: list[torch.inference_mode] = []


def needs_a_width(width: int) -> nn.Module:
    return odd()


def needs_classes(num_classes: int) -> nn.Module:
    return odd(classes=num_classes)


def gives_nothing() -> None:
    pass


def gives_the_class() -> type:
    return Odd


class Abort(BaseException):
    pass


def aborts() -> nn.Module:
    raise Abort("no licence")


def raises() -> nn.Module:
    raise RuntimeError("the file of\n\x1b[31mweights\x1b[0m is not here")


def raises_in_words_of_ours() -> nn.Module:
    raise BacklightError("no weights")


def raises_nothing_to_say() -> nn.Module:
    raise AssertionError


def leaves() -> nn.Module:
    sys.exit(0)


def downloads() -> nn.Module:
    raise OSError("<urlopen error [Errno -2] Name or service not known>")


def gives_a_tuple() -> object:
    return odd(), None


def one_channel() -> nn.Module:
    return odd(channels=1)


def fails_in_code() -> nn.Module:
    return odd(lambda x: {}["features"])


instance = Odd()
