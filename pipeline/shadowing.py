"""A module of the user that has the name of a package of Backlight.

Local worker processes start as `python -m …`, which looks for modules in the current folder first,
then in PYTHONPATH, and then among what is installed. So the user's own `pipeline.py` or
`transforms/` in one of these places hides Backlight's package from the workers. Where Backlight is
loaded already, it is the other way round: `--model transforms:net` never reaches the user's module.
This module loads nothing but the standard library and `pipeline.errors`.
"""

import os
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from pipeline.errors import SettingsError

PACKAGES = ("pipeline", "transforms")
"""The names that Backlight's own packages take."""


def check_not_shadowed() -> None:
    """Check that a new Python process finds Backlight's packages, and no module of the user.

    Raises:
        SettingsError: the message names the user's file and says what to do.
    """
    for name in PACKAGES:
        for folder in _folders(with_current=not os.environ.get("PYTHONSAFEPATH")):
            spec = PathFinder.find_spec(name, [folder])
            # A folder without __init__.py is found only where no package is.
            if spec is None or spec.origin is None:
                continue
            if not _is_backlights(spec):
                raise SettingsError(
                    f"{_path(spec)} hides Backlight's own package {name} from new Python "
                    f"processes: {_advice(spec, folder)}"
                )
            break


def check_not_hidden(module: str) -> None:
    """Check that no module of the user is meant by `module`, where Backlight's package hides it.

    Raises:
        SettingsError: the message names the user's file and says what to do.
    """
    name = module.partition(".")[0]
    if name not in PACKAGES:
        return
    for folder in _folders(with_current=True):
        spec = PathFinder.find_spec(name, [folder])
        if spec is not None and not _is_backlights(spec):
            raise SettingsError(
                f"{module} means Backlight's own package {name}, which hides {_path(spec)}: rename "
                f"the latter, such as to my_{name}"
            )


def _folders(*, with_current: bool) -> Iterator[str]:
    """Where a new process looks for modules before it looks among what is installed."""
    if with_current:
        yield os.getcwd()
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if entry:
            yield os.path.abspath(entry)


def _is_backlights(spec: ModuleSpec) -> bool:
    """Whether it is in the Backlight that runs, or in a checkout of it."""
    around = _path(spec).resolve().parent
    return all(
        (around / file).is_file() for file in ("pipeline/shadowing.py", "transforms/engine.py")
    )


def _path(spec: ModuleSpec) -> Path:
    """The file of a module, the folder of a package."""
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(str(spec.origin))


def _advice(spec: ModuleSpec, folder: str) -> str:
    if folder == os.getcwd():
        return "rename it, or run from another folder"
    return f"rename it, or take {folder} out of PYTHONPATH"
