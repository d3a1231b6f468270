"""Class activation maps: activations summed over channels, with weights made of the gradient.

The maps keep their sign. The ReLU of the papers is applied when a map is read or scored.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.extract import Tapped

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weighting:
    """One way to weigh the channels of an activation.

    Attributes:
        function: from a tap to its map `[B, h, w]`.
        formula: the map at location u.
        source: the paper.
        relu_on_read: whether negative values are set to 0 when a map is read.
    """

    function: Callable[[Tapped], Tensor]
    formula: str
    source: str
    relu_on_read: bool = True


def grad_cam(tap: Tapped) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2)."""
    weights = tap.g.mean((2, 3), keepdim=True)
    return (weights * tap.x).sum(1)


def grad_cam_pp(tap: Tapped) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018, equations 11 and 19).

    `α = g² / (2 g² + g³ Σ_u x) = 1 / (2 + g Σ_u x)`. The short form needs no guard against small
    gradients, whose squares and cubes would vanish. Only positive gradients have a weight.
    """
    weighted, mass = tap.g.clamp_min(0), tap.x.sum((2, 3), keepdim=True)
    denominator = (weighted * mass).add_(2)
    weighted.div_(denominator)
    if mass.amin() < 0:  # only such a sum can make the denominator vanish: no weight there
        weighted.masked_fill_(denominator == 0, 0)
    weights = weighted.sum((2, 3), keepdim=True)
    return (weights * tap.x).sum(1)


def xgrad_cam(tap: Tapped) -> Tensor:
    """XGrad-CAM (Fu et al. 2020, equation 8).

    The guard 1e-7 in the denominator is that of pytorch-grad-cam.
    """
    mass = tap.x.sum((2, 3), keepdim=True) + 1e-7
    weights = (tap.x * tap.g).sum((2, 3), keepdim=True) / mass
    return (weights * tap.x).sum(1)


def hires_cam(tap: Tapped) -> Tensor:
    """HiResCAM (Draelos and Carin 2020, equation 3)."""
    return (tap.x * tap.g).sum(1)


def layer_cam(tap: Tapped) -> Tensor:
    """LayerCAM (Jiang et al. 2021, equations 5 to 7)."""
    return (tap.x * tap.g.clamp_min(0)).sum(1)


WEIGHTINGS: dict[str, Weighting] = {
    "grad_cam": Weighting(grad_cam, "Σ_k x_ku · mean_v g_kv", "Selvaraju et al. 2017"),
    "grad_cam_pp": Weighting(grad_cam_pp, "Σ_k x_ku · Σ_v α_kv g_kv₊", "Chattopadhay et al. 2018"),
    "xgrad_cam": Weighting(xgrad_cam, "Σ_k x_ku · Σ_v x_kv g_kv / Σ_v x_kv", "Fu et al. 2020"),
    "hires_cam": Weighting(hires_cam, "Σ_k x_ku g_ku", "Draelos and Carin 2020"),
    "layer_cam": Weighting(layer_cam, "Σ_k x_ku g_ku₊", "Jiang et al. 2021"),
}
