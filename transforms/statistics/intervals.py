"""The 95 % intervals of means of scores, of shares of hits, and of means over classes.

The unit is the image: the scores of one image go together. Where there are fewer images than
`FEWEST_OF_SHARE` or `FEWEST_OF_MEAN`, no interval would hold what it promises, and there is none.
`tests/benchmarks/interval_coverage.py` measures how often these intervals cover the truth.

A mean of scores: the percentiles of the Bayesian bootstrap, expanded (`expanded_interval`). Where
scores are very skewed (a mean of 0.05 of scores in [0, 1]), it needs hundreds of images: the
benchmark measures 82 % at 20 images with one score each, and 90 % at 60.

A share of hits: Wilson's interval (JASA 1927) of the effective number of scores, which is the
number of scores divided by the design effect (Kish 1965): how many times the variance over images
is that of independent hits. It has a width also where all are hits.

A mean over classes: its variance is the sum over the classes of that of each class's mean, times
the design effect of classes that share images. Each class's variance is drawn towards the pooled
one (`class_variances`), and Student's t has the degrees of freedom of Welch and Satterthwaite
(Biometrics 1946).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
FEWEST_OF_SHARE = 5
"""The least number of images with an interval of a share of hits."""

FEWEST_OF_MEAN = 20
"""The least number of images with an interval of a mean of other scores, which may be skewed."""

NORMAL = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

Floats = NDArray[np.float64]


def t_quantile(freedom: NDArray[np.float64] | float) -> Floats:
    """The 97.5 % point of Student's t with so many degrees of freedom, of which 1 is the least."""
    return np.asarray(stdtrit(np.maximum(freedom, 1.0), (1 + CONFIDENCE) / 2))


def expanded_interval(values: Floats, replicates: Floats, images: Floats) -> tuple[Floats, Floats]:
    """The 95 % of each row of `[G, R]`, at distances from the value `[G]` that suit few images.

    The replicates of the Bayesian bootstrap of n images have (n - 1) / (n + 1) of the variance of
    the mean, and their percentiles are those of a normal distribution where Student's t is right.
    So both distances from the replicates' mean, which is further up than the value where a best
    threshold is chosen, are multiplied by sqrt((n + 1) / (n - 1)) t / z. Hesterberg (The American
    Statistician 2015, section 2.5.2) takes percentiles further out instead, which for few images
    needs more replicates than there are.

    With skewness g of the scores, the distances differ by (z^2 - 1) / 3 of 2 g / sqrt(n), and
    inverting the t statistic asks for (2 z^2 + 1) / 3 of g / sqrt(n) (Johnson, JASA 1978; Hall
    1992, section 2.6). So their difference is multiplied by the ratio of the two.
    """
    n = np.maximum(images, 2)
    factor = np.sqrt((n + 1) / (n - 1)) * t_quantile(n - 1) / NORMAL
    low, high = percentiles(replicates)
    middle = replicates.mean(axis=1)
    below, above = factor * (middle - low), factor * (high - middle)
    skew = (above - below) / 2 * ((2 * NORMAL**2 + 1) / (2 * NORMAL**2 - 2) - 1)
    return refused_below(FEWEST_OF_MEAN, images, values - below + skew, values + above + skew)


def percentiles(replicates: Floats) -> tuple[Floats, Floats]:
    """The 2.5 % and the 97.5 % points of each row of `[G, R]`."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=1)
    return low, high


def share_interval(share: Floats, effective: Floats, quantile: Floats) -> tuple[Floats, Floats]:
    """Wilson's interval of a share of so many effective scores."""
    added = quantile**2 / effective
    middle = (share + added / 2) / (1 + added)
    half = np.sqrt(share * (1 - share) * added + added**2 / 4) / (1 + added)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def refused_below(fewest: int, images: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The ends, or nan where there are fewer than `fewest` images."""
    few = images < fewest
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


@dataclass(frozen=True)
class Clusters:
    """Sums over the images of `G` rows, with T the sum and m the number of an image's scores.

    Attributes:
        images: how many have a score, `[G]`.
        n: the sum of m.
        mean: of the scores.
        total_squares: the sum of T^2.
        products: the sum of T m.
        squares: the sum of m^2.
    """

    images: Floats
    n: Floats
    mean: Floats
    total_squares: Floats
    products: Floats
    squares: Floats

    @property
    def variance(self) -> Floats:
        """The variance of the mean, by the images' residuals T - mean m; nan below two images."""
        residuals = self.total_squares - 2 * self.mean * self.products + self.mean**2 * self.squares
        correction = self.images / np.maximum(self.images - 1, 1)
        found = np.maximum(residuals, 0) / np.maximum(self.n, 1) ** 2 * correction
        return np.where(self.images > 1, found, np.nan)

    @property
    def design_effect(self) -> Floats:
        """For a share: at least 1, at most the (weighted) number of scores per image."""
        largest = self.squares / np.maximum(self.n, 1)
        binomial = self.mean * (1 - self.mean) / np.maximum(self.n, 1)
        found = ratio_or(self.variance, binomial, 1.0)
        return np.clip(np.where(np.isfinite(found), found, largest), 1.0, np.maximum(largest, 1.0))


def ratio_or(numerator: ArrayLike, denominator: ArrayLike, otherwise: float) -> Floats:
    """The ratio; `otherwise` where the denominator is 0."""
    out = np.full(np.shape(numerator), otherwise)
    return np.asarray(np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0))


