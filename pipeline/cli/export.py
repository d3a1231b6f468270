"""`backlight export`: a run for other programs."""

import click

from pipeline.cli.options import (
    CommaList,
    GroupedCommand,
    OneOf,
    UserPath,
    json_option,
    option,
    out_argument,
    quiet_option,
)
from pipeline.cli.output import error_console, note, print_json
from pipeline.export.fiftyone_documents import PHOTOS


@click.group("export", short_help="Write a run for other programs.")
def command() -> None:
    """Write the maps and the scores of a run for other programs."""


@command.command("fiftyone", cls=GroupedCommand)
@option("--methods", type=CommaList(), metavar="NAMES", help="[default: all]")
@option("--layers", type=CommaList(), metavar="NAMES", help="[default: all]")
@option("--roles", type=CommaList(), metavar="NAMES", help="[default: all]")
@option("--variant", default="base", show_default=True, metavar="NAME", help="variant of the model")
@option(
    "--photos",
    type=OneOf(PHOTOS),
    default="original",
    show_default=True,
    help="where FiftyOne finds the photos: where they are, by links in FOLDER, or by copies, which "
    "can go elsewhere with FOLDER; those of archives are always copied",
)
@option("--overwrite", is_flag=True, help="replace an earlier export in FOLDER")
@json_option
@quiet_option
@out_argument
@click.argument("folder", type=UserPath(), required=False, metavar="[FOLDER]")
def fiftyone(
    out: str,
    folder: str | None,
    methods: tuple[str, ...] | None,
    layers: tuple[str, ...] | None,
    roles: tuple[str, ...] | None,
    variant: str,
    photos: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a dataset of FiftyOne to FOLDER (by default OUT-fiftyone).

    A sample is an image and an explained class, with a heatmap and the scores of every method and
    layer. FiftyOne loads it: fiftyone.Dataset.from_dir(FOLDER,
    dataset_type=fiftyone.types.FiftyOneDataset).
    """
    from pipeline.progress import RunProgress

    with RunProgress(error_console(quiet or as_json), "export", "images") as progress:
        progress.phase("loading PyTorch")
        from pipeline.export.fiftyone import export_fiftyone

        progress.phase("reading the maps")
        done = export_fiftyone(
            out,
            folder,
            methods=methods,
            layers=layers,
            roles=roles,
            variant=variant,
            photos=photos,
            overwrite=overwrite,
            on_start=progress.start,
            on_image=progress.add,
        )
        progress.finish()
    if as_json:
        print_json(vars(done))
        return
    if done.shards < done.planned_shards:
        note(
            quiet,
            f"note: the run is not complete; these are {done.shards} of its "
            f"{done.planned_shards} shards",
        )
    if not done.is_scored:
        note(quiet, f"note: no scores, as {out} is not evaluated: run backlight evaluate {out}")
    left_out = {
        "maps are not finite and are left out": done.not_finite,
        "scores are undefined and are left out": done.undefined,
        "scores of maps with one for each class of objects are left out": done.of_several,
        "photos are not where the plan says; their samples have no picture": done.without_photo,
        "photos of archives were copied": done.extracted,
    }
    for what, count in left_out.items():
        if count:
            note(quiet, f"note: {count:,} {what}")
    note(
        quiet,
        f"wrote {done.samples:,} samples of {done.images:,} images, with {done.heatmaps:,} "
        f"heatmaps and {done.scores:,} scores. {done.folder}",
    )
