"""How near the virtual identity comes: NormGrad at a convolution with and without it.

Rebuffi et al., CVPR 2020, section 3.3: the contribution to a virtual 1x1 layer after the
convolution stands in for that to the convolution's own weights.

Importing this module loads no torch.
"""

from transforms.image_maps import ImageMaps
from transforms.score import Score
from transforms.similarity import Pair, native_rank_scores

REAL, VIRTUAL = "normgrad_real", "normgrad"


def virtual_identity(image: ImageMaps) -> list[Score]:
    """Spearman's rho between the maps of `normgrad_real` and of `normgrad`, at their resolution.

    One score per map that both methods have, under `normgrad_real`; nan where either map is
    constant or not finite.
    """
    return native_rank_scores("virtual_identity", image, real_and_virtual)


def real_and_virtual(image: ImageMaps) -> list[Pair]:
    """The maps of `normgrad_real` that have one of `normgrad` beside them."""
    at = {key: i for i, key in enumerate(image.keys)}
    return [
        Pair(i, at[virtual], key)
        for i, key in enumerate(image.keys)
        if key.method == REAL and (virtual := key._replace(method=VIRTUAL)) in at
    ]
