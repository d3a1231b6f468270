"""Is OUT as it was written? Every byte of every file is read again."""

from pipeline import files
from pipeline.store import names
from pipeline.store.commit import committed, problems_of
from pipeline.store.formats import FORMATS


def verify(out: str) -> list[str]:
    """Every problem of OUT, in words; empty where all is well."""
    records = committed(out)
    if not records:
        return [f"{out} has no committed shard"]
    first = records[0]
    problems = problems_of(out, records, first.run_id, first.count)
    known: set[str] = set()
    for record in records:
        known |= record.files.keys()
        for path, entry in record.files.items():
            try:
                changed = files.hash_of(files.join(out, path)) != entry.sha256
            except OSError:
                continue  # `problems_of` has named it
            if changed:
                problems.append(f"{path} has changed since it was committed (SHA-256)")
    for folder in (names.IMAGES, names.ERRORS, *(each.folder for each in FORMATS.values())):
        strays = files.listing(out, folder).keys() - known
        problems += [f"{path} belongs to no committed shard" for path in sorted(strays)]
    if not files.exists(files.join(out, names.SUCCESS)):
        problems.append("_SUCCESS is absent: the run has not been finalised")
    return problems
