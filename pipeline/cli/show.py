"""`backlight show`: a picture of one image's maps."""

import click

from pipeline.cli.options import CommaList, GroupedCommand, OneOf, UserPath, option, out_argument
from pipeline.errors import SettingsError
from pipeline.roles import ROLES
from transforms.upsampling import UPSAMPLINGS


@click.command("show", short_help="Draw the maps of one image over its photo.", cls=GroupedCommand)
@option(
    "--role",
    metavar="ROLE",
    help=f"classes to show: {', '.join(ROLES)}  [default: label, or else top]",
)
@option("--methods", type=CommaList(), metavar="NAMES", help="rows, from the top  [default: all]")
@option("--layers", type=CommaList(), metavar="NAMES", help="columns  [default: all]")
@option("--variant", default="base", show_default=True, metavar="NAME", help="variant of the model")
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
    help="file to write  [default: OUT/pictures/IMAGE_ID.png]",
)
@out_argument
@click.argument("image_id", metavar="IMAGE_ID")
def command(
    out: str,
    image_id: str,
    role: str | None,
    methods: tuple[str, ...] | None,
    layers: tuple[str, ...] | None,
    variant: str,
    upsample: str,
    grid: bool,
    output: str | None,
) -> None:
    """Draw the maps of one image over its photo, as a PNG, and print the path of the file."""
    if grid and (methods or variant != "base"):
        raise SettingsError("--grid has its own methods, for the base model: leave these out")

    from pipeline.report.pictures import picture_of_extracts, picture_of_maps, save

    if grid:
        picture = picture_of_extracts(out, image_id, role=role, layers=layers, upsampling=upsample)
    else:
        picture = picture_of_maps(
            out,
            image_id,
            role=role,
            methods=methods,
            layers=layers,
            variant=variant,
            upsampling=upsample,
        )
    if picture.note:
        click.echo(f"note: {picture.note}", err=True)
    click.echo(save(out, picture, output))
