"""Is OUT as it was written? Every byte of every file is read again.

The files of a shard are compared with its commit record, the records with the plan and the
manifest, what the files hold with all of these, and what is derived (the card, the description,
scores, statistics) with what vouches for it. Nothing is changed: that is for
`pipeline.store.repair`.

Not covered, because no record names them: the pictures of `show` and the tables of `compare`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names, schemas
from pipeline.store.commit import (
    LISTED,
    CommitRecord,
    commit_indexes,
    committed,
    entry_of,
    problems_of,
)
from pipeline.store.evaluation import read_evaluation, statistics_problems
from pipeline.store.finalise import finish_problems
from pipeline.store.formats import FORMATS
from pipeline.store.manifest import Manifest
from pipeline.store.outline import RunOutline, has_plan, plan_problems, read_outline
from pipeline.store.parquet import opened, read_rows
from pipeline.store.problems import Problem
from pipeline.store.small_files import read_tables

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError)
"""What readers raise on broken files; Arrow's errors and those of a tar are among them."""

_SHOWN = 3


def verify(out: str) -> list[Problem]:
    """Every problem of OUT; empty where all is well.

    Memory: the ids of all images; the keys of a shard's maps, and what the reader of its format
    needs; the scores of a shard.

    Raises:
        SettingsError: there is nothing of a run in OUT.
    """
    indexes, records = commit_indexes(out), committed(out)
    if not indexes and not has_plan(out):
        raise SettingsError(f"{out} holds no run: it has no plan and no shard; check the path")
    problems = plan_problems(out)
    outline = None if problems else read_outline(out)
    run_id, count = (outline.run_id, outline.shards) if outline else _most_common(records)
    problems += problems_of(out, records, run_id, count)
    for index in sorted(set(indexes) - {record.index for record in records}):
        path = names.commit_file(index)
        problems.append(Problem("record", path, f"{path} cannot be read", index))
    planned = _Planned(out, outline)
    problems += planned.problems
    seen: set[str] = set()
    for record in records:
        if record.run_id == run_id:
            problems += _shard(out, record, planned.of_shard(record.index), seen)
    if outline and len(records) == count:
        found = sum(record.planned_maps for record in records)
        if found != outline.planned_maps:
            what = f"the records have {found} maps in all, the plan has {outline.planned_maps}"
            problems.append(Problem("record", names.COMMITS, what))
    finish = finish_problems(out, run_id, by_hash=True)
    problems += finish
    problems += _evaluation(out, records, run_id)
    problems += _leftovers(out, records, in_progress=bool(finish))
    return problems


def _most_common(records: Sequence[CommitRecord]) -> tuple[str, int]:
    """Run id and number of shards that most records have; for want of a plan."""
    found = Counter((record.run_id, record.count) for record in records)
    return found.most_common(1)[0][0] if found else ("", 0)


class _Planned:
    """The ids of the manifest, shard by shard, and what is wrong with the manifest."""

    def __init__(self, out: str, outline: RunOutline | None) -> None:
        self.problems: list[Problem] = []
        self._of_shard: list[list[str]] = []
        try:
            with Manifest(out) as manifest:
                run_id, self._of_shard = manifest.run_id, list(manifest.image_ids())
        except FileNotFoundError:
            self._add("is missing")
            return
        except _BROKEN as error:
            self._add(f"cannot be read: {_short(error)}")
            return
        ids = [image_id for shard in self._of_shard for image_id in shard]
        if repeated := _repeated(ids):
            what = f"{names.MANIFEST} has {_some(repeated)} more than once"
            self.problems.append(Problem("duplicate", names.MANIFEST, what))
        if outline and run_id != outline.run_id:
            self._add(f"is of another run ({run_id})")
        elif outline and (len(ids), len(self._of_shard)) != (outline.examples, outline.shards):
            self._add(
                f"has {len(ids)} images in {len(self._of_shard)} shards, the plan has "
                f"{outline.examples} in {outline.shards}"
            )
        if self.problems:
            self._of_shard = []

    def of_shard(self, index: int) -> list[str] | None:
        """The planned ids of a shard; None where the manifest does not tell."""
        return self._of_shard[index] if index < len(self._of_shard) else None

    def _add(self, what: str) -> None:
        self.problems.append(Problem("manifest", names.MANIFEST, f"{names.MANIFEST} {what}"))


