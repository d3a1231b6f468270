"""From a few measured batches to the time of any photos.

The passes are scaled by their FLOPs, everything else by the values of the maps.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pipeline.estimate.measurement import MeasuredBatches, Spent
from pipeline.estimate.photos import Photo


@dataclass(frozen=True)
class Rate:
    """What a unit of some work takes, in elapsed and in CPU seconds of one core."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Rates:
    """What the parts of a run take.

    Attributes:
        passes_of: the FLOPs of the passes of a photo, as far as the plan knows them.
        engine: per FLOP of the passes.
        preparing: decoding photos and making records; per value of the maps. Its elapsed time is
            what the passes do not hide.
        scoring: per value of the maps.
        writing: encoding and writing; per value of the kept maps.
    """

    passes_of: Callable[[Photo], float]
    engine: Rate
    preparing: Rate
    scoring: Rate
    writing: Rate

    def seconds(self, made: Collection[Photo], scored: Iterable[Photo]) -> float:
        """Elapsed, of one worker that makes the maps of some photos and scores those of some."""
        return (
            self.engine.seconds * self.passes(made)
            + self.preparing.seconds * values(made)
            + self.writing.seconds * values(_kept(made))
            + self.scoring.seconds * values(scored)
        )

    def rest_cpu_seconds(self, made: Collection[Photo]) -> float:
        """To decode, encode and write: all but the passes and scoring."""
        return self.preparing.cpu_seconds * values(made) + self.writing.cpu_seconds * values(
            _kept(made)
        )

    def passes(self, photos: Iterable[Photo]) -> float:
        """FLOPs."""
        return sum(map(self.passes_of, photos))


def rates_of(found: MeasuredBatches, passes_of: Callable[[Photo], float]) -> Rates:
    """The rates of what was measured, where `passes_of` gives the FLOPs of a photo's passes."""
    flops, of_maps = sum(map(passes_of, found.photos)), values(found.photos)
    engine, engine_cpu = found.engine_seconds, found.engine_cpu_seconds

    def per_value(spent: Spent) -> Rate:
        return Rate(spent.seconds / of_maps, spent.cpu_seconds / of_maps)

    return Rates(
        passes_of,
        engine=Rate(engine / flops, engine_cpu / flops),
        preparing=Rate(
            (found.explaining.seconds - engine) / of_maps,
            (found.explaining.cpu_seconds - engine_cpu) / of_maps,
        ),
        scoring=per_value(found.scoring),
        writing=per_value(found.writing),
    )


def values(photos: Iterable[Photo]) -> int:
    """Proportional to the number of values of their maps."""
    return sum(photo.values for photo in photos)


def _kept(photos: Iterable[Photo]) -> Iterable[Photo]:
    return (photo for photo in photos if photo.kept)
