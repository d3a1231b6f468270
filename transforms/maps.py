"""What the engine gives: the maps of one batch of images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from transforms.map_key import NO_TARGET


class Maps(Mapping[tuple[str, str], Tensor]):
    """The maps of one batch: `maps[method, layer]` is `[B, K, h, w]`, at the layer's own size.

    Attributes:
        logits: `[B, N]`; for a fully convolutional model, the sums over space.
        targets: `[B, K]` class indices, `NO_TARGET` where an image has fewer targets than others;
            the maps are zero there.
        spreads: by layer `[B]`, the mean absolute deviation of the activation from its spatial
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


def joined(parts: Sequence[Maps]) -> Maps:
    """The maps of several batches as those of one; the targets are padded to one width."""
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