def _shard(
    out: str, record: CommitRecord, planned: Sequence[str] | None, seen: set[str]
) -> Iterator[Problem]:
    """What is wrong with the files of a shard; image ids go to `seen`."""
    sound = True
    small: dict[str, bytes] = {}  # the files that are no maps, with their content
    map_files = {each.path(record.index, record.count) for each in FORMATS.values()}
    for path, entry in record.files.items():
        place = files.join(out, path)
        try:
            if path in map_files:
                sha256 = files.hash_of(place)
            else:
                small[path] = files.read_bytes(place)
                sha256 = entry_of(small[path]).sha256
            if sha256 != entry.sha256:
                what = f"{path} has changed since it was committed (SHA-256)"
                yield Problem("changed", path, what, record.index)
                sound = False
        except FileNotFoundError:  # `problems_of` has named it
            sound = False
        except OSError as error:
            what = f"{path} cannot be read: {_short(error)}"
            yield Problem("changed", path, what, record.index)
            sound = False
    if not sound:
        return
    try:
        yield from _content(out, record, planned, seen, small)
    except _BROKEN as error:
        path = names.commit_file(record.index)
        what = f"{path} names files that do not fit it: {_short(error)}"
        yield Problem("content", path, what, record.index)


class _Tally(NamedTuple):
    """A number in a commit record, and what the files have."""

    what: str
    recorded: int
    found: int


def _content(
    out: str,
    record: CommitRecord,
    planned: Sequence[str] | None,
    seen: set[str],
    small: Mapping[str, bytes],
) -> Iterator[Problem]:
    """What the files of a shard hold, compared with its record and with the plan.

    `small` has the content of those that are no maps.
    """

    def problem(kind: str, what: str, path: str = names.commit_file(record.index)) -> Problem:
        return Problem(kind, path, f"{path} {what}", record.index)

    shard = record.index, record.count
    images_file, errors_file = (names.shard_file(n, *shard) for n in (names.IMAGES, names.ERRORS))
    parquet = [p for p in record.files if p.endswith(".parquet")]
    for path in parquet:
        if (run_id := _run_id(files.join(out, path), small.get(path))) != record.run_id:
            yield problem("content", f"says that it is of run {run_id}", path)

    def rows(path: str, columns: list[str]) -> pa.Table:
        return read_rows(files.join(out, path), columns, content=small[path])

    images = rows(images_file, ["image_id"])["image_id"].to_pylist()
    errors = rows(errors_file, ["image_id", "planned_maps"])
    ids = [*images, *errors["image_id"].to_pylist()]
    if repeated := sorted({*_repeated(ids), *(seen & set(ids))}):
        yield problem("duplicate", f"has {_some(repeated)} more than once", images_file)
    seen.update(ids)
    if planned is not None and set(ids) != set(planned):
        absent = [image_id for image_id in planned if image_id not in set(ids)]
        other = sorted(set(ids) - set(planned))
        what = [f"lacks {_some(absent)}"] * bool(absent) + [f"has {_some(other)}"] * bool(other)
        yield problem("content", f"differs from the manifest: it {' and '.join(what)}", images_file)
    elif planned is not None and images != [i for i in planned if i in set(images)]:
        yield problem("content", "has another order than the manifest", images_file)
    tallies = [
        _Tally("images", record.images, len(images)),
        _Tally("errors", record.errors, errors.num_rows),
        _Tally("lost maps", record.lost_maps, sum(errors["planned_maps"].to_pylist())),
        _Tally(
            "planned maps", record.planned_maps, record.maps + record.lost_maps + record.unkept_maps
        ),
    ]
    for stored in FORMATS.values():
        path = stored.path(*shard)
        if path not in record.files:
            continue
        columns = [*schemas.MAP_ORDER, "is_finite"]
        maps = stored.read_table(files.join(out, path), record.map_dtype, {}, columns)
        tallies.append(_Tally("maps", record.maps, maps.num_rows))
        keys = zip(*(maps[name].to_pylist() for name in schemas.MAP_ORDER), strict=True)
        distinct = len(set(keys))
        if distinct != maps.num_rows:
            yield problem("duplicate", f"has {maps.num_rows - distinct} maps twice", path)
        if other := sorted(set(maps["image_id"].unique().to_pylist()) - set(images)):
            yield problem("content", f"has maps of {_some(other)}, not in {images_file}", path)
        for name in LISTED:
            found = sorted(maps[name].unique().to_pylist())
            if found != record.names[name]:
                yield problem("record", f"lists other {name}s than {path} has")
        if odd := maps.num_rows - sum(maps["is_finite"].to_pylist()):
            yield problem("not_finite", f"has {odd} maps that are not finite", path)
    for tally in tallies:
        if tally.recorded != tally.found:
            yield problem("record", f"says {tally.recorded} {tally.what}, there are {tally.found}")


