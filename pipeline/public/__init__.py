"""Backlight: datasets of saliency maps, for every method, layer and class, and their statistics.

    import backlight

    with backlight.Explainer(model, ["layer3", "layer4"], ["normgrad", "grad_cam"]) as explainer:
        maps = explainer(images, targets)              # maps["normgrad", "layer4"]: [B, K, h, w]

    config = backlight.RunConfig(source="imagefolder", root="photos", model="resnet50", ...)
    backlight.generate(config, "out")                  # writes the maps of a dataset
    backlight.evaluate("out")                          # scores them; writes the statistics
    backlight.compare("out")                           # which methods can be told apart
    backlight.report("out")                            # all of it as one page, out/report.html
    backlight.MapDataset("out").frame(method="normgrad", layer="layer4")

Names are imported when they are first used: `import backlight` costs nothing, `MapDataset` loads
pyarrow, and what computes loads torch.
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.compare import compare as compare
    from pipeline.compare import findings as findings
    from pipeline.config import RunConfig as RunConfig
    from pipeline.errors import BacklightError as BacklightError
    from pipeline.errors import SettingsError as SettingsError
    from pipeline.evaluate import Evaluation as Evaluation
    from pipeline.evaluate import ScoreMaps as ScoreMaps
    from pipeline.evaluate import evaluate as evaluate
    from pipeline.generate import GenerateMaps as GenerateMaps
    from pipeline.generate import RunSummary as RunSummary
    from pipeline.generate import generate as generate
    from pipeline.plan import Plan as Plan
    from pipeline.plan import read_plan as read_plan
    from pipeline.planning import make_plan as make_plan
    from pipeline.report.html_report import WrittenReport as WrittenReport
    from pipeline.report.html_report import report as report
    from pipeline.roles import ROLES as ROLES
    from pipeline.sources import SOURCES as SOURCES
    from pipeline.store import MapDataset as MapDataset
    from pipeline.store.comparison import Comparison as Comparison
    from pipeline.store.comparison import Question as Question
    from pipeline.store.formats import FORMATS as FORMATS
    from pipeline.workers.execution import Execution as Execution
    from transforms.aggregate import AGGREGATES as AGGREGATES
    from transforms.cam import WEIGHTINGS as WEIGHTINGS
    from transforms.engine import Explainer as Explainer
    from transforms.extract import EXTRACTS as EXTRACTS
    from transforms.map_key import MapKey as MapKey
    from transforms.methods import METHODS as METHODS
    from transforms.metrics import METRICS as METRICS
    from transforms.rules import RULES as RULES
    from transforms.statistics.statistic import Statistic as Statistic
    from transforms.variant_maps import explain_variants as explain_variants

_HOME = {
    "AGGREGATES": "transforms.aggregate",
    "BacklightError": "pipeline.errors",
    "Comparison": "pipeline.store.comparison",
    "EXTRACTS": "transforms.extract",
    "Evaluation": "pipeline.evaluate",
    "Execution": "pipeline.workers.execution",
    "Explainer": "transforms.engine",
    "FORMATS": "pipeline.store.formats",
    "GenerateMaps": "pipeline.generate",
    "METHODS": "transforms.methods",
    "METRICS": "transforms.metrics",
    "MapDataset": "pipeline.store",
    "MapKey": "transforms.map_key",
    "Plan": "pipeline.plan",
    "Question": "pipeline.store.comparison",
    "ROLES": "pipeline.roles",
    "RULES": "transforms.rules",
    "RunConfig": "pipeline.config",
    "RunSummary": "pipeline.generate",
    "SOURCES": "pipeline.sources",
    "ScoreMaps": "pipeline.evaluate",
    "SettingsError": "pipeline.errors",
    "Statistic": "transforms.statistics.statistic",
    "WEIGHTINGS": "transforms.cam",
    "WrittenReport": "pipeline.report.html_report",
    "compare": "pipeline.compare",
    "evaluate": "pipeline.evaluate",
    "explain_variants": "transforms.variant_maps",
    "findings": "pipeline.compare",
    "generate": "pipeline.generate",
    "make_plan": "pipeline.planning",
    "read_plan": "pipeline.plan",
    "report": "pipeline.report.html_report",
}

__all__ = sorted(_HOME)

_MARKS = {"pipeline": "shadowing.py", "transforms": "engine.py"}
"""A file of each of Backlight's two packages, which tells it from another of the same name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"backlight has no {name!r}; it has: {', '.join(__all__)}")
    # Beam warns of every optional client that is not installed, needed or not.
    root = logging.getLogger()
    root.addFilter(_is_no_warning)
    try:
        value = getattr(import_module(_HOME[name]), name)
    finally:
        root.removeFilter(_is_no_warning)
    globals()[name] = value
    return value


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]


def _check_not_hidden() -> None:
    """Another module of the same name, earlier on the path, would be imported in Backlight's place.

    Raises:
        ImportError: there is one.
    """
    for package, mark in _MARKS.items():
        spec = find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not any((Path(place) / mark).is_file() for place in places):
            found = spec.origin if spec else "nothing"
            raise ImportError(
                f"backlight needs its own package {package!r}, and Python finds {found} first: "
                "rename that module, or start Python in another folder"
            )


_check_not_hidden()
