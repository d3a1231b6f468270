"""Activations at named layers: the first thing the engine does to a forward pass.

A tap keeps the output of one layer as a node of the autograd graph, safe from whatever the model
does to it afterwards, and lets nothing before the lowest tap enter the graph.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from transforms.extract import Activation, ConvolutionInput
from transforms.factors import Window
from transforms.layout import ChannelsFirst, Layout, LayoutError
from transforms.names import unknown_name
from transforms.pixels import Size

INPUT = "input"
"""The name of the layer that stands for the image itself."""


class LayerError(ValueError):
    """A layer cannot be tapped: no such name, or its output is not one feature map."""


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Check that each name is `input` or a module of `model`.

    Raises:
        LayerError: a name is neither.
    """
    first_names = {module: name for name, module in model.named_modules() if name}
    known = {INPUT, *first_names.values()}
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        every = dict(model.named_modules(remove_duplicate=False))
        again = [layer for layer in unknown if every.get(layer) in first_names]
        if again:
            first = first_names[every[again[0]]]
            raise LayerError(f"layer {again[0]!r} is {first!r} by another name; give that name")
        what = f"layer of {type(model).__name__}"
        valid = [INPUT, *first_names.values()]
        raise LayerError("; ".join(unknown_name(what, layer, valid) for layer in unknown))


def window_of(convolution: nn.Conv2d) -> Window:
    """The neighbourhood that `convolution` reads."""
    pairs = convolution.kernel_size, convolution.stride, convolution.dilation
    kernel, stride, dilation = ((pair[0], pair[1]) for pair in pairs)
    if isinstance(convolution.padding, str):
        around = [(0, 0), (0, 0)]
        if convolution.padding == "same":
            extra = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
            around = [(total // 2, total - total // 2) for total in extra]
    else:
        around = [(pad, pad) for pad in convolution.padding]
    (top, bottom), (left, right) = around
    mode = {"zeros": "constant"}.get(convolution.padding_mode, convolution.padding_mode)
    return Window(kernel, stride, dilation, (left, right, top, bottom), mode)


class Taps:
    """Taps `layers` of `model` while the context is open; leaves no hook behind.

    After a forward pass on `taps.start(images)`, `taps.activations()` are the tapped outputs, as
    the model laid them out. Logits can be differentiated with respect to them: in-place operations
    of the model, on a tap or on a view of it, act on a copy. With `keep_reads`, the inputs of
    tapped convolutions are kept too.

    Attributes:
        layouts: how each layer lays out its output; of a layer that is absent, `[B, C, h, w]`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        keep_reads: bool = False,
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        check_layers(model, layers)
        self.model = model
        self.layers = tuple(layers)
        self.layouts = dict(layouts or {})
        self._keep_reads = keep_reads
        self._paused = False
        self._batch: int | None = None
        self._input_size: Size = 0, 0
        self._seen: dict[str, Tensor] = {}
        self._reads: dict[str, ConvolutionInput] = {}
        self._activations: dict[str, Activation] = {}
        self._shifts: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        modules = dict(self.model.named_modules())
        for layer in self.layers:
            if layer != INPUT:
                handle = modules[layer].register_forward_hook(self._hook(layer))
                self._handles.append(handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def start(self, images: Tensor) -> Tensor:
        """The images to feed to the model, tapped if `input` was asked for."""
        self.clear()
        self._batch, self._input_size = len(images), (images.shape[-2], images.shape[-1])
        # A copy in any case: a model may normalise in place, and a batch may be computed again.
        return self._tap(INPUT, images) if INPUT in self.layers else images.detach().clone()

    def activations(self) -> list[Tensor]:
        """The tapped outputs of the last forward pass, in the order of `layers`.

        Raises:
            LayerError: a layer was not called by the forward pass.
        """
        missing = [layer for layer in self.layers if layer not in self._seen]
        if missing:
            raise LayerError(
                f"the forward pass never called {', '.join(map(repr, missing))}; tap another layer"
            )
        return [self._seen[layer] for layer in self.layers]

    def shared_activations(self) -> list[Activation]:
        """The tapped outputs `[B, C, h, w]`, detached, with what every target shares of them."""
        for layer in self.layers:
            if layer not in self._activations:
                x = self.to_map(layer, self._seen[layer].detach())
                self._activations[layer] = Activation(x, self._reads.get(layer))
        return [self._activations[layer] for layer in self.layers]

    def to_map(self, layer: str, output: Tensor) -> Tensor:
        """An output of the layer, or the gradient there, as `[B, C, h, w]`, not in half precision.

        Raises:
            LayerError: it does not have the layer's layout.
        """
        try:
            layout = self.layouts.get(layer, ChannelsFirst())
            return _in_full(layout.to_map(output, self._input_size))
        except LayoutError as error:
            raise LayerError(f"layer {layer!r}: {error}") from error

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, forward passes go by untapped."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextmanager
    def shifted(self) -> Iterator[dict[str, Tensor]]:
        """While open, every forward pass adds the same zeros to the taps: a differentiable handle.

        They serve what depends on an activation in more than one pass. The zeros, by layer, are
        there after the first pass.
        """
        self._shifts = {}
        try:
            yield self._shifts
        finally:
            self._shifts = None

    def clear(self) -> None:
        """Drop the activations, and with them the graph."""
        self._batch = None
        self._seen.clear()
        self._reads.clear()
        self._activations.clear()

    def _hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...], object], Tensor]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: object) -> Tensor:
            if self._paused:
                return output  # type: ignore[return-value]
            layout = self.layouts.get(layer, ChannelsFirst())
            if not isinstance(output, Tensor) or output.dim() != layout.dimensions:
                found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise LayerError(
                    f"layer {layer!r} gives {found}, not a feature map {layout.shape}; tap another"
                )
            if self._batch not in (None, len(output)):
                raise LayerError(
                    f"layer {layer!r} gives {list(output.shape)} for {self._batch} images, so its "
                    "first dimension does not count the images; tap another"
                )
            if layer in self._seen:
                raise LayerError(
                    f"layer {layer!r} is called more than once in a forward pass, so its output "
                    "is ambiguous; tap a module that is called once, such as the block around it"
                )
            if self._keep_reads and isinstance(module, nn.Conv2d):
                # A copy: the model may write over what the convolution has read.
                read = _in_full(args[0].detach().clone())
                window = window_of(module)
                if window.sum(read[:1, :1]).shape[2:] != output.shape[2:]:
                    raise LayerError(
                        f"convolution {layer!r} pads or cuts its input by itself, so its real "
                        "contributions are unknown; leave it out of methods of the extract real"
                    )
                self._reads[layer] = ConvolutionInput(read, window, module.groups)
            return self._tap(layer, output)

        return keep

    def _tap(self, layer: str, output: Tensor) -> Tensor:
        if self._shifts is not None:
            if layer not in self._shifts:
                self._shifts[layer] = torch.zeros_like(output, requires_grad=True)
            output = output + self._shifts[layer]
        # Two copies: the first frees the tap from storage that the model may still write to, the
        # second gives the model something of its own to write to.
        kept = output.clone() if output.requires_grad else output.detach().clone().requires_grad_()
        self._seen[layer] = kept
        return kept.clone(memory_format=torch.preserve_format)


def _in_full(t: Tensor) -> Tensor:
    """In float32, where autocast made it of half precision: sums over it would lose digits."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
