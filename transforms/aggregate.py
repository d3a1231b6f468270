"""Phase 2, aggregate: from a contribution's entries to one number per location, in closed form.

For `o = a bᵀ`: `Σo = Σa · Σb`, `‖o‖ = ‖a‖ ‖b‖`, `‖o₊‖² = ‖a₊‖²‖b₊‖² + ‖a₋‖²‖b₋‖²`, and the
largest entry is the largest of `{max a, min a} · {max b, min b}` (Rebuffi et al. 2020, section
3.2).

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.extract import Contribution

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Aggregate:
    """One way to make one number of the entries at a location.

    Attributes:
        function: from a contribution to a map `[B, h, w]`.
        formula: the number at one location, by the entries `o`.
    """

    function: Callable[[Contribution], Tensor]
    formula: str


def sum_(o: Contribution) -> Tensor:
    """The sum of the entries."""
    per_group = o.a.sum if o.b is None else o.a.sum * o.b.sum
    return per_group.sum(1)


def norm(o: Contribution) -> Tensor:
    """The L2 norm of the entries."""
    per_group = o.a.norm if o.b is None else o.a.norm * o.b.norm
    return _norm_over_groups(per_group)


def filter_norm(o: Contribution) -> Tensor:
    """The L2 norm of the positive entries."""
    import torch

    if o.b is None:
        return _norm_over_groups(o.a.positive_norm)
    both_positive = o.a.positive_norm * o.b.positive_norm
    both_negative = o.a.negative_norm * o.b.negative_norm
    return _norm_over_groups(torch.cat([both_positive, both_negative], dim=1))


def max_(o: Contribution) -> Tensor:
    """The largest entry."""
    import torch

    if o.b is None:
        return o.a.max.amax(1)
    corners = [a * b for a in (o.a.max, o.a.min) for b in (o.b.max, o.b.min)]
    return torch.stack(corners).amax(0).amax(1)


def max_abs(o: Contribution) -> Tensor:
    """The largest magnitude of an entry."""
    a = o.a.max.abs().maximum(o.a.min.abs())
    if o.b is not None:
        a = a * o.b.max.abs().maximum(o.b.min.abs())
    return a.amax(1)


AGGREGATES: dict[str, Aggregate] = {
    "sum": Aggregate(sum_, "Σ o"),
    "norm": Aggregate(norm, "‖o‖"),
    "filter_norm": Aggregate(filter_norm, "‖o₊‖"),
    "max": Aggregate(max_, "max o"),
    "max_abs": Aggregate(max_abs, "max |o|"),
}


def _norm_over_groups(per_group: Tensor) -> Tensor:
    import torch

    if per_group.shape[1] == 1:
        return per_group[:, 0]
    norm: Tensor = torch.linalg.vector_norm(per_group, dim=1)
    return norm
