"""The engine: images and targets in, maps out, sharing every forward and every backward.

One forward serves all layers, methods, rules and targets; one backward serves all layers and
aggregates of one (rule, target): ``1 + targets × rules`` passes, whatever the number of methods and
layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from transforms.backward import RuleSwitch
from transforms.extract import Tapped
from transforms.methods import Method, parse_methods
from transforms.seeds import SEEDS
from transforms.taps import LayerError, Taps

NO_TARGET = -1
"""Pads the rows of ``targets`` of images that have fewer targets than others; its maps are zero."""

MapOf = tuple[tuple[str, str], Tensor]

Chooser = Callable[[Tensor], Sequence[int]]
"""Chooses the targets of one image by its logits ``[N]``."""


class Maps(Mapping[tuple[str, str], Tensor]):
    """The maps of one batch: ``maps[method, layer]`` is ``[B, K, h, w]``, at the layer's own size.

    Attributes:
        logits: ``[B, N]``; for a fully convolutional model, the sums over space.
        targets: ``[B, K]`` class indices, ``NO_TARGET`` where there is none.
        spreads: by layer ``[B]``, the mean absolute deviation of the activation from its spatial
            mean: a weight for layer combination.
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Tensor,
        spreads: Mapping[str, Tensor],
        maps: Mapping[tuple[str, str], Tensor],
    ) -> None:
        self.logits = logits
        self.targets = targets
        self.spreads = spreads
        self._maps = maps

    def __getitem__(self, key: tuple[str, str]) -> Tensor:
        return self._maps[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)


