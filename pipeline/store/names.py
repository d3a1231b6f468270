"""Every path inside OUT, in one place. All are relative to OUT, with `/` between the parts."""

META = "_meta"
PLAN = "_meta/plan.json"
MANIFEST = "_meta/manifest.parquet"
EVALUATION = "_meta/evaluation.json"
DATASET_INFO = "_meta/dataset_info.json"
COMMITS = "_meta/shards"
TEMPORARY = "_tmp"
WORKERS = "_tmp/workers"
CARD = "README.md"
SUCCESS = "_SUCCESS"
SCORES = "scores"
PICTURES = "pictures"
STATISTICS = "statistics/statistics.parquet"
STATISTICS_CSV = "statistics/statistics.csv"
STATISTICS_JSON = "statistics/statistics.json"

EVERYTHING = (
    SUCCESS,
    *("maps", "tars", "images", "errors", SCORES, "statistics", PICTURES),
    TEMPORARY,
    CARD,
    META,
)
"""All that a run, its evaluation and its pictures may write, in the order in which to delete it."""

_SHARD_FILES = {
    "maps": "maps/maps-{}.parquet",
    "images": "images/images-{}.parquet",
    "errors": "errors/errors-{}.parquet",
    "tars": "tars/maps-{}.tar",
    "scores": "scores/scores-{}.parquet",
}


def shard_file(kind: str, index: int, count: int) -> str:
    """The file of shard `index` of `count`; `kind` is maps, images, errors, tars or scores.

    >>> shard_file("maps", 7, 64)
    'maps/maps-00007-of-00064.parquet'
    """
    return _SHARD_FILES[kind].format(f"{index:05d}-of-{count:05d}")


def commit_file(index: int) -> str:
    """The commit record of shard `index`: `_meta/shards/00007.json`."""
    return f"{COMMITS}/{index:05d}.json"


def picture_file(name: str) -> str:
    """The picture of that name: `pictures/NAME.png`."""
    return f"{PICTURES}/{name}.png"
