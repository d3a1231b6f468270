"""Class activation maps: activations summed over channels with weights made from the gradient.

Each weighting maps one tap to a signed map ``[B, h, w]``; the ReLU of the papers is applied when a
map is read or scored, so that both signs stay in the dataset.
"""

from collections.abc import Callable

from torch import Tensor

from transforms.extract import Tapped


def grad_cam(tap: Tapped) -> Tensor:
    """``Σ_k x_ku · mean_u g_k`` (Selvaraju et al. 2017, equations 1 and 2)."""
    weights = tap.g.mean((2, 3), keepdim=True)
    return (weights * tap.x).sum(1)


def grad_cam_pp(tap: Tapped) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018, equations 11 and 19).

    ``α = g² / (2 g² + g³ Σ_u x) = 1 / (2 + g Σ_u x)``: the short form needs no guard against small
    gradients, whose squares and cubes would vanish. Only positive gradients have a weight.
    """
    positive = tap.g.clamp_min(0)
    denominator = 2 + positive * tap.x.sum((2, 3), keepdim=True)
    # An activation that is negative on the whole can make the denominator vanish: no weight there.
    alpha = denominator.reciprocal().masked_fill(denominator == 0, 0)
    weights = (alpha * positive).sum((2, 3), keepdim=True)
    return (weights * tap.x).sum(1)


def xgrad_cam(tap: Tapped) -> Tensor:
    """XGrad-CAM: weights ``Σ_u x g / Σ_u x`` (Fu et al. 2020, equation 8).

    The guard 1e-7 in the denominator is that of pytorch-grad-cam.
    """
    mass = tap.x.sum((2, 3), keepdim=True) + 1e-7
    weights = (tap.x * tap.g).sum((2, 3), keepdim=True) / mass
    return (weights * tap.x).sum(1)


def hires_cam(tap: Tapped) -> Tensor:
    """HiResCAM: ``Σ_k x_ku g_ku`` (Draelos and Carin 2020, equation 3)."""
    return (tap.x * tap.g).sum(1)


def layer_cam(tap: Tapped) -> Tensor:
    """LayerCAM: ``Σ_k x_ku g_ku₊`` (Jiang et al. 2021, equations 5 to 7)."""
    return (tap.x * tap.g.clamp_min(0)).sum(1)


WEIGHTINGS: dict[str, Callable[[Tapped], Tensor]] = {
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "xgrad_cam": xgrad_cam,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
}