class Explainer:
    """Computes the maps of ``methods`` at ``layers`` of ``model`` (images → logits).

    Use it as a context manager around a loop; called outside of one, it opens it for that call.
    While it is open the model is in eval mode with frozen parameters; mode, ``requires_grad`` and
    hooks are as they were afterwards, also after an exception.

    Args:
        model: any module that maps images ``[B, 3, H, W]`` to logits ``[B, N]``, or to
            ``[B, N, H', W']`` (fully convolutional: the score of a class is its sum over space).
        layers: names of ``model.named_modules()``, or ``input`` for the image.
        methods: names of :data:`transforms.methods.METHODS` or ``rule:extract:aggregate``.
        seed: a name of :data:`transforms.seeds.SEEDS`, for a fully convolutional model.

    Raises:
        LayerError: a layer does not exist, or its output cannot be explained.
        MethodError: a method does not exist.
        ValueError: a seed does not exist.

    >>> with Explainer(model, ["layer4"], ["normgrad", "grad_cam"]) as explainer:
    ...     for images, targets in loader:
    ...         explainer(images, targets)["normgrad", "layer4"]  # [B, K, 7, 7]
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        methods: Sequence[str],
        seed: str = "onehot_sum",
    ) -> None:
        if isinstance(layers, str) or isinstance(methods, str):
            raise TypeError("layers and methods are sequences of names, not one string")
        if not layers or len(set(layers)) < len(layers):
            raise LayerError(f"layers must be distinct and at least one, not {list(layers)}")
        if seed not in SEEDS:
            raise ValueError(f"unknown seed {seed!r}; valid: {', '.join(SEEDS)}")
        self.model = model
        self.seed = seed
        self.methods: dict[str, list[Method]] = {}
        for method in parse_methods(methods):
            self.methods.setdefault(method.rule, []).append(method)
        real = [m.name for methods in self.methods.values() for m in methods if m.extract == "real"]
        self.taps = Taps(model, layers, keep_reads=bool(real))
        if real:
            _check_convolutions(model, layers, real)
        self.micro_batch: int | None = None
        """The most images computed at once, since the device ran out of memory with twice that."""
        self._open: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._open is not None:
            raise RuntimeError("this explainer is already open")
        with ExitStack() as stack:
            stack.enter_context(_frozen(self.model))
            stack.enter_context(_full_float32())
            stack.enter_context(self.taps)
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
        """The maps of ``images`` ``[B, 3, H, W]`` for ``targets`` ``[B, K]``.

        ``targets`` may be a function for each image, from its logits to its list of classes, to
        choose classes by their score without a second forward pass; shorter lists are padded with
        ``NO_TARGET``. When the device runs out of memory the batch is computed in halves, and later
        batches in pieces of the size that fitted (``micro_batch``). With ``parameters`` (and
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
        size = min(len(images), self.micro_batch or len(images))
        while True:
            try:
                return _joined(
                    [
                        self._explain(images[i : i + size], targets[i : i + size], parameters)
                        for i in range(0, len(images), size)
                    ]
                )
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the handler, whose traceback would keep the failed batch's tensors alive.
            size = self.micro_batch = size // 2
            torch.cuda.empty_cache()

    @property
    def is_open(self) -> bool:
        """Whether the model is tapped, frozen and in eval mode."""
        return self._open is not None

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
        """What enters ``logits`` on the way back: the seed at each image's target, ``[B]``."""
        chosen = targets != NO_TARGET
        signal = torch.zeros_like(logits)
        signal[chosen, targets[chosen]] = SEEDS[self.seed](logits.detach()[chosen, targets[chosen]])
        return signal

    def aggregate(self, rule: str, gradients: Sequence[Tensor | None]) -> Iterator[MapOf]:
        """The maps of ``rule``'s methods from the gradients at the tapped layers, in their order.

        Yields ((method, layer), ``[B, h, w]``) for the activations of the last forward pass.
        """
        for layer, activation, g in zip(
            self.taps.layers, self.taps.shared_activations(), gradients, strict=True
        ):
            if g is None:
                raise LayerError(f"the logits do not depend on layer {layer!r}")
            tap = Tapped(activation, g)
            for method in self.methods[rule]:
                yield (method.name, layer), method.map(tap)

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
        switch = RuleSwitch(self.methods)
        with ExitStack() as stack:
            if set(self.methods) != {"plain"}:
                stack.enter_context(switch)
            logits = functional_call(self.model, dict(parameters or {}), (self.taps.start(images),))
        _check_logits(logits, len(images))
        need_relus = [rule for rule in self.methods if rule in ("guided", "deconvnet")]
        if need_relus and not switch.relus:
            raise LayerError(
                f"{', '.join(need_relus)}: the model called no ReLU in Python, so these rules "
                "would be the plain gradient; leave these methods out"
            )
        tapped = self.taps.activations()
        if not logits.requires_grad:
            names = ", ".join(map(repr, self.taps.layers))
            raise LayerError(f"the logits do not depend on any of the layers {names}")
        scores = logits.detach()
        if scores.dim() == 4:
            scores = scores.sum((2, 3))
        chosen = targets if isinstance(targets, Tensor) else _choose(targets, scores)
        chosen = chosen.to(scores.device, torch.int64)
        _check_classes(chosen, scores.shape[1])

        maps = {
            (method.name, layer): x.new_zeros(len(x), chosen.shape[1], *x.shape[2:])
            for layer, x in zip(self.taps.layers, tapped, strict=True)
            for methods in self.methods.values()
            for method in methods
        }
        passes = [(k, rule) for k in range(chosen.shape[1]) for rule in self.methods]
        for i, (k, switch.rule) in enumerate(passes):
            gradients = torch.autograd.grad(
                logits,
                tapped,
                self.signal(logits, chosen[:, k]),
                retain_graph=i + 1 < len(passes),
                allow_unused=True,
            )
            for key, values in self.aggregate(switch.rule, gradients):
                maps[key][:, k] = values
        spreads = {
            layer: activation.spread
            for layer, activation in zip(
                self.taps.layers, self.taps.shared_activations(), strict=True
            )
        }
        return Maps(scores, chosen, spreads, maps)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient for parameters; both as before on leaving."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 and no bfloat16 in float32 products and convolutions; as before on leaving.

    PyTorch has an old interface to this and a new one, and refuses to read the old one where the
    two disagree: both are set.
    """
    backends: Any = torch.backends
    operations = (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv),
    )
    was = [operation.fp32_precision for operation in operations]
    matmul_was = _unless_mixed(torch.get_float32_matmul_precision)
    cudnn_was = _unless_mixed(lambda: backends.cudnn.allow_tf32)
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


def _unless_mixed(old_setting: Callable[[], Any]) -> Any:
    try:
        return old_setting()
    except RuntimeError:  # set through the new interface
        return None


def _check_convolutions(model: nn.Module, layers: Sequence[str], methods: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    others = [layer for layer in layers if not isinstance(modules.get(layer), nn.Conv2d)]
    if others:
        convolutions = [name for name, m in modules.items() if isinstance(m, nn.Conv2d)]
        raise LayerError(
            f"{', '.join(methods)} needs convolution layers, which {', '.join(others)} "
            f"{'is' if len(others) == 1 else 'are'} not; valid: {', '.join(convolutions)}"
        )


def _choose(choosers: Sequence[Chooser], scores: Tensor) -> Tensor:
    rows = [chooser(z) for chooser, z in zip(choosers, scores.cpu(), strict=True)]
    width = max(map(len, rows), default=0)
    padded = [[*row, *[NO_TARGET] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)


def _joined(parts: Sequence[Maps]) -> Maps:
    if len(parts) == 1:
        return parts[0]
    width = max(part.targets.shape[1] for part in parts)

    def join(tensors: Iterable[Tensor], padding: float) -> Tensor:
        return torch.cat([
            torch.cat([t, t.new_full((len(t), width - t.shape[1], *t.shape[2:]), padding)], 1)
            for t in tensors
        ])  # fmt: skip

    return Maps(
        torch.cat([part.logits for part in parts]),
        join((part.targets for part in parts), NO_TARGET),
        {layer: torch.cat([part.spreads[layer] for part in parts]) for layer in parts[0].spreads},
        {key: join((part[key] for part in parts), 0) for key in parts[0]},
    )


def _check_logits(logits: object, batch: int) -> None:
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 4) or len(logits) != batch:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must give logits [B, N] or [B, N, H, W] with B = {batch}, not {found}"
        )


def _check_rows(targets: Tensor | Sequence[Chooser], batch: int) -> None:
    if not isinstance(targets, Tensor):
        if len(targets) != batch:
            raise ValueError(f"{len(targets)} functions choose the targets of {batch} images")
        return
    kind = targets.dtype
    integers = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    if targets.dim() != 2 or len(targets) != batch or not integers:
        raise ValueError(
            f"targets must be integers [B, K] with B = {batch} and any K, "
            f"not {kind} {list(targets.shape)}"
        )


def _check_classes(targets: Tensor, classes: int) -> None:
    wrong = targets[(targets < NO_TARGET) | (targets >= classes)]
    if len(wrong):
        raise ValueError(f"target {int(wrong[0])} is not a class: valid are 0 to {classes - 1}")
