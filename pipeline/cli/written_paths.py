"""Where a command wrote what, for the summary that `--json` prints."""

from collections.abc import Mapping

from pipeline import files
from pipeline.store import names

PLAN_PATHS = {"card": names.CARD, "plan": names.PLAN, "errors": names.ERRORS}
STATISTICS_PATHS = {
    "scores": names.SCORES,
    "statistics": names.STATISTICS,
    "statistics_csv": names.STATISTICS_CSV,
    "statistics_json": names.STATISTICS_JSON,
}


def written_paths(out: str, *named: Mapping[str, str]) -> dict[str, str]:
    """Where things are, by name: OUT itself, and files and folders of it."""
    found = {name: path for paths in named for name, path in paths.items()}
    return {"out": out, **{name: files.join(out, path) for name, path in found.items()}}
