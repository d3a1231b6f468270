"""`backlight status`: how far a run is."""

from collections.abc import Mapping
from typing import Any

import click

from pipeline.cli.options import GroupedCommand, json_option, out_argument
from pipeline.cli.output import print_json


@click.command("status", short_help="Tell how far a run is.", cls=GroupedCommand)
@json_option
@out_argument
def command(out: str, as_json: bool) -> None:
    """Tell how far the run in OUT is. Works from any shell while it runs."""
    from pipeline import files
    from pipeline.report.amounts import in_bytes
    from pipeline.store import names
    from pipeline.store.commit import committed
    from pipeline.store.outline import read_outline, scored_shards

    outline = read_outline(out)
    records = [record for record in committed(out) if record.run_id == outline.run_id]
    found: dict[str, Any] = {
        "run_id": outline.run_id,
        "complete": files.exists(files.join(out, names.SUCCESS)),
        "shards": len(records),
        "planned_shards": outline.shards,
        "images": sum(record.images for record in records),
        "errors": sum(record.errors for record in records),
        "planned_images": outline.examples,
        "maps": sum(record.maps + record.unkept_maps for record in records),
        "planned_maps": outline.planned_maps,
        "bytes": sum(entry.bytes for record in records for entry in record.files.values()),
        "worker_seconds": round(sum(_seconds(record.extra) for record in records), 1),
        "scored_shards": scored_shards(out),
    }
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):15} {in_bytes(value) if name == 'bytes' else value}")


def _seconds(extra: Mapping[str, Any]) -> float:
    """How long a worker took for a shard; 0 where the record does not say."""
    seconds = extra.get("seconds")
    total = seconds.get("total") if isinstance(seconds, dict) else None
    return total if isinstance(total, int | float) else 0.0
