"""Starting afresh: everything that a run, its evaluation and its pictures wrote is deleted."""

from pipeline import files
from pipeline.store import names
from pipeline.store.formats import FORMATS


def clear(out: str) -> bool:
    """Delete what a run and its evaluation wrote to `out`, and nothing else; False: no run.

    `_SUCCESS` goes first and the plan last, so that a deletion that broke off is seen as one.
    """
    found = files.exists(files.join(out, names.PLAN))
    if found:
        for name in (
            names.SUCCESS,
            *(each.folder for each in FORMATS.values()),
            *(names.IMAGES, names.ERRORS, names.SCORES, *names.STATISTICS_FILES, names.PICTURES),
            *("comparison", names.COMPARISON_CSV, names.COMPARISON_JSON),
            names.TEMPORARY,
            names.CARD,
            names.META,
        ):
            files.delete(files.join(out, name))
    return found
