"""Manifest: what an artifact is, what it was made from, and the digest of each of its files.

It is written last: an artifact's folder is complete if and only if its manifest is there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from medray.artifacts.durable import sha256_of, write_bytes
from medray.errors import IntegrityError

NAME = "manifest.json"


class Manifest(BaseModel):
    """What an artifact is.

    Attributes:
        sort: tables, shards, checkpoints, scores, reports, tunings, models.
        digest: of the study's sections it was made from, and of its parents; the folder's name.
        parents: what it was made from, name to digest.
        facts: what its readers need to know; each sort has its own.
        files: name to SHA-256, of every file of the artifact.
        seconds: that making it took.
        versions: of the libraries that decide its content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    sort: str
    digest: str
    parents: dict[str, str] = {}
    facts: dict[str, Any] = {}
    files: dict[str, str] = {}
    seconds: float = 0.0
    created: AwareDatetime
    versions: dict[str, str] = {}


def read_manifest(folder: Path, name: str = NAME) -> Manifest | None:
    """The manifest of a complete artifact; None where it is not complete.

    Raises:
        IntegrityError: the manifest was changed or cut, or is that of another artifact.
    """
    try:
        text = (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(text)
        check = fields.pop("check")
        manifest = Manifest.model_validate(fields)
    except (ValueError, AttributeError, KeyError, TypeError, ValidationError) as error:
        raise IntegrityError(f"{folder / name}: damaged. Make the artifact again with --force.") from error
    if check != _check(fields) or manifest.digest != folder.name:
        raise IntegrityError(f"{folder / name}: changed since it was written. Make the artifact again with --force.")
    return manifest


def write_manifest(folder: Path, manifest: Manifest, name: str = NAME) -> None:
    """Complete an artifact, durably."""
    fields = json.loads(manifest.model_dump_json())
    text = json.dumps({**fields, "check": _check(fields)}, indent=1, ensure_ascii=False)
    write_bytes(folder / name, text.encode())


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Hold an artifact's files against its manifest.

    Raises:
        IntegrityError: a file is missing or was changed; names the first.
    """
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path}: missing. Make the artifact again with --force.")
        if sha256_of(path) != digest:
            raise IntegrityError(f"{path}: changed since it was written. Make the artifact again with --force.")


def _check(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
