"""How near the virtual identity comes: NormGrad at a convolution with and without it.

Rebuffi et al., CVPR 2020, section 3.3: the contribution to a virtual 1x1 layer after the
convolution stands in for that to the convolution's own weights.
"""

from dataclasses import replace

from transforms.metrics.image_maps import ImageMaps, Score, score_of
from transforms.metrics.similarity import compare, rank_similarity

REAL, VIRTUAL = "normgrad_real", "normgrad"


def virtual_identity(image: ImageMaps) -> list[Score]:
    """Spearman's rho between the maps of `normgrad_real` and of `normgrad`, at own resolution.

    One score a map that both methods have, under `normgrad_real`; nan where either map is constant
    or not finite.
    """
    at = {key: i for i, key in enumerate(image.keys)}
    partner = {
        i: at[virtual]
        for i, key in enumerate(image.keys)
        if key.method == REAL and (virtual := replace(key, method=VIRTUAL)) in at
    }
    return [
        score_of("virtual_identity", image.keys[i], image.keys[i].class_name, value)
        for i, value in compare(image, partner, rank_similarity, None).items()
    ]
