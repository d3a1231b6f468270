"""The end of a run: it is checked, described, and marked as whole by `_SUCCESS`."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline import files
from pipeline.errors import BacklightError
from pipeline.files import HashedFile
from pipeline.store import names, schemas
from pipeline.store.card import dataset_card
from pipeline.store.commit import all_names, committed, problems_of
from pipeline.store.formats import FORMATS


class IncompleteRunError(BacklightError):
    """The run cannot be finalised: the message says what is missing and how to go on."""


def finalise(
    out: str,
    run_id: str,
    shard_count: int,
    planned_maps: int,
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Check that the run is whole, describe it, and write `_SUCCESS`; returns `dataset_info.json`.

    `about` is what the dataset card says of the run (for instance Model, Source, Licence).

    Raises:
        IncompleteRunError: when a shard is missing, or maps + lost maps are not `planned_maps`.
    """
    records = committed(out)
    if problems := problems_of(out, records, run_id, shard_count):
        raise IncompleteRunError(f"{problems[0]}; run the same command again to write what is left")
    maps, lost = sum(r.maps for r in records), sum(r.lost_maps for r in records)
    unkept = sum(r.unkept_maps for r in records)
    if (found := maps + lost + unkept) != planned_maps:
        raise IncompleteRunError(
            f"{maps} maps written, {unkept} not kept and {lost} lost to errors make {found}, but "
            f"the plan has {planned_maps}; the plan and the shards are not of one run: start "
            "afresh with --overwrite"
        )
    first = records[0]
    info = {
        "schema_version": schemas.SCHEMA_VERSION,
        "run_id": run_id,
        "shards": shard_count,
        "images": sum(r.images for r in records),
        "maps": maps,
        "errors": sum(r.errors for r in records),
        "lost_maps": lost,
        "unkept_maps": unkept,
        "planned_maps": planned_maps,
        "bytes": sum(entry.bytes for r in records for entry in r.files.values()),
        "formats": [name for name, f in FORMATS.items() if f.path(0, shard_count) in first.files],
        "map_dtype": first.map_dtype,
        **{f"{name}s": all_names(records, name) for name in first.names},
        "versions": first.versions,
        "conventions": schemas.CONVENTIONS,
        "about": dict(about or {}),
    }
    files.write_text(out, names.DATASET_INFO, json.dumps(info, indent=1))
    files.write_text(out, names.CARD, dataset_card(info))
    remove_temporary(out)
    if files.is_object_store(out):
        files.write_text(out, names.SUCCESS, "")
    else:
        with HashedFile(files.join(out, names.SUCCESS)):
            pass  # not through `_tmp`, which must be gone by now
    return info


def remove_temporary(out: str) -> None:
    """Delete `_tmp` with what crashed workers left; call it only while no worker writes."""
    files.delete(files.join(out, names.TEMPORARY))
