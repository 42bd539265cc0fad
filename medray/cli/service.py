"""The commands around a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medray.cli.models import opened
from medray.cli.options import Json, WorkspaceFolder
from medray.cli.terminal import Terminal


def serve(
    model: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="An approved model version.")],
    workspace: WorkspaceFolder = None,
    json: Json = False,
) -> None:
    """Serve an approved model version over HTTP.

    Each answer carries its explanation. Ctrl-C ends it.
    """
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray.serve import serve as verb

        verb(opened(workspace), model, progress=terminal.progress)


def query(
    model: Annotated[str, typer.Argument(metavar="NAME", help="A model that is served.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What to ask about, in its own formats.")],
    workspace: WorkspaceFolder = None,
    json: Json = False,
) -> None:
    """Ask a served model about files, and see why it says so."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray.query import query as verb

        verb(opened(workspace), model, files, progress=terminal.progress)
