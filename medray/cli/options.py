"""Options that several commands share, and what they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medray.artifacts import Workspace
    from medray.study import Study

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.", show_default=False)]
Changes = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change the study: a dotted path and a YAML value; may be repeated."
    ),
]
WorkspaceFolder = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="FOLDER",
        help="Where artifacts and keys are kept; else MEDRAY_WORKSPACE, else .medray beside the study.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again although it is complete.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def load(study: Path, changes: list[str]) -> Study:
    """The study as `--set` changes it.

    Raises:
        StudyError: it is wrong, one line a mistake.
        typer.BadParameter: a change is not PATH=VALUE.
    """
    from medray.errors import StudyError
    from medray.study import Study
    from medray.study.written import settings

    try:
        overrides = settings(changes)
    except StudyError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None  # bad usage: exit status 2
    return Study.load(study, overrides)


def workspace_of(study: Study, given: Path | None) -> Workspace:
    """The workspace that a command works in; made where it is not there.

    Raises:
        StudyError: it would lie in the folder of a job, which Ray removes.
    """
    from medray.artifacts import Workspace
    from medray.errors import StudyError

    folder = workspace_folder(given, study.folder)
    if any(part.startswith("_ray_pkg_") for part in folder.parts):
        raise StudyError("a job's own folder is not kept: name a workspace by --workspace or MEDRAY_WORKSPACE")
    return Workspace.of(study, folder)


def workspace_folder(given: Path | None, beside: Path | None = None) -> Path:
    """The workspace's folder, which need not be there yet: as given, else MEDRAY_WORKSPACE, else `.medray`."""
    return Path(given or os.environ.get("MEDRAY_WORKSPACE") or (beside or Path()) / ".medray").expanduser().resolve()


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
