"""Photos lie below the root, whatever a dataset writes and wherever a link leads."""

import os
from collections.abc import Iterable
from functools import lru_cache

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.notes import Notes
from pipeline.photo_bytes import file_of


def check_inside(
    folder: str, paths: Iterable[str], annotations: str | None, *, follow_links: bool
) -> None:
    """Check that no photo lies outside of a folder; costs a `stat` per local file.

    Args:
        folder: of the dataset, a path or a URL.
        paths: of the photos, relative to it, also in archives and tables.
        annotations: the file of annotations, which may hold the photos and was named by the user.
        follow_links: whether links may lead out.

    Raises:
        SettingsError: photos lie outside; with their number and the first names.
    """
    found = Notes()
    local = not files.is_object_store(folder)
    top = os.path.realpath(folder) if local else folder
    own = None if annotations is None else os.path.realpath(annotations)

    @lru_cache
    def real(inner: str) -> str:
        return os.path.realpath(os.path.join(folder, inner))

    before = None
    for path in paths:
        file = file_of(path)
        if file == before:
            continue  # of the same archive
        before = file
        inner, name = os.path.split(file)
        if os.path.isabs(file) or ".." in file.split("/"):
            if not local or os.path.realpath(os.path.join(folder, file)) != own:
                found.add("path", "not below --root", file)
        elif local and not follow_links:
            whole = os.path.join(real(inner), name)
            if os.path.islink(whole):
                whole = os.path.realpath(whole)
            if not (whole == own or whole.startswith(os.path.join(top, ""))):
                found.add("photo", "not below --root, by a link", file)
    for note in found.all():
        to_do = "; --follow-links reads them" if note.noun == "photo" else ""
        raise SettingsError(f"{note}. Give the folder that holds all photos as --root{to_do}")
