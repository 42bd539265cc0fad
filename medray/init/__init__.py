"""Init: a folder of tables or of class-named image folders -> a first study file, with a comment at each choice."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import yaml

from medray.errors import DataError, StudyError
from medray.init import images, tables
from medray.study import Study


def init(folder: Path, *, target: str = "", name: str = "", force: bool = False) -> Path:
    """Write `study.yaml` into a folder; it loads as it is.

    Args:
        folder: with tables, or with images in folders that are named as their classes.
        target: the column to predict; guessed from the columns' names where it is not given.
        name: of the study; the folder's own unless given.
        force: replace a study file that is there.

    Raises:
        DataError: nothing here that a study can be made of, or no column that looks like a target.
        StudyError: there is a study file already.
    """
    path = folder / "study.yaml"
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. Name the one that your data lie in.")
    if path.exists() and not force:
        raise StudyError(f"{path}: is there already. Remove it, or give --force to replace it.")
    files = _files(folder)
    pictures = [file for file in files if file.suffix.lower() in images.KINDS and len(file.parts) > 1]
    if pictures and not target:
        lines = images.study(pictures)
    else:
        lines = tables.study(folder, [file for file in files if str(file).lower().endswith(tables.SUFFIXES)], target)
    name = re.sub(r"[^a-z0-9]+", "-", (name or folder.resolve().name).lower()).strip("-") or "study"
    text = "\n".join(["# Made by `medray init`; every line is yours to change.", f"name: {name}", *lines]) + "\n"
    Study.parse(yaml.safe_load(text), folder)  # what is written loads
    path.write_text(text, encoding="utf-8")
    return path


def _files(folder: Path) -> list[PurePosixPath]:
    """All files below, without hidden ones and hidden folders: a workspace among them."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        below = PurePosixPath(Path(root).relative_to(folder).as_posix())
        found += [below / name for name in sorted(names) if not name.startswith(".")]
    return found
