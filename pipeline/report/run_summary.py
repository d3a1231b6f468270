"""What was run, in words."""

from collections.abc import Sequence

from pipeline.compare import in_words
from pipeline.plan import read_plan
from pipeline.report.amounts import in_bytes
from pipeline.report.reported_run import Reported


def run_summary(run: Reported) -> list[str]:
    """Sentences on what was run, what came of it, and how it was scored."""
    return [_made(run), _failed(run), _input(run), _scored(run)]


def _made(run: Reported) -> str:
    settings = run.settings
    weights = settings["weights"]
    model = settings["model"]
    if weights:
        model += f" with the weights {weights.rsplit('/', 1)[-1]}"
    source = settings["source"]
    if settings.get("split"):
        source += f", split {settings['split']}"
    done, planned = run.count("images"), run.planned
    images = f"{done:,} images" if done == planned else f"{done:,} of {planned:,} images"
    kinds = " × ".join(
        _counted(settings[name], name[:-1]) for name in ("methods", "layers", "variants")
    )
    maps, unkept = run.count("maps"), run.count("unkept_maps")
    text = (
        f"{model} is explained on {images} ({source}): {kinds}, for the classes of "
        f"{'role' if len(settings['roles']) == 1 else 'roles'} {in_words(settings['roles'])}. "
    )
    if unkept:
        return text + (
            f"That makes {maps + unkept:,} maps, of which {maps:,} were kept "
            f"({in_bytes(run.bytes)})."
        )
    return text + f"That makes {maps:,} maps ({in_bytes(run.bytes)}, {settings['map_dtype']})."


def _failed(run: Reported) -> str:
    errors = run.count("errors")
    if not errors:
        return "No image failed."
    which = "1 image" if errors == 1 else f"{errors:,} images"
    return f"{which} failed, which cost {run.count('lost_maps'):,} maps; errors/ says why."


def _input(run: Reported) -> str:
    return f"Input: {read_plan(run.dataset.out).input_in_words}."


def _scored(run: Reported) -> str:
    if run.missing:
        return f"Not scored: {run.missing}."
    scoring = run.scoring
    scored = set(run.statistics["metric"].unique().to_pylist())
    text = f"Scored by {in_words([name for name in scoring['metrics'] if name in scored])}"
    if scoring["upsamplings"]:
        text += f"; maps are upsampled {in_words(scoring['upsamplings'])}"
    if run.localisation and scoring["regions"]:
        text += f"; the pixels of an object are those of {in_words(scoring['regions'])}"
    if scoring["combinations"]:
        text += f"; also maps combined over layers ({in_words(list(scoring['combinations']))})"
    if scoring.get("difficult"):
        text += "; also the difficult subset alone"
    if without := [name for name in scoring["metrics"] if name not in scored]:
        text += f"; {in_words(without)} found no maps to score"
    return text + (
        f". Intervals are of 95 % over images ({scoring['replicates']:,} replicates of the "
        "bootstrap, or a formula where one holds)."
    )


def _counted(items: Sequence[str], noun: str) -> str:
    return f"1 {noun}" if len(items) == 1 else f"{len(items)} {noun}s"
