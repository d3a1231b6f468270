"""`backlight show`: a picture of one image's maps."""

from pathlib import PurePath

import click

from pipeline.cli.options import CommaList, GroupedCommand, OneOf, UserPath, option, out_argument
from pipeline.errors import SettingsError
from pipeline.roles import ROLES
from transforms.names import NEAREST, SHOWN
from transforms.upsampling import UPSAMPLINGS


@click.command("show", short_help="Draw the maps of one image over its photo.", cls=GroupedCommand)
@option(
    "--role",
    metavar="ROLE",
    help=f"why the classes to show were chosen: {', '.join(ROLES)}  [default: label, or else top]",
)
@option(
    "--classes",
    type=CommaList(),
    metavar="NAMES",
    help="classes of the role, by name or index, or all  [default: those that fit on a handy page]",
)
@option(
    "--methods",
    type=CommaList(),
    metavar="NAMES",
    help="rows, from the top  [default: all, or those that fit]",
)
@option(
    "--layers", type=CommaList(), metavar="NAMES", help="columns  [default: all, or those that fit]"
)
@option(
    "--compare",
    type=CommaList(),
    metavar="METHODS",
    help="put these methods side by side, with the rank correlation of each map with the first's",
)
@option("--variant", default="base", show_default=True, metavar="NAME", help="variant of the model")
@option(
    "--score",
    metavar="METRIC",
    help="score below each map, or none  [default: the first that the run has]",
)
@option("--scales", is_flag=True, help="show the scale of each map below it")
@option(
    "--upsample",
    type=OneOf(UPSAMPLINGS),
    default="bilinear",
    show_default=True,
    help="how maps are brought to pixels",
)
@option("--grid", is_flag=True, help="show every extract × aggregate instead, computed here")
@option(
    "--output",
    type=UserPath(),
    metavar="FILE",
    help="file to write: .png, .jpg, .webp, .pdf or .svg  [default: OUT/pictures/IMAGE_ID.png]",
)
@option(
    "--inline/--no-inline",
    default=True,
    help="show the picture in the terminal, too, where it can  [default: inline]",
)
@out_argument
@click.argument("image_id", metavar="IMAGE_ID", required=False)
def command(
    out: str,
    image_id: str | None,
    role: str | None,
    classes: tuple[str, ...] | None,
    methods: tuple[str, ...] | None,
    layers: tuple[str, ...] | None,
    compare: tuple[str, ...] | None,
    variant: str,
    score: str | None,
    scales: bool,
    upsample: str,
    grid: bool,
    output: str | None,
    inline: bool,
) -> None:
    """Draw the maps of one image over its photo, and print the path of the picture.

    The red dot is the arg max of a map; it is a white ring where several pixels share the largest
    value. The yellow outline is that of the explained class.
    """
    if grid and (methods or compare or classes or score or variant != "base"):
        raise SettingsError(
            "--grid has its own methods, for the base model and one class, without scores: leave "
            "--methods, --compare, --classes, --score and --variant out"
        )
    if methods and compare:
        raise SettingsError("--compare names the methods: leave --methods out")
    if image_id is None:
        raise SettingsError(f"name an image: {_some_ids(out)}")
    suffix = PurePath(output).suffix.lower().removeprefix(".") if output else "png"

    if grid:
        from pipeline.report.extract_pictures import picture_of_extracts

        picture = picture_of_extracts(
            out,
            image_id,
            role=role,
            layers=layers,
            upsampling=upsample,
            with_scales=scales,
            suffix=suffix,
        )
    else:
        from pipeline.report.pictures import picture_of_maps

        picture = picture_of_maps(
            out,
            image_id,
            role=role,
            classes=classes,
            methods=compare or methods,
            layers=layers,
            variant=variant,
            upsampling=upsample,
            compare=compare is not None,
            score=score,
            with_scales=scales,
            suffix=suffix,
        )

    from pipeline.report.page import RASTER_SUFFIXES
    from pipeline.report.pictures import save
    from pipeline.report.terminal_picture import show_in_terminal

    for note in picture.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(save(out, picture, output))
    if inline and suffix in RASTER_SUFFIXES:
        show_in_terminal(picture.content)


def _some_ids(out: str) -> str:
    from pipeline.store import MapDataset

    ids = sorted(MapDataset(out).shard_of)
    rest = f" or another of the {len(ids):,} images" if len(ids) > SHOWN else ""
    return ", ".join(ids if not rest else ids[:NEAREST]) + rest
