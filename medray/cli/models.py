"""The commands `models list|show|approve|retire`: the registry's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.options import Json, WorkspaceFolder, workspace_folder
from medray.cli.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from medray.artifacts import Workspace
    from medray.registry import ModelVersion

app = typer.Typer(help="Model versions: list, show, approve, retire.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="The newest version unless one is named.")]
Note = Annotated[str, typer.Option(help="Why; it is kept beside the account that did it.", show_default=False)]


@app.command("list")
def list_(workspace: WorkspaceFolder = None, json: Json = False) -> None:
    """List the model versions of a workspace."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from rich.table import Table

        from medray.registry import models

        found = models(opened(workspace))
        table = Table("model", "stage", "made", "", box=None, pad_edge=False)
        for each in found:
            table.add_row(str(each), each.stage, f"{each.created.astimezone():%Y-%m-%d}", _main(each))
        terminal.show(table if found else "no model yet: `medray run STUDY` makes one")
        terminal.result({"verb": "models list", "digest": None, "path": None, "metrics": {}, "models": found})


@app.command()
def show(name: Name, workspace: WorkspaceFolder = None, json: Json = False) -> None:
    """Show a model version: its card, its inputs and outputs, what it was made of."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray.registry import find

        _told(terminal, "show", find(opened(workspace), name))


@app.command()
def approve(name: Name, note: Note = "", workspace: WorkspaceFolder = None, json: Json = False) -> None:
    """Approve a model version: from now on it can be served."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray import registry

        _told(terminal, "approve", registry.approve(opened(workspace), name, note=note))


@app.command()
def retire(name: Name, note: Note = "", workspace: WorkspaceFolder = None, json: Json = False) -> None:
    """Retire a model version, for good: it is not served again."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray import registry

        _told(terminal, "retire", registry.retire(opened(workspace), name, note=note))


def _main(version: ModelVersion) -> str:
    """The main metric with its interval."""
    from medray.metrics import main_metric
    from medray.report.words import MEANINGS, with_interval

    metric = main_metric(version.signature.task)
    return f"{MEANINGS[metric][0]} {with_interval(version.card.metrics[metric])}" if version.card.metrics else ""


def _told(terminal: Terminal, action: str, version: ModelVersion) -> None:
    if action == "show":
        _card(terminal, version)
    else:
        terminal.say(f"{version} is {version.stage}")
    metrics = {
        name: {"value": each.value, "low": each.low, "high": each.high} for name, each in version.card.metrics.items()
    }
    facts = {"digest": version.checkpoint, "path": None, "metrics": metrics, "model": version}
    terminal.result({"verb": f"models {action}", **facts})


def _card(terminal: Terminal, version: ModelVersion) -> None:
    card, takes = version.card, version.signature
    terminal.say(f"{version}, {version.stage}\n{card.what}\n{card.verdict}")
    for limit in card.limits:
        terminal.say(f"  mind: {limit}")
    for name, given in takes.inputs.items():
        columns = f": {', '.join(given.columns)}" if given.columns else ""
        terminal.say(f"input    {name}, {given.kind} as {given.format}{columns}")
    terminal.say(f"output   {', '.join(takes.classes) or takes.target} ({takes.task})")
    for parent, digest in version.lineage.items():
        terminal.say(f"made of  {parent} {digest}")
    for event in version.events:
        note = f": {event.note}" if event.note else ""
        terminal.say(f"{event.time:%Y-%m-%d}  {event.what} by {event.who}{note}")


def opened(folder: Path | None) -> Workspace:
    """A workspace that is there, without a study.

    Raises:
        ArtifactError: there is none.
    """
    from medray.artifacts import Workspace
    from medray.errors import ArtifactError
    from medray.governance.crypto import Keyring

    root = workspace_folder(folder)
    if not root.is_dir():
        raise ArtifactError(f"{root}: no workspace. Name one with --workspace or MEDRAY_WORKSPACE.")
    return Workspace(root, Keyring(root / "keyring"))
