"""The commands around a served model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.models import opened
from medray.cli.options import Changes, Json, WorkspaceFolder, load, shown, workspace_folder, workspace_of
from medray.cli.terminal import Terminal

if TYPE_CHECKING:
    from medray.artifacts import Workspace
    from medray.study import Study


def serve(
    what: Annotated[str, typer.Argument(metavar="STUDY|NAME[:VERSION]", help="A study file or a model.")],
    changes: Changes = [],  # noqa: B006 - typer reads it, nobody changes it
    model: Annotated[str, typer.Option(metavar="NAME[:VERSION]", help="Another model than the study's newest.")] = "",
    workspace: WorkspaceFolder = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the config that `serve deploy` takes, and serve nothing."),
    ] = None,
    json: Json = False,
) -> None:
    """Serve an approved model version over HTTP.

    Each answer carries its explanation. Ctrl-C ends it, once the last requests are answered.
    """
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray.serve import serve as verb
        from medray.serve import write_config

        study, name, place = _chosen(what, changes, model, workspace)
        if write:
            path = write_config(study, write, name, place)
            terminal.say(f"{path} is written: serve deploy {path}")
            terminal.result({"verb": "serve", "digest": None, "path": path, "metrics": {}})
            return
        with verb(study, name, place, block=False, progress=terminal.progress) as deployment:
            terminal.say(f"{deployment.model}:{deployment.version} answers at {deployment.url} (see /openapi.json)")
            terminal.say(f"token    {shown(deployment.token_path)}\naudit    {shown(deployment.audit_path)}")
            facts = {"url": deployment.url, "model": f"{deployment.model}:{deployment.version}"}
            terminal.result({"verb": "serve", "digest": None, "path": deployment.token_path, "metrics": {}, **facts})
            deployment.wait()


def _chosen(what: str, changes: list[str], model: str, workspace: Path | None) -> tuple[Study | None, str, Workspace]:
    """A study file, or a model of a workspace."""
    if Path(what).suffix in {".yaml", ".yml"} or Path(what).is_file():
        study = load(Path(what), changes)
        return study, model, workspace_of(study, workspace)
    if changes:
        raise typer.BadParameter("it changes a study: name a study file", param_hint="--set")
    return None, what, opened(workspace)


def query(
    model: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="A model that is served.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Of one subject: FILE or MODALITY=FILE.")],
    workspace: WorkspaceFolder = None,
    url: Annotated[
        str, typer.Option(envvar="MEDRAY_URL", help="Of the service; this machine's unless given.", show_default=False)
    ] = "",
    full: Annotated[bool, typer.Option("--full", help="Explain by integrated gradients, slowly.")] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where heat maps are written.")] = Path(),
    json: Json = False,
) -> None:
    """Ask a served model about files, and see why it says so.

    A JSON file holds the values of a table's record. The token is that of the workspace, or MEDRAY_TOKEN.
    """
    with Terminal(as_json=json, resumes=False) as terminal:
        from medray.query import query as verb

        place = opened(workspace) if workspace or workspace_folder(None).is_dir() else None
        answered = verb(
            place, model, files, url=url, explain="full" if full else "fast", out=out, progress=terminal.progress
        )
        for line in answered.lines():
            terminal.say(line)
        path = next(iter(answered.overlays.values()), None)
        terminal.result({"verb": "query", "digest": None, "path": path, "metrics": {}, "answer": answered.answer})
