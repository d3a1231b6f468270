"""Starting afresh: what a run, its evaluation and its pictures wrote is deleted, and nothing else.

What is deleted is named by a record of the run, or has the name of a file of a shard in a folder of
the run: a shard that was not committed yet has no record. Whatever else lies in OUT stays.
"""

import re
from collections.abc import Iterator

from pipeline import files
from pipeline.store import names
from pipeline.store.commit import commit_indexes
from pipeline.store.evaluation import read_evaluation
from pipeline.store.formats import FORMATS
from pipeline.store.manifest import Manifest
from pipeline.store.outline import has_plan


def clear(out: str) -> bool:
    """Delete what a run and its evaluation wrote to `out`, and nothing else; False: no run.

    The plan need not be readable. It stays until the next one replaces it, so that OUT is known as
    an output all the while; `_SUCCESS` and the commit records go first.
    """
    marks = (names.MANIFEST, names.SUCCESS)
    commits = [names.commit_file(index) for index in commit_indexes(out)]
    if not (commits or has_plan(out) or any(files.exists(files.join(out, m)) for m in marks)):
        return False
    pictures, derived = list(_pictures(out)), list(_derived(out))
    files.delete_for_good(files.join(out, names.SUCCESS))
    for path in commits:
        files.delete_for_good(files.join(out, path))
    for path in [*of_shards(out), *pictures, *derived, names.TEMPORARY]:
        files.delete(files.join(out, path))
    for folder in (*_folders(), names.PICTURES, "statistics", "comparison", names.COMMITS):
        files.delete_if_empty(files.join(out, folder))
    return True


def of_shards(out: str) -> Iterator[str]:
    """The files that have the name of a file of a shard, in the folders of a run."""
    for folder, name in _folders().items():
        pattern = re.escape(f"{folder}/{name}").replace(r"\{\}", r"\d{5,}-of-\d{5,}")
        yield from (path for path in files.listing(out, folder) if re.fullmatch(pattern, path))


def _folders() -> dict[str, str]:
    """The folders of a run and the names of their files; `{}` stands for the number."""
    own = (names.IMAGES, names.ERRORS, names.SCORES)
    of_maps = {each.folder: each.file_name for each in FORMATS.values()}
    return {**of_maps, **{name: f"{name}-{{}}.parquet" for name in own}}


def _derived(out: str) -> Iterator[str]:
    """What was made of the shards: the descriptions, statistics, comparisons and the report."""
    if files.exists(files.join(out, names.DATASET_INFO)):
        yield from (names.CARD, names.CROISSANT, names.DATASET_INFO)
    if read_evaluation(out) is not None:
        yield from (*names.STATISTICS_PATHS, names.EVALUATION)
    if files.exists(files.join(out, names.COMPARISON)):
        yield from (names.COMPARISON_CSV, names.COMPARISON_JSON, names.COMPARISON)
    if files.exists(files.join(out, names.REPORT)):
        yield names.REPORT


def _pictures(out: str) -> Iterator[str]:
    """The pictures of the run's images; none where the manifest cannot be read."""
    present = files.listing(out, names.PICTURES)
    if not present:
        return
    try:
        with Manifest(out) as manifest:
            for shard in manifest.image_ids():
                pictures = (
                    names.picture_file(i + end) for i in shard for end in ("", "-grid", "-compare")
                )
                yield from (path for path in pictures if path in present)
    except (OSError, ValueError):
        return
