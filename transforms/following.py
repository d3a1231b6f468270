"""Follows one forward pass, function by function: what is known of a tensor, from its inputs.

`transforms.receptive_field` follows where the cells of a map lie, and `transforms.layout_probe`
which dimensions the image's rows and columns are in.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Fact = TypeVar("Fact")


class LostError(Exception):
    """An operation after which nothing is known; its text says which.

    Args:
        text: what is lost by which operation.
        is_reordered: whether the operation is known, and puts the cells in another order.
    """

    def __init__(self, text: str, is_reordered: bool = False) -> None:
        super().__init__(text)
        self.is_reordered = is_reordered


@dataclass(frozen=True)
class Lost:
    """Why nothing is known of a tensor that comes from the image; see `LostError`."""

    reason: str
    is_reordered: bool = False


@dataclass(frozen=True)
class Call(Generic[Fact]):
    """One call of a function.

    Attributes:
        func: the function.
        outputs: the tensors that it gave.
        place: which of them this is about.
        facts: what is known of those of its tensors that come from the image.
    """

    func: Any
    outputs: tuple[Tensor, ...]
    place: int
    facts: Mapping[Tensor, Fact]

    @property
    def output(self) -> Tensor:
        """The tensor that this is about."""
        return self.outputs[self.place]

    @property
    def name(self) -> str:
        """The name of the function."""
        return function_name(self.func)


Move = Callable[[Call[Fact], tuple[Any, ...], Mapping[str, Any]], Fact]
"""What is known of a call's output, by its arguments; raises `LostError` where nothing is."""


class Follower(TorchFunctionMode, Generic[Fact]):
    """While active, notes what is known of every tensor that comes from `image`.

    Args:
        image: the input of the network.
        fact: what is known of it.
        move: see `Move`.
        placeless: what is known of a tensor `[B, C]`, or of a map of one cell, after an operation
            that loses everything else: a gate, or a class score.
    """

    def __init__(
        self, image: Tensor, fact: Fact, move: Move[Fact], placeless: Callable[[Tensor], Fact]
    ) -> None:
        super().__init__()
        self.found: MutableMapping[Tensor, Fact | Lost] = WeakTensorKeyDictionary()
        self.found[image] = fact
        self._move, self._placeless = move, placeless
        self.modules: list[str] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, and note what is known of its output."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = {t: self.found[t] for t in tensors_of([args, kwargs]) if t in self.found}
        if inputs:
            changed = args[0] if function_name(func) == "__setitem__" else result
            outputs = tuple(tensors_of(changed))
            for place in range(len(outputs)):
                found = self._fact_of(outputs, place, inputs, func, args, kwargs)
                self.found[outputs[place]] = found
        return result

    def _fact_of(
        self,
        outputs: tuple[Tensor, ...],
        place: int,
        inputs: Mapping[Tensor, Fact | Lost],
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Fact | Lost:
        known = {t: fact for t, fact in inputs.items() if not isinstance(fact, Lost)}
        try:
            if len(known) == len(inputs):
                return self._move(Call(func, outputs, place, known), args, kwargs)
            lost = next(fact for fact in inputs.values() if isinstance(fact, Lost))
        except LostError as error:
            inside = f" in module {self.modules[-1]!r}" if self.modules and self.modules[-1] else ""
            lost = Lost(f"{error}{inside}", error.is_reordered)
        output = outputs[place]
        return self._placeless(output) if output.shape[2:].numel() == 1 else lost


@contextmanager
def following(
    model: nn.Module,
    follower: Follower[Fact],
    note: Callable[[str, nn.Module, Any], None],
) -> Iterator[None]:
    """The follower active; it knows the modules that are being called.

    `note` is called with the name, the module and the output of each call of a module.
    """

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: follower.modules.append(name)

    def leave(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            follower.modules.pop()
            note(name, module, output)

        return keep

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        with torch.no_grad(), follower:
            yield
    finally:
        for handle in handles:
            handle.remove()


def black_image(model: nn.Module, batch: int, input_size: tuple[int, int]) -> Tensor:
    """`[batch, 3, H, W]`, of the dtype and on the device of the model's weights."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(batch, 3, *input_size, dtype=weight.dtype, device=weight.device)


def function_name(func: Any) -> str:
    """The name of a function, method or property."""
    name = str(getattr(func, "__name__", func))
    return str(func.__self__.__name__) if name == "__get__" else name


def tensors_of(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, dict):
        yield from tensors_of(list(values.values()))
