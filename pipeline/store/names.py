"""The paths inside OUT, relative to it, with `/` between the parts.

Those of the maps are in the entries of `pipeline.store.formats`.
"""

from pipeline import files

META = "_meta"
PLAN = "_meta/plan.json"
MANIFEST = "_meta/manifest.parquet"
EVALUATION = "_meta/evaluation.json"
DATASET_INFO = "_meta/dataset_info.json"
COMMITS = "_meta/shards"
TEMPORARY = files.TEMPORARY
WORKERS = f"{TEMPORARY}/workers"
MADE = f"{TEMPORARY}/made"
SCORED = f"{TEMPORARY}/scored"
"""The counts of the images whose maps a job has made, and of those that it has scored."""

PLANNING = f"{TEMPORARY}/planning"
EXPLAINING = f"{TEMPORARY}/explaining"
SCORING = f"{TEMPORARY}/scoring"
"""The notes of the shards that workers are on: `pipeline.workers.shard_notes`.

Planning, which tries the model on the first photos, notes shard 0.
"""

LOCK = "_lock"
"""Whose OUT is: `pipeline.store.lock`."""

CARD = "README.md"
CROISSANT = "croissant.json"
SUCCESS = "_SUCCESS"
IMAGES = "images"
ERRORS = "errors"
SCORES = "scores"
PICTURES = "pictures"
REPORT = "report.html"
STATISTICS = "statistics/statistics.parquet"
STATISTICS_CSV = "statistics.csv"
STATISTICS_JSON = "statistics.json"
STATISTICS_FILES = ("statistics", STATISTICS_CSV, STATISTICS_JSON)
"""All that statistics are in. The folder has Parquet alone, so that pandas reads it whole."""
STATISTICS_PATHS = (STATISTICS, STATISTICS_CSV, STATISTICS_JSON)
"""The files of statistics."""

COMPARISON = "comparison/comparison.parquet"
COMPARISON_CSV = "comparison.csv"
COMPARISON_JSON = "comparison.json"


def shard_file(folder: str, index: int, count: int) -> str:
    """The Parquet file of shard `index` of `count` in `images`, `errors` or `scores`.

    >>> shard_file("images", 7, 64)
    'images/images-00007-of-00064.parquet'
    """
    return f"{folder}/{folder}-{numbered(index, count)}.parquet"


def numbered(index: int, count: int) -> str:
    """The part of a file's name that says which shard it is of: `00007-of-00064`."""
    return f"{index:05d}-of-{count:05d}"


def commit_file(index: int) -> str:
    """The commit record of shard `index`: `_meta/shards/00007.json`."""
    return f"{COMMITS}/{index:05d}.json"


def picture_file(name: str, suffix: str = "png") -> str:
    """The picture of that name: `pictures/NAME.png`."""
    return f"{PICTURES}/{name}.{suffix}"
