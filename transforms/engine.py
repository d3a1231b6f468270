"""The engine: images and targets in, maps out, with every forward and backward pass shared.

One forward pass serves all layers, methods, rules and targets. One backward pass serves all layers
and aggregates of one rule and target. That is `1 + targets × rules` passes, whatever the number of
methods and layers.

A GPU waits for the program while a batch is small. There an image has a row per target in the batch
that is computed, and one backward pass per rule serves all targets, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call

from transforms.backward import RuleSwitch
from transforms.convolution import WeightCache
from transforms.excitation import NOT_RELU, UnsupportedOperationError, check_signal
from transforms.extract import Tapped
from transforms.layout import Layout
from transforms.layout_probe import find_layouts
from transforms.linear import WideLayer
from transforms.map_key import NO_TARGET
from transforms.maps import Maps, joined
from transforms.memory import is_out_of_memory
from transforms.methods import Method, parse_methods
from transforms.model_state import frozen, full_float32
from transforms.names import unknown_name, valid_names
from transforms.output_gradient import OUTPUT_GRADIENTS
from transforms.rules import RULES
from transforms.signal_paths import functions_above, relus_above, ways_to_logits
from transforms.taps import LayerError, Taps

MapOf = tuple[tuple[str, str], Tensor]

ROWS = 32
"""Images of a pass that keep a GPU busy; with more, none is computed faster (seen on an H200)."""

Chooser = Callable[[Tensor], Sequence[int]]
"""Chooses the targets of one image by its logits `[N]`."""


class Explainer:
    """Computes the maps of `methods` at `layers` of `model` (images → logits).

    Use it as a context manager around a loop; called outside of one, it opens it for that call.
    While it is open the model is in eval mode with frozen parameters. Afterwards mode,
    `requires_grad` and hooks are as they were, also after an exception.

    Args:
        model: any module that maps images `[B, 3, H, W]` to logits `[B, N]`, or to
            `[B, N, H', W']` (fully convolutional: the score of a class is its sum over space).
        layers: names of `model.named_modules()`, or `input` for the image.
        methods: names of `transforms.methods.METHODS`, `rule:extract:aggregate`, or methods of
            your own.
        output_gradient: a name of `transforms.output_gradient.OUTPUT_GRADIENTS`, for a fully
            convolutional model.
        layouts: how the outputs of layers are laid out, by layer, where that is known. That of the
            others is found from the network before the first batch.

    Attributes:
        methods: the methods by the name of their rule.
        nonlinearities: of the last batch, how many calls of a ReLU the rules treated, and of which
            other nonlinearities they let the gradient through; empty where all rules are the
            gradient.
        weights: what was made of the model's weights, until it is closed.
        micro_batch: the most images (on a GPU, rows) computed at once, since the device ran out
            of memory with twice as many; None while it has not.

    Raises:
        LayerError: a layer does not exist, or its output cannot be explained.
        MethodError: a method does not exist.
        ValueError: an output gradient does not exist.

    >>> with Explainer(model, ["layer4"], ["normgrad", "grad_cam"]) as explainer:
    ...     for images, targets in loader:
    ...         explainer(images, targets)["normgrad", "layer4"]  # [B, K, 7, 7]
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        methods: Sequence[str | Method],
        output_gradient: str = "onehot_sum",
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        if isinstance(layers, str) or isinstance(methods, str):
            raise TypeError("layers and methods are sequences of names, not one string")
        if not layers or len(set(layers)) < len(layers):
            raise LayerError(f"layers must be distinct and at least one, not {list(layers)}")
        if output_gradient not in OUTPUT_GRADIENTS:
            raise ValueError(unknown_name("output gradient", output_gradient, OUTPUT_GRADIENTS))
        self.model = model
        self.output_gradient = output_gradient
        self.methods: dict[str, list[Method]] = {}
        for method in parse_methods(methods):
            self.methods.setdefault(method.rule, []).append(method)
        real = [m.name for group in self.methods.values() for m in group if m.needs_convolution]
        self.taps = Taps(model, layers, keep_reads=bool(real), layouts=layouts)
        self._knows_layouts = set(layers) <= self.taps.layouts.keys()
        if real:
            _check_convolutions(model, layers, real)
        self.nonlinearities: Mapping[str, int] = {}
        self.micro_batch: int | None = None
        self.weights = WeightCache()
        self._own_ways = True
        self._open: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._open is not None:
            raise RuntimeError("this explainer is already open")
        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            stack.enter_context(full_float32())
            stack.enter_context(self.taps)
            stack.callback(self.weights.clear)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()

    def __call__(
        self,
        images: Tensor,
        targets: Tensor | Sequence[Chooser],
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Maps:
        """The maps of `images` `[B, 3, H, W]` for `targets` `[B, K]`.

        `targets` may be a function per image, from its logits to its list of classes, to choose
        classes by their score without a second forward pass; shorter lists are padded with
        `NO_TARGET`. When the device runs out of memory the batch is computed in halves, and later
        batches in pieces of the size that fitted (`micro_batch`). With `parameters` (and
        buffers) by name, the maps are those of the model with these in place of its own.

        Raises:
            ValueError: images or targets have the wrong shape, or a target is not a class.
            LayerError: a layer is not called, called twice, or the logits do not depend on it.
        """
        if self._open is None:
            with self:
                return self(images, targets, parameters)
        if images.dim() != 4 or not len(images):
            raise ValueError(f"images must be [B, 3, H, W] with B ≥ 1, not {list(images.shape)}")
        _check_rows(targets, len(images))
        if not self._knows_layouts:
            self._find_layouts(images)
        if _leaves_room(images):
            return self._by_rows(images, targets, parameters)
        return self._in_pieces(images, targets, parameters, len(images))

    def _in_pieces(
        self,
        images: Tensor,
        targets: Tensor | Sequence[Chooser],
        parameters: Mapping[str, Tensor] | None,
        size: int,
    ) -> Maps:
        """The maps of `images`, `size` of them at once, or as many as fit into the memory."""
        size = min(size, self.micro_batch or size)
        while True:
            try:
                return joined(
                    [
                        self._explain(images[i : i + size], targets[i : i + size], parameters)
                        for i in range(0, len(images), size)
                    ]
                )
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the failed batch's tensors alive.
            size = self.micro_batch = size // 2
            torch.cuda.empty_cache()

    def _by_rows(
        self,
        images: Tensor,
        targets: Tensor | Sequence[Chooser],
        parameters: Mapping[str, Tensor] | None,
    ) -> Maps:
        """The maps of `images`, computed in batches that repeat each image for its targets."""
        scores = None
        if not isinstance(targets, Tensor):
            with self.taps.paused(), self.differentiating(images), torch.no_grad():
                scores = _scores(self._forward(images.clone(), parameters))
            targets = _choose(targets, scores)
        targets = targets.to(images.device, torch.int64)
        if not targets.shape[1]:
            return self._in_pieces(images, targets, parameters, len(images))
        wanted = targets != NO_TARGET
        wanted[:, 0] = True  # Each image has a row, which has its logits and spreads.
        image, column = wanted.nonzero(as_tuple=True)
        rows = self._in_pieces(images[image], targets[image, column][:, None], parameters, ROWS)
        first = column == 0
        maps = {
            key: values.new_zeros(*targets.shape, *values.shape[2:]).index_put_(
                (image, column), values[:, 0]
            )
            for key, values in rows.items()
        }
        return Maps(
            rows.logits[first] if scores is None else scores,
            targets,
            {layer: spread[first] for layer, spread in rows.spreads.items()},
            maps,
        )

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """How each layer lays out its output; before the first batch, those that were given."""
        return self.taps.layouts

    @property
    def is_open(self) -> bool:
        """Whether the model is tapped, frozen and in eval mode."""
        return self._open is not None

    @contextmanager
    def with_pytorchs_backward(self) -> Iterator[None]:
        """While open, signals go back by PyTorch's own operations, which its counters know."""
        self._own_ways = False
        try:
            yield
        finally:
            self._own_ways = True

    @contextmanager
    def differentiating(self, images: Tensor) -> Iterator[None]:
        """Gradients on and autocast off, whatever the caller's modes; taps cleared at the end."""
        try:
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(images.device.type, enabled=False),
            ):
                yield
        finally:
            self.taps.clear()

    def signal(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What enters `logits` on the way back, given each image's target `[B]`."""
        chosen = targets != NO_TARGET
        signal = torch.zeros_like(logits)
        weigh = OUTPUT_GRADIENTS[self.output_gradient].weigh
        signal[chosen, targets[chosen]] = weigh(logits.detach()[chosen, targets[chosen]])
        return signal

    def aggregate(
        self, rule: str, signal: Tensor, gradients: Sequence[Tensor | None]
    ) -> Iterator[MapOf]:
        """The maps of `rule`'s methods from the gradients at the tapped layers, in their order.

        `signal` is what they are of, where it entered.

        Yields ((method, layer), `[B, h, w]`) for the activations of the last forward pass.
        """
        excitation = RULES[rule].excitation
        for layer, activation, g in zip(
            self.taps.layers, self.taps.shared_activations(), gradients, strict=True
        ):
            if g is None:
                raise LayerError(f"the logits do not depend on layer {layer!r}")
            if excitation:
                check_signal(excitation, g, signal, layer)
            on_map = self.taps.to_map(layer, g)
            if on_map.numel() < g.numel() and not on_map.any() and g.any():
                raise LayerError(
                    f"the logits depend on layer {layer!r} by its class or register tokens alone, "
                    "which are no part of a map, so its map would be zero; tap an earlier layer, "
                    "such as the block before"
                )
            tap = Tapped(activation, on_map)
            for method in self.methods[rule]:
                yield (method.name, layer), method.map(tap)

    def _find_layouts(self, images: Tensor) -> None:
        known = self.taps.layouts
        wanted = [layer for layer in self.taps.layers if layer not in known]
        with (
            self.taps.paused(),
            torch.inference_mode(False),
            torch.autocast(images.device.type, enabled=False),
        ):
            size = images.shape[-2], images.shape[-1]
            self.taps.layouts.update(find_layouts(self.model, wanted, size))
        self._knows_layouts = True

    def _explain(
        self,
        images: Tensor,
        targets: Tensor | Sequence[Chooser],
        parameters: Mapping[str, Tensor] | None,
    ) -> Maps:
        with self.differentiating(images):
            return self._maps(images, targets, parameters)

    def _maps(
        self,
        images: Tensor,
        targets: Tensor | Sequence[Chooser],
        parameters: Mapping[str, Tensor] | None,
    ) -> Maps:
        rules = {name: RULES[name] for name in self.methods}
        switch = RuleSwitch(rules.values(), self.weights if self._own_ways else None)
        with switch:
            logits = self._forward(self.taps.start(images), parameters)
        wide, switch.wide_layer = switch.wide_layer, None
        tapped = self.taps.activations()
        if not logits.requires_grad:
            names = ", ".join(map(repr, self.taps.layers))
            raise LayerError(
                f"the logits do not depend on any of the layers {names}, or the model cuts them "
                "off by detach(), .data, numpy or torch.no_grad"
            )
        self._check_rules(logits, tapped, switch, images)
        scores = _scores(logits.detach())
        chosen = targets if isinstance(targets, Tensor) else _choose(targets, scores)
        chosen = chosen.to(scores.device, torch.int64)
        _check_classes(chosen, scores.shape[1])

        maps = {
            (method.name, layer): x.new_zeros(len(x), chosen.shape[1], *x.shape[2:])
            for layer, x in zip(
                self.taps.layers, (a.x for a in self.taps.shared_activations()), strict=True
            )
            for methods in self.methods.values()
            for method in methods
        }
        passes = [(k, name) for k in range(chosen.shape[1]) for name in rules]
        below: dict[tuple[int, str], tuple[Tensor | GradientEdge, Tensor]] = {}
        if wide and wide.is_on_every_way(logits, tapped):
            below = self._signals_below(wide, logits, chosen, passes, switch)
        for i, (k, name) in enumerate(passes):
            switch.rule = rules[name]
            if (k, name) in below:
                start, signal = below.pop((k, name))
            else:
                start, signal = logits, self.signal(logits, chosen[:, k])
            gradients = torch.autograd.grad(
                start,
                tapped,
                signal,
                retain_graph=i + 1 < len(passes),
                allow_unused=True,
            )
            for key, values in self.aggregate(name, signal, gradients):
                maps[key][:, k] = values
        spreads = {
            layer: activation.spread
            for layer, activation in zip(
                self.taps.layers, self.taps.shared_activations(), strict=True
            )
        }
        return Maps(scores, chosen, spreads, maps)

    def _signals_below(
        self,
        wide: WideLayer,
        logits: Tensor,
        chosen: Tensor,
        passes: Sequence[tuple[int, str]],
        switch: RuleSwitch,
    ) -> dict[tuple[int, str], tuple[Tensor | GradientEdge, Tensor]]:
        """The input of a wide layer and the signals there, of the passes that follow a gradient."""
        through = [(k, name) for k, name in passes if not RULES[name].excitation]
        signals: list[Tensor] = []
        for k, name in through:
            switch.rule = RULES[name]
            signal = self.signal(logits, chosen[:, k])
            signals += torch.autograd.grad(logits, wide.output, signal, retain_graph=True)
        below = zip(through, wide.below(signals), strict=True)
        return {way: (wide.input, signal) for way, signal in below}

    def _forward(self, images: Tensor, parameters: Mapping[str, Tensor] | None) -> Tensor:
        logits = functional_call(self.model, dict(parameters or {}), (images,))
        _check_logits(logits, len(images))
        return logits

    def _check_rules(
        self, logits: Tensor, tapped: Sequence[Tensor], switch: RuleSwitch, images: Tensor
    ) -> None:
        """Refuse a rule at a layer where it would be the plain gradient, or is not defined."""
        if all(RULES[name].is_gradient for name in self.methods):
            self.nonlinearities = {}
            return
        own = functions_above(logits, switch.nonlinearities)
        self.nonlinearities = switch.nonlinearities + own
        if own and any(RULES[name].excitation for name in self.methods):
            raise UnsupportedOperationError(NOT_RELU.format(next(iter(own))))
        names = ", ".join(name for name in self.methods if RULES[name].needs_relu)
        if not names:
            return
        if not switch.relus:
            raise LayerError(
                f"{names}: the model called no ReLU in Python, so these rules would be the plain "
                "gradient; leave these methods out"
            )
        above = relus_above(logits, tapped)
        bare = [layer for layer, relu in zip(self.taps.layers, above, strict=True) if not relu]
        if bare:
            with self.taps.paused():
                ways = ways_to_logits(self.model, images[:1])
            meaningful = [way.layer for way in ways if way.below_relu]
            raise LayerError(
                f"{names}: no ReLU lies between {', '.join(map(repr, bare))} and the logits, so "
                "there these rules would be the plain gradient; leave these methods or layers out. "
                f"They mean something at: {valid_names(bare[0], meaningful)}"
            )


def _check_convolutions(model: nn.Module, layers: Sequence[str], methods: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    others = [layer for layer in layers if not isinstance(modules.get(layer), nn.Conv2d)]
    if others:
        convolutions = [name for name, m in modules.items() if isinstance(m, nn.Conv2d)]
        raise LayerError(
            f"{', '.join(methods)} needs convolution layers, which {', '.join(others)} "
            f"{'is' if len(others) == 1 else 'are'} not; "
            f"valid: {valid_names(others[0], convolutions)}"
        )


def _choose(choosers: Sequence[Chooser], scores: Tensor) -> Tensor:
    rows = [chooser(z) for chooser, z in zip(choosers, scores.cpu(), strict=True)]
    width = max(map(len, rows), default=0)
    padded = [[*row, *[NO_TARGET] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)


def _check_logits(logits: object, batch: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 4) or len(logits) != batch:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must give logits [B, N] or [B, N, H, W] with B = {batch}, not {found}"
        )


def _leaves_room(images: Tensor) -> bool:
    """Whether a pass over `images` is too small to keep their device busy."""
    return images.device.type != "cpu" and 2 * len(images) <= ROWS


def _scores(logits: Tensor) -> Tensor:
    """`[B, N]`; for a fully convolutional model, the sums over space."""
    return logits if logits.dim() == 2 else logits.sum((2, 3))


def _check_rows(targets: Tensor | Sequence[Chooser], batch: int) -> None:
    if not isinstance(targets, Tensor):
        if not isinstance(targets, Sequence) or not all(map(callable, targets)):
            raise ValueError(
                "targets must be a tensor of integers [B, K], or a function per image, "
                f"not {targets!r}; torch.tensor makes one of a list of lists"
            )
        if len(targets) != batch:
            raise ValueError(f"{len(targets)} functions choose the targets of {batch} images")
        return
    dtype = targets.dtype
    integers = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if targets.dim() != 2 or len(targets) != batch or not integers:
        raise ValueError(
            f"targets must be integers [B, K] with B = {batch} and any K, "
            f"not {dtype} {list(targets.shape)}"
        )


def _check_classes(targets: Tensor, classes: int) -> None:
    wrong = targets[(targets < NO_TARGET) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"target {int(wrong[0])} is not a class: valid are 0 to {classes - 1}")
