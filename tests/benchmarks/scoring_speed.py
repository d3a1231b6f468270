"""Scoring against other programs on the same maps: CPU time per map, and that the scores agree.

    uv run python tests/benchmarks/scoring_speed.py OUT [--before REVISION] [--images 4]
    uv run --with quantus==0.6.0 python tests/benchmarks/scoring_speed.py OUT --quantus

OUT is a run with annotated photos and maps of the roles label, top and least. The programs:

    this        the metrics of this checkout, one call per metric
    before      the metrics of another revision (`git archive REVISION transforms`)
    loops       what a user writes: NumPy, SciPy and torch, one map at a time, every pixel
    quantus     Quantus's PointingGame, RelevanceMassAccuracy and RelevanceRankAccuracy; one map at
                a time, upsampled to the photo first, which is timed, as Quantus wants it

`a+b` stands for metrics that score the same image, so that they share what they can.

Every program runs in a process of its own on one thread, and they take turns, image by image. The
time is CPU time (`time.process_time`), the result the median over the rounds of the sum over the
images, after one image to warm up. No time is asserted.
"""

import argparse
import math
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

METRICS = [
    "class_sensitivity",
    "class_sensitivity_native",
    "pointing_game",
    "energy",
    "mass_accuracy",
    "energy+mass_accuracy",
    "rank_accuracy",
    "max_box_acc",
    "variant_correlation",
]

Scores = dict[tuple[Any, ...], tuple[float, int]]
"""Value and ties by key."""


def main() -> None:
    """Time the programs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--before", help="a git revision whose metrics are timed as well")
    parser.add_argument("--quantus", action="store_true", help="time Quantus instead of the loops")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--worker", nargs=2, metavar=("PROGRAM", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    metrics = args.metrics.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch, "inputs.pickle")
        inputs.write_bytes(pickle.dumps(images_of(args.out, args.images)))
        programs = {"this": Program("this", inputs, Path.cwd())}
        if args.before:
            archive = subprocess.run(
                ["git", "archive", args.before, "transforms"], check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", scratch], input=archive.stdout, check=True)
            programs["before"] = Program("this", inputs, Path(scratch))
        other = "quantus" if args.quantus else "loops"
        programs[other] = Program(other, inputs, Path.cwd())
        print_table(programs, metrics, args.images, args.rounds)


def images_of(out: str, count: int) -> list[dict[str, Any]]:
    """The stored maps of the first images, as plain data that every revision understands."""
    from pipeline.plan import read_plan
    from pipeline.regions import class_regions
    from pipeline.scores.image_scores import image_maps
    from pipeline.store import MapDataset
    from transforms.geometry import Geometry

    plan, dataset, found = read_plan(out), MapDataset(out), []
    for record in dataset.commits:
        for image, maps in dataset.shard_images(record.index):
            (region,) = plan.regions
            regions = class_regions(image.regions, image.height, image.width, region)
            own = replace(image_maps(image, maps), regions=regions)
            geometry = {
                layer: [vars(place.rows), vars(place.columns)]
                for layer, place in plan.geometry.items()
                if isinstance(place, Geometry)
            }
            fields = ["image_id", "height", "width", "input_height", "input_width", "view", "boxes"]
            found.append(
                {name: getattr(own, name) for name in fields}
                | {
                    "regions": {name: r.numpy() for name, r in own.regions.items()},
                    "keys": [tuple(key) for key in own.keys],
                    "maps": [values.numpy() for values in own.maps],
                    "geometry": geometry,
                }
            )
            if len(found) == count:
                return found
    return found


class Program:
    """A process that scores an image by a metric on request."""

    def __init__(self, name: str, inputs: Path, folder: Path) -> None:
        command = [sys.executable, __file__, "-", "--worker", name, str(inputs)]
        environment = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=folder
        )

    def score(self, image: int, metric: str) -> tuple[float, Scores | None]:
        """CPU seconds and scores; no scores: the program lacks the metric."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((image, metric), self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)  # type: ignore[no-any-return]