def share_intervals(rows: Clusters) -> tuple[Floats, Floats]:
    """The intervals of the rows' shares.

    Where all scores are hits, or none, the number of images decides, as nothing says whether the
    scores of an image go together. With one score per image nothing is estimated but the share, and
    the quantile is the normal one. Otherwise it is Student's, with twice the degrees of freedom of
    the images: the design effect is estimated, but between bounds.
    """
    is_constant = (rows.mean <= 0) | (rows.mean >= 1)
    effective = np.where(is_constant, rows.images, rows.n / rows.design_effect)
    alone = rows.squares <= rows.n  # one score per image
    quantile = np.where(alone, NORMAL, t_quantile(2 * (rows.images - 1)))
    low, high = share_interval(rows.mean, np.maximum(effective, 1.0), quantile)
    return refused_below(FEWEST_OF_SHARE, rows.images, low, high)


def class_mean_interval(
    of_class: Clusters, replicates: Floats, overall: Clusters, is_share: bool
) -> tuple[float, float]:
    """The interval of the mean of `K` classes' means, for the classes seen.

    `replicates` `[K, R]` are the classes' means in the bootstrap, which know of the images that
    classes share; `overall` is the one row of all classes.
    """
    fewest = FEWEST_OF_SHARE if is_share else FEWEST_OF_MEAN
    if not of_class.mean.size or overall.images[0] < fewest:
        return np.nan, np.nan
    count = len(of_class.mean)
    mean = np.array([of_class.mean.mean()])
    if is_share and count == 1:
        low, high = share_intervals(of_class)
        return float(low[0]), float(high[0])
    several = of_class.images > 1
    own = class_variances(of_class)
    effect, alone_effect = 1.0, overall.design_effect[0]
    if several.any():
        n = of_class.images[several, None]
        # The variance of a class's replicates is (n - 1) / (n + 1) of that of its mean.
        moved = replicates[several] - of_class.mean[several, None]
        moved = moved * np.sqrt((n + 1) / (n - 1))
        effect = max(1.0, float(ratio_or(moved.sum(axis=0).var(), moved.var(axis=1).sum(), 1.0)))
    weighted = own * np.where(several, effect, alone_effect) / count**2
    variance = weighted.sum()
    degrees = np.maximum(of_class.images, 1)
    freedom = min(
        float(ratio_or(variance**2, (weighted**2 / degrees).sum(), 1.0)), overall.images[0] - 1
    )
    # Without any variance nothing is estimated: the number of images decides.
    quantile = t_quantile(freedom) if variance > 0 else np.array(NORMAL)
    if not is_share:
        half = float(quantile * np.sqrt(variance))
        return mean[0] - half, mean[0] + half
    binomial = mean * (1 - mean)
    effective = ratio_or(binomial, np.array([variance]), overall.images[0])
    low, high = share_interval(mean, np.maximum(effective, 1.0), quantile)
    return float(low[0]), float(high[0])


def class_variances(of_class: Clusters) -> Floats:
    """The variance of each class's mean, drawn towards the pooled variance of all classes.

    With s^2 a class's variance per image of n, the pooled one s0^2 counts as one more degree of
    freedom: ((n - 1) s^2 + s0^2) / n^2. A class with one image has the pooled one alone. Where no
    class has two images, the variance between the classes stands for it.
    """
    n = of_class.images
    per_image = np.nan_to_num(of_class.variance) * n
    freedom = n - 1
    if freedom.any():
        pooled = (freedom * per_image).sum() / freedom.sum()
    else:
        pooled = of_class.mean.var(ddof=1) if len(n) > 1 else 0.0
    return np.asarray((freedom * per_image + pooled) / n**2)
