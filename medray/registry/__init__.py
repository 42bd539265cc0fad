"""Registry: model versions, what is known of each, and who let it be served.

`<workspace>/models/<name>/<number>.json` is one version of the model of a study's name. Its stage goes
`candidate -> approved -> retired` by events that are appended, never changed; only what has a report can be approved.
"""

from __future__ import annotations

import getpass
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from medray import plugins
from medray.artifacts import Checkpoint, Workspace
from medray.artifacts.checkpoint import WEIGHTS
from medray.artifacts.durable import write_bytes
from medray.errors import AccessError, ArtifactError, IntegrityError
from medray.registry.card import Card, Evaluated, Event, Findings, ModelVersion, Stage, signature, what
from medray.study import Study

__all__ = [
    "Card",
    "Event",
    "Findings",
    "ModelVersion",
    "Stage",
    "approve",
    "checkpoint_of",
    "find",
    "models",
    "register",
    "retire",
]


def register(
    workspace: Workspace, checkpoint: Checkpoint, evaluation: Evaluated | None = None, *, who: str = ""
) -> ModelVersion:
    """The version of a checkpoint: a new candidate, or what was registered of these weights before.

    Args:
        workspace: where versions are kept.
        checkpoint: complete.
        evaluation: its report; one that is new to a version is noted there.
        who: does it; the account that runs this process unless given.

    Raises:
        ArtifactError: the checkpoint is not complete.
        IntegrityError: it was changed.
    """
    facts, weights = checkpoint.facts, checkpoint.manifest.files[WEIGHTS]
    study = Study.parse(facts.study, checkpoint.folder)
    findings = evaluation.findings() if evaluation is not None else None
    with workspace.lock(f"models-{study.name}"):
        known = _versions(workspace, study.name)
        same = [each for each in known if (each.checkpoint, each.weights) == (checkpoint.digest, weights)]
        if same:
            version = same[-1]
        else:
            version = ModelVersion(
                name=study.name,
                version=known[-1].version + 1 if known else 1,
                checkpoint=checkpoint.digest,
                weights=weights,
                created=datetime.now(UTC),
                signature=signature(study, checkpoint),
                card=Card(what=what(study)),
                lineage={**checkpoint.manifest.parents, "checkpoint": checkpoint.digest},
                events=(_event("candidate", who),),
            )
        if findings is not None and findings.report != version.report:
            version = _with_report(version, findings, who)
        elif same:
            return version
        _write(workspace, version)
    return version


def models(workspace: Workspace) -> list[ModelVersion]:
    """All versions, by name, the oldest first."""
    return [version for name in _names(workspace) for version in _versions(workspace, name)]


def find(workspace: Workspace, model: str, *, approved_only: bool = False) -> ModelVersion:
    """A version by `name` or `name:version`: the newest, or the newest approved one, unless the version is named.

    Raises:
        ArtifactError: there is no such model or version; names the nearest.
        AccessError: it is not approved, where only approved ones are asked for.
    """
    name, _, number = model.partition(":")
    known = _versions(workspace, name) if name in _names(workspace) else []
    if not known:
        names = _names(workspace)
        listed = f" Known: {', '.join(names)}." if names else " None is registered yet: `medray run STUDY` makes one."
        raise ArtifactError(f"no model '{name}'{plugins.suggest(name, names)}{listed}")
    if number:
        known = [version for version in known if str(version.version) == number]
        if not known:
            versions = ", ".join(str(version.version) for version in _versions(workspace, name))
            raise ArtifactError(f"model '{name}' has no version '{number}'. It has: {versions}.")
    approved = [version for version in known if version.stage == "approved"]
    if approved_only and not approved:
        newest = known[-1]
        said = f"{newest} is {newest.stage}" if number else f"no version of '{name}' is approved"
        raise AccessError(f"{said}. A person who has read its report can approve it: `medray models approve {newest}`")
    return (approved if approved_only else known)[-1]


def approve(workspace: Workspace, model: str, *, who: str = "", note: str = "") -> ModelVersion:
    """Let a version be served.

    Args:
        workspace: where versions are kept.
        model: `name` for the newest version, or `name:version`.
        who: approves it; the account that runs this process unless given.
        note: why.

    Raises:
        ArtifactError: there is no such version.
        AccessError: it has no report, or was retired.
    """
    version = find(workspace, model)
    if not version.report:
        raise AccessError(
            f"{version} has no report, so nobody can know what it does: `medray evaluate STUDY` writes one"
        )
    return _reach(workspace, version, "approved", who, note)


def retire(workspace: Workspace, model: str, *, who: str = "", note: str = "") -> ModelVersion:
    """End a version: it is not served again.

    Raises:
        ArtifactError: there is no such version.
    """
    return _reach(workspace, find(workspace, model), "retired", who, note)


def checkpoint_of(workspace: Workspace, version: ModelVersion) -> Checkpoint:
    """The checkpoint of a version, whose weights are those that were registered.

    Raises:
        ArtifactError: it is gone.
        IntegrityError: it was trained again since, or changed.
    """
    checkpoint = Checkpoint(workspace.folder("checkpoints", version.checkpoint))
    if checkpoint.manifest.files.get(WEIGHTS) != version.weights:
        raise IntegrityError(f"{version}: its weights are not those that were registered. Register the new ones.")
    checkpoint.verify()
    return checkpoint


# ---- files


def _names(workspace: Workspace) -> list[str]:
    folder = workspace.root / "models"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _versions(workspace: Workspace, name: str) -> list[ModelVersion]:
    """Oldest first."""
    folder = workspace.root / "models" / name
    files = [path for path in folder.glob("*.json") if re.fullmatch(r"[0-9]+", path.stem)]
    return [_read(path) for path in sorted(files, key=lambda path: int(path.stem))]


def _read(path: Path) -> ModelVersion:
    try:
        return ModelVersion.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise IntegrityError(f"{path}: damaged, or of another version of medray. Restore it from a backup.") from error


def _write(workspace: Workspace, version: ModelVersion) -> None:
    path = workspace.root / "models" / version.name / f"{version.version}.json"
    write_bytes(path, version.model_dump_json(indent=1, exclude={"stage"}).encode())


def _reach(workspace: Workspace, version: ModelVersion, stage: Stage, who: str, note: str) -> ModelVersion:
    with workspace.lock(f"models-{version.name}"):
        version = find(workspace, str(version))  # as it is now that nobody else changes it
        if version.stage == stage:
            return version
        if version.stage == "retired":
            raise AccessError(f"{version} was retired, which is for good. Train and register a new version.")
        version = version.model_copy(update={"events": (*version.events, _event(stage, who, note))})
        _write(workspace, version)
        return version


def _event(what: Literal["candidate", "approved", "retired", "report"], who: str, note: str = "") -> Event:
    return Event(what=what, time=datetime.now(UTC), who=who or _account(), note=note)


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _with_report(version: ModelVersion, findings: Findings, who: str) -> ModelVersion:
    said = findings.model_dump(exclude={"report", "parents"})
    card = Card.model_validate({"what": version.card.what, **said})
    changes = {
        "report": findings.report,
        "card": card,
        "lineage": {**version.lineage, **findings.parents, "report": findings.report},
        "events": (*version.events, _event("report", who, findings.report)),
    }
    return version.model_copy(update=changes)