def print_table(programs: dict[str, Program], metrics: list[str], images: int, rounds: int) -> None:
    """Let the programs take turns and print medians, ratios and differences."""
    others = [name for name in programs if name != "this"]
    print(f"| metric | scores | this, ms per score | {' | '.join(f'{o} / this' for o in others)} |")
    print("|---|---|---|" + "---|" * len(others))
    for metric in metrics:
        totals: dict[str, list[float]] = {name: [] for name in programs}
        scores: dict[str, Scores] = {name: {} for name in programs}
        for turn in range(rounds + 1):
            for name in programs:
                totals[name].append(0.0)
            for image in range(images if turn else 1):
                for name, program in programs.items():
                    seconds, found = program.score(image, metric)
                    totals[name][-1] += seconds
                    scores[name].update(found or {})
        medians = {name: statistics.median(own[1:]) for name, own in totals.items()}
        count = len(scores["this"])
        cells = [metric, str(count), f"{1e3 * medians['this'] / max(1, count):.3f}"]
        for name in others:
            if not scores[name]:
                cells.append("–")
                continue
            ratio = medians[name] / len(scores[name]) / (medians["this"] / count)
            cells.append(f"{ratio:.1f}× {agreement(scores['this'], scores[name])}")
        print(f"| {' | '.join(cells)} |", flush=True)


def agreement(own: Scores, other: Scores) -> str:
    """How the scores of another program differ, in words."""
    shared = own.keys() & other.keys()
    undefined = sum(math.isnan(own[key][0]) != math.isnan(other[key][0]) for key in shared)
    tied = {key for key in shared if own[key][1] > 1}
    differences = [
        abs(own[key][0] - other[key][0])
        for key in shared - tied
        if not (math.isnan(own[key][0]) or math.isnan(other[key][0]))
    ]
    far = sum(difference > 1e-12 for difference in differences)
    largest = max(differences, default=0.0)
    words = [f"{len(differences)} compared, largest difference {largest:.1e}"]
    words += [f"{far} above 1e-12"] * bool(far)
    words += [f"{len(tied)} tied"] * bool(tied)
    words += [f"{undefined} defined by one alone"] * bool(undefined)
    return f"({'; '.join(words)})"


