"""The command line: one command per verb. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from medray.cli import around, kinds, models, service, tour, verbs

app = typer.Typer(
    name="medray",
    help="From raw medical data to a model that clinicians can question, by one study file, on Ray.",
    epilog="A first study: medray init FOLDER. Then: medray check STUDY, medray run STUDY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables, which hold records
    rich_markup_mode="rich",
)
for _command in (
    *(around.check, verbs.run, verbs.ingest, verbs.tune, verbs.train, verbs.predict, verbs.evaluate),
    *(service.serve, service.query, around.submit, tour.demo, around.init, kinds.kinds),
):
    app.command()(_command)
app.add_typer(models.app, name="models")
app.command()(around.doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 1 with a line that says what is wrong, 2 for bad usage, 130 for Ctrl-C."""
    app(args=arguments, prog_name="medray")
