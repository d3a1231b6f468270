"""The state in which a model is explained, restored on leaving, also after an exception.

That is eval mode, no compiled parts, frozen parameters, and float32 arithmetic without shortcuts.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

Setting = TypeVar("Setting")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, `uncompiled`."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with uncompiled():
            yield
    finally:
        for module, was_training in training:
            module.training = was_training


def uncompiled() -> AbstractContextManager[None]:
    """While open, what `torch.compile` made of a part of a model is called as it was written.

    Hooks and the rules of ReLUs see nothing of a compiled part.
    """
    # Nothing is compiled where the compiler, which is slow to import, was not imported.
    is_compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients for its parameters."""
    with evaluating(model), gradients_of_parameters(model, required=False):
        yield


@contextmanager
def gradients_of_parameters(model: nn.Module, *, required: bool) -> Iterator[None]:
    """While open, each parameter that can have a gradient requires one, or none does."""
    before = [(p, p.requires_grad) for p in model.parameters() if _has_gradient(p)]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(required)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


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
