"""`backlight compare`: is A better than B, by paired differences."""

import click

from pipeline.cli.options import (
    CommaList,
    GroupedCommand,
    UserPath,
    json_option,
    option,
    out_argument,
    quiet_option,
)
from pipeline.cli.output import error_console, note, print_json, table_console

CHOICE = "What to compare"
FIGURES = "Figures"


@click.command(
    "compare", short_help="Tell which methods, layers or runs are better.", cls=GroupedCommand
)
@option(
    "--by",
    group=CHOICE,
    metavar="AXIS",
    help="what the two of a pair differ by: method, layer, combination, variant, upsampling, role "
    "or run  [default: method; of several runs, run]",
)
@option(
    "--against",
    group=CHOICE,
    metavar="NAME",
    help="compare with this method (layer, …) alone  [default: all pairs]",
)
@option("--metrics", group=CHOICE, type=CommaList(), metavar="NAMES", help="[default: all]")
@option("--methods", group=CHOICE, type=CommaList(), metavar="NAMES", help="[default: all]")
@option(
    "--layers",
    group=CHOICE,
    type=CommaList(),
    metavar="NAMES",
    help="[default: all]; A=B is layer A of OUT and layer B of OTHER  [default: the same name, or "
    "in another model the same place from the last]",
)
@option(
    "--roles",
    group=CHOICE,
    type=CommaList(),
    metavar="NAMES",
    help="[default: the role that the metric is about, such as label, or all]",
)
@option("--variants", group=CHOICE, type=CommaList(), metavar="NAMES", help="[default: all]")
@option(
    "--statistic",
    group=FIGURES,
    metavar="NAME",
    help="mean, class_mean or max_accuracy…  [default: the headline of each metric]",
)
@option(
    "--replicates",
    group=FIGURES,
    type=int,
    default=1000,
    show_default=True,
    metavar="N",
    help="replicates of the bootstrap over images",
)
@option("--pairs", group=FIGURES, is_flag=True, help="print a row for every pair")
@option(
    "--images",
    group=FIGURES,
    type=int,
    default=0,
    metavar="N",
    help="list the N images on which each pair differs most",
)
@json_option
@quiet_option
@out_argument
@click.argument("others", type=UserPath(), nargs=-1, metavar="[OTHER]...")
def command(
    out: str,
    others: tuple[str, ...],
    by: str | None,
    against: str | None,
    metrics: tuple[str, ...] | None,
    methods: tuple[str, ...] | None,
    layers: tuple[str, ...] | None,
    roles: tuple[str, ...] | None,
    variants: tuple[str, ...] | None,
    statistic: str | None,
    replicates: int,
    pairs: bool,
    images: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare methods (layers, …) of the evaluated run in OUT, or this run with OTHERs.

    A pair is compared over the images and classes that both have. Each metric has a ranking with
    groups that cannot be told apart. All pairs are written to OUT/comparison/, as CSV and as JSON.
    """
    from pipeline import files
    from pipeline.progress import RunProgress
    from pipeline.store import names

    console = error_console(quiet or as_json)
    with RunProgress(console, "compare", "images") as progress:
        progress.phase("loading PyTorch")
        from pipeline.compare import as_json as in_json
        from pipeline.compare import compare
        from pipeline.report.comparison_tables import (
            LEGEND,
            example_tables,
            pair_tables,
            ranking_tables,
        )

        progress.phase("reading the scores")
        found = compare(
            out,
            others,
            by=by,
            metrics=metrics,
            methods=methods,
            layers=layers,
            roles=roles,
            variants=variants,
            against=against,
            statistic=statistic,
            replicates=replicates,
            images=images,
            on_start=progress.start,
            on_images=progress.add,
        )
        progress.finish()
    if as_json:
        print_json(in_json(found))
        return
    for line in found.notes:
        note(quiet, f"note: {line}")
    if quiet:
        return
    console = table_console()
    for table in (pair_tables if pairs else ranking_tables)(found):
        console.print(table)
    for table in example_tables(found):
        console.print(table)
    click.echo(LEGEND)
    click.echo(f"all {found.pairs.num_rows:,} pairs: {files.join(out, names.COMPARISON_CSV)}")