def work(program: str, inputs: str) -> None:
    """Answer requests until the end of the input."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images = pickle.loads(Path(inputs).read_bytes())
    scorer: Callable[[dict[str, Any], str], Scores | None]
    scorer = {"this": by_transforms, "loops": by_loops, "quantus": by_quantus}[program]
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            index, metric = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        image = images[index]
        # A copy, so that what a program keeps of the image is made again in every round.
        scorer_image = prepared(image) if program == "this" else dict(image)
        began = time.process_time()
        found = scorer(scorer_image, metric)
        seconds = time.process_time() - began
        pickle.dump((seconds, plain(found) if program == "this" else found), answers)
        answers.flush()


def prepared(image: dict[str, Any]) -> Any:
    """The image as `ImageMaps` of the revision that is imported."""
    import torch

    from transforms.geometry import Axis, Geometry
    from transforms.image_maps import ImageMaps
    from transforms.map_key import MapKey

    fields = {name: image[name] for name in image if name not in ("keys", "maps", "regions")}
    fields["geometry"] = {
        layer: Geometry(Axis(**rows), Axis(**columns))
        for layer, (rows, columns) in image["geometry"].items()
    }
    return ImageMaps(
        keys=[MapKey(*key) for key in image["keys"]],
        maps=[torch.from_numpy(values) for values in image["maps"]],
        regions={name: torch.from_numpy(region) for name, region in image["regions"].items()},
        **fields,
    )


def by_transforms(image: Any, metrics: str) -> Any:
    """The scores of the revision that is imported."""
    from transforms import metrics as revision

    names = metrics.split("+")
    if not revision.METRICS.keys() >= {*names}:
        return None
    if hasattr(revision, "score_maps"):
        return revision.score_maps(image, names)
    return [score for name in names for score in revision.METRICS[name].score(image)]


def plain(scores: Any) -> Scores | None:
    """Scores as plain data."""
    return None if scores is None else {(s.metric, *s.key): (s.value, s.ties) for s in scores}


def by_loops(image: dict[str, Any], metric: str) -> Scores | None:
    """Straightforward loops over maps; the rules that every user would write down."""
    from scipy.stats import spearmanr

    scores: Scores = {}
    if metric in ("class_sensitivity", "class_sensitivity_native"):
        native = metric.endswith("native")
        least = {k[:3]: m for k, m in each(image) if k[3] == "least"}
        for key, values in each(image):
            if key[3] == "top" and key[:3] in least:
                pair = values, least[key[:3]]
                if not native:
                    pair = tuple(
                        upsampled(m, image["input_height"], image["input_width"]) for m in pair
                    )
                rho = spearmanr(pair[0].ravel(), pair[1].ravel()).statistic
                scores[metric, *key[:3], "top-least", key[4], ""] = (float(rho), 0)
        return scores
    if metric not in ("pointing_game", "energy", "mass_accuracy", "rank_accuracy"):
        return None
    for key, values in each(image):
        for name in classes_of(image, key):
            region = image["regions"][name]
            relevance = {"energy": np.maximum(values, 0), "pointing_game": values}.get(
                metric, np.abs(values)
            )
            pixels = in_photo(image, relevance, -math.inf if metric in RANKED else 0.0)
            if metric == "pointing_game":
                value = float(near(image, name).ravel()[pixels.argmax()])
            elif metric == "rank_accuracy":
                order = np.argsort(-pixels.ravel(), kind="stable")[: region.sum()]
                value = float(region.ravel()[order].mean())
            else:
                pixels = pixels.astype(np.float64)
                value = float(pixels[region].sum() / pixels.sum())
            scores[metric, *key[:5], name] = (value, 0)
    return scores


def by_quantus(image: dict[str, Any], metric: str) -> Scores | None:
    """Quantus on maps as large as the photo, with the region that counts as a hit."""
    import quantus

    kinds = {
        "pointing_game": quantus.PointingGame,
        "mass_accuracy": quantus.RelevanceMassAccuracy,
        "rank_accuracy": quantus.RelevanceRankAccuracy,
    }
    if metric not in kinds:
        return None
    quiet = {"disable_warnings": True, "display_progressbar": False, "normalise": False}
    scorer = kinds[metric](abs=metric != "pointing_game", **quiet)
    scores: Scores = {}
    for key, values in each(image):
        for name in classes_of(image, key):
            relevance = values if metric == "pointing_game" else np.abs(values)
            pixels = in_photo(image, relevance, 0.0)[None, None]
            region = near(image, name) if metric == "pointing_game" else image["regions"][name]
            region = region[None, None]
            photo = np.zeros((1, 3, *region.shape[2:]), dtype=np.float32)
            if pixels.min() == pixels.max():  # Quantus refuses these
                scores[metric, *key[:5], name] = (math.nan, 0)
                continue
            (value,) = scorer(
                model=None, x_batch=photo, y_batch=np.zeros(1, dtype=int), a_batch=pixels,
                s_batch=region, device="cpu",
            )  # fmt: skip
            scores[metric, *key[:5], name] = (float(value), 0)
    return scores


RANKED = ("pointing_game", "rank_accuracy")


def each(image: dict[str, Any]) -> Iterable[tuple[tuple[Any, ...], Any]]:
    """Keys and maps."""
    return zip(image["keys"], image["maps"], strict=True)


def classes_of(image: dict[str, Any], key: tuple[Any, ...]) -> list[str]:
    """The annotated classes that a map is scored on."""
    explained = {own[5] for own in image["keys"]}
    wanted = (key[5],) if key[5] else explained
    return [name for name in image["regions"] if name in wanted]


def near(image: dict[str, Any], name: str) -> Any:
    """The pixels less than 15 pixels from a region, computed once per image."""
    from scipy.ndimage import distance_transform_edt

    known = image.setdefault("near", {})
    if name not in known:
        known[name] = distance_transform_edt(~image["regions"][name]) < 15
    return known[name]


def upsampled(values: Any, height: int, width: int) -> Any:
    """Bilinear."""
    import torch
    from torch.nn.functional import interpolate

    tensor = torch.from_numpy(values)[None, None]
    return interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()


def in_photo(image: dict[str, Any], values: Any, fill: float) -> Any:
    """The map over the part of the photo that the network saw, `fill` around it."""
    left, top, width, height = image["view"]
    x0, y0, x1, y1 = (math.floor(v + 0.5) for v in (left, top, left + width, top + height))
    pixels = np.full((image["height"], image["width"]), fill, dtype=np.float32)
    pixels[y0:y1, x0:x1] = upsampled(values, y1 - y0, x1 - x0)
    return pixels


if __name__ == "__main__":
    main()
