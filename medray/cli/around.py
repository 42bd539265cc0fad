"""The commands around a run: before it, beside it, on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.options import Changes, Json, StudyFile, WorkspaceFolder, load, workspace_folder
from medray.cli.terminal import Terminal

if TYPE_CHECKING:
    from medray.study import Study


def check(
    study: StudyFile,
    changes: Changes = [],  # noqa: B006 - typer reads it, nobody changes it
    workspace: WorkspaceFolder = None,
    json: Json = False,
) -> None:
    """Find, before anything runs, what would fail an hour later."""
    with Terminal(as_json=json) as terminal:
        _checked(terminal, "check", load(study, changes), workspace)


def _checked(terminal: Terminal, verb: str, study: Study, workspace: Path | None, path: Path | None = None) -> None:
    """Show what `check` finds; exit status 1 if any of it would fail a run."""
    from medray.check import check as look

    done = look(study, workspace_folder(workspace, study.folder), progress=terminal.progress)
    for finding in done.findings:
        terminal.mark("would fail" if finding.fails else "mind", "red" if finding.fails else "yellow", str(finding))
    for source, seen in done.seen.items():
        terminal.say(f"{source}: {seen.files:,} files, {seen.rows:,} rows looked at{'' if seen.all else ', not all'}")
    failing = sum(finding.fails for finding in done.findings)
    if not failing:
        terminal.say(f"{study.name}: nothing that would fail")
    facts = [{"where": each.where, "what": each.what, "do": each.do, "fails": each.fails} for each in done.findings]
    metrics = {"failing": failing}
    terminal.result({"verb": verb, "digest": study.digest(), "path": path, "metrics": metrics, "findings": facts})
    if failing:
        raise typer.Exit(1)


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the data lie.", show_default=False)],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="The column to predict.", show_default=False)] = "",
    name: Annotated[str, typer.Option(help="Of the study; the folder's own unless given.", show_default=False)] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a study file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a first study for a folder of tables or images."""
    with Terminal(as_json=json) as terminal:
        from medray.init import init as verb
        from medray.study import Study

        path = verb(folder, target=target, name=name, force=force)
        terminal.say(f"{path} is written: read it, then `medray run {path}`")
        _checked(terminal, "init", Study.load(path), None, path)


def doctor(workspace: WorkspaceFolder = None, json: Json = False) -> None:
    """Name the known traps of this machine, each with its fix."""
    with Terminal(as_json=json, resumes=False) as terminal:
        from rich.markup import escape
        from rich.table import Table

        from medray.doctor import doctor as verb

        found = verb(workspace_folder(workspace))
        table = Table("", "", "found", "fix", box=None, pad_edge=False)
        for each in found:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[each.status]
            table.add_row(f"[{colour}]{each.status}[/]", each.name, escape(each.found), escape(each.fix))
        terminal.show(table)
        facts = [{"name": each.name, "status": each.status, "found": each.found, "fix": each.fix} for each in found]
        failing = sum(each.status == "fail" for each in found)
        terminal.result(
            {"verb": "doctor", "digest": None, "path": None, "metrics": {"failing": failing}, "found": facts}
        )
        if failing:
            raise typer.Exit(1)


def submit(
    verb: Annotated[str, typer.Argument(metavar="VERB", help="The verb to run there: a file in jobs/.")],
    study: StudyFile,
    changes: Changes = [],  # noqa: B006
    workspace: WorkspaceFolder = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's job server.", show_default=False)
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Show the job's log until it ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    json: Json = False,
) -> None:
    """Run a verb as a job on a Ray cluster.

    Only the study and the job's few lines are sent: data and keys never are.
    """
    with Terminal(as_json=json) as terminal:
        from medray.submit import submit as send

        job = send(verb, study, changes, workspace=workspace, address=address)
        terminal.say(f"job {job.id} at {job.address}; ray job logs --follow {job.id}")
        status = job.follow(terminal.err.file.write) if follow else job.wait() if wait else job.status()
        terminal.say(f"job {job.id}: {status}")
        terminal.result(
            {"verb": "submit", "digest": None, "path": None, "metrics": {}, "job": job.id, "status": status}
        )
        if status in {"FAILED", "STOPPED"}:
            raise typer.Exit(1)