def _evaluation(out: str, records: Sequence[CommitRecord], run_id: str) -> Iterator[Problem]:
    """What is wrong with the scores and the statistics, if OUT was evaluated."""
    present = files.listing(out, names.SCORES)
    for record in records:
        path = names.shard_file(names.SCORES, record.index, record.count)
        if path in present:
            yield from _scores(out, record, path)
    written = files.sizes(files.join(out, path) for path in names.STATISTICS_PATHS)
    evaluation = read_evaluation(out)
    if evaluation is not None and evaluation.get("run_id") != run_id:
        what = f"{names.EVALUATION} is of another run ({evaluation.get('run_id')})"
        yield Problem("statistics", names.EVALUATION, what)
    elif evaluation is not None or written or present:
        yield from statistics_problems(out, by_hash=True)


def _scores(out: str, record: CommitRecord, path: str) -> Iterator[Problem]:
    def problem(what: str) -> Problem:
        return Problem("scores", path, f"{path} {what}")

    place = files.join(out, path)
    try:
        content = files.read_bytes(place)
        run_id = _run_id(place, content)
        scored = set(read_rows(place, content=content)["image_id"].unique().to_pylist())
    except _BROKEN as error:
        yield problem(f"cannot be read: {_short(error)}")
        return
    if run_id != record.run_id:
        yield problem(f"says that it is of run {run_id}")
    try:
        images_file = names.shard_file(names.IMAGES, record.index, record.count)
        (table,) = read_tables(out, [images_file], ["image_id"])
    except _BROKEN:  # named already
        return
    if other := sorted(scored - set(table["image_id"].to_pylist())):
        yield problem(f"has scores of {_some(other)}, not in {images_file}")


def _leftovers(
    out: str, records: Sequence[CommitRecord], *, in_progress: bool
) -> Iterator[Problem]:
    """Files in the folders of the run that belong to nothing."""
    known = {path for record in records for path in record.files}
    known |= {names.shard_file(names.SCORES, r.index, r.count) for r in records}
    known |= {names.STATISTICS, *map(names.commit_file, commit_indexes(out))}
    folders = [names.IMAGES, names.ERRORS, names.SCORES, names.STATISTICS.split("/")[0]]
    for folder in (*folders, *(each.folder for each in FORMATS.values()), names.COMMITS):
        for path in files.listing(out, folder):
            if path not in known:
                yield Problem("leftover", path, f"{path} belongs to no committed shard")
    if not in_progress:  # otherwise workers may be writing there
        for path in files.below(files.join(out, names.TEMPORARY)):
            path = f"{names.TEMPORARY}/{path}"
            yield Problem("leftover", path, f"{path} was left by a run that broke off")


def _run_id(path: str, content: bytes | None) -> str:
    """The run that a Parquet file says it belongs to; `content` where it was fetched."""
    with opened(path, content) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
    return str(metadata.get(schemas.RUN_ID, b"").decode())


def _repeated(ids: Sequence[str]) -> list[str]:
    return [image_id for image_id, times in Counter(ids).items() if times > 1]


def _some(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return f"{len(ids)} images ({', '.join(ids[:_SHOWN])}{more})"


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
