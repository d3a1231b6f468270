"""The state in which a model is explained, restored on leaving, also after an exception.

That is eval mode, frozen parameters, and float32 arithmetic without shortcuts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Setting = TypeVar("Setting")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, was_training in training:
            module.training = was_training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients for its parameters."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with evaluating(model):
        try:
            for parameter, _ in required:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in required:
                parameter.requires_grad_(requires_grad)


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 in float32 products and convolutions.

    PyTorch has an old interface to this and a new one, and refuses to read the old one where the
    two disagree, so both are set.
    """
    # PyTorch's stubs do not know these settings.
    backends: Any = torch.backends
    operations = (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv),
    )
    was = [operation.fp32_precision for operation in operations]
    matmul_was = _unless_mixed(torch.get_float32_matmul_precision)
    cudnn_was = _unless_mixed(lambda: bool(backends.cudnn.allow_tf32))
    try:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        for operation in operations:
            operation.fp32_precision = "ieee"
        yield
    finally:
        if matmul_was is not None:
            torch.set_float32_matmul_precision(matmul_was)
        if cudnn_was is not None:
            backends.cudnn.allow_tf32 = cudnn_was
        for operation, precision in zip(operations, was, strict=True):
            operation.fp32_precision = precision


def _unless_mixed(old_setting: Callable[[], Setting]) -> Setting | None:
    try:
        return old_setting()
    except RuntimeError:  # it was set through the new interface
        return None
