"""A first study of images that lie in folders named as their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from medray.errors import DataError
from medray.init.words import CLASSES, DRAWN, listed, target, text

KINDS = {".jpeg": "image", ".jpg": "image", ".png": "image", ".dcm": "dicom"}
SPLITS = {
    "train": {"train", "training"},
    "tuning": {"val", "valid", "validation", "tuning", "dev"},
    "held_out": {"test", "testing", "held_out", "holdout"},
}
PERSON = r"((?:patient|person|subject|participant|case)[-_]?\d+)"  # in a file's name


def study(files: Sequence[PurePosixPath]) -> list[str]:
    """The lines of a study of the commonest sort of image here.

    Raises:
        DataError: the folders do not look like classes.
    """
    suffixes = Counter(path.suffix for path in files)
    suffix, _ = suffixes.most_common(1)[0]
    others = [f"{count:,} {each}" for each, count in sorted(suffixes.items()) if each != suffix]
    paths = [path for path in files if path.suffix == suffix]
    classes, splits = _levels(paths)
    seen = [next(part for part in path.parts if part in classes) for path in paths]
    return [
        "sources:",
        "  images:",
        f"    kind: {KINDS[suffix.lower()]}",
        f"    path: {text('**/*' + suffix)}{'  # not read: ' + ', '.join(others) if others else ''}",
        *_subject(paths, KINDS[suffix.lower()]),
        f"    columns: {{finding: {_folder(classes)}}}  # the folder says what an image shows",
        "cohort:",
        "  unit: images  # each image gets one prediction; all images of a subject are in one split",
        *target("images.finding", seen),
        *_split(splits),
    ]


def _levels(paths: Sequence[PurePosixPath]) -> tuple[set[str], set[str]]:
    """The folder names that are classes, and those that are splits."""
    classes: set[str] = set()
    splits: set[str] = set()
    known = set.union(*SPLITS.values())
    for level in range(min(len(path.parts) - 1 for path in paths)):
        found = {path.parts[level] for path in paths}
        if {each.lower() for each in found} <= known:
            splits = splits or found
        elif 2 <= len(found) <= CLASSES:
            classes = found  # the deepest such level is nearest to the images
    if not classes:
        raise DataError(
            f"the images do not lie in folders named as their classes (2 to {CLASSES}). "
            "Give --target COLUMN if a table says what they show."
        )
    return classes, splits


def _folder(names: set[str]) -> str:
    return f"{{path: {text('/(' + '|'.join(map(re.escape, sorted(names))) + ')/')}}}"


def _subject(paths: Sequence[PurePosixPath], kind: str) -> list[str]:
    if kind == "dicom":
        return ["    # whose image it is stands in the DICOM header"]
    matched = sum(bool(re.search(PERSON, path.name, re.IGNORECASE)) for path in paths)
    if matched == len(paths):
        return [f"    subject: {{path: {text('(?i)' + PERSON)}}}  # from the file's name; becomes a pseudonym"]
    share = f"only {matched / len(paths):.0%} of the file names hold" if matched else "no file name holds"
    return [
        f"    # {share} a person's number, so each image counts as its own subject. If one person has several images,",
        "    # say how to tell: subject: {path: 'REGULAR EXPRESSION'}",
    ]


def _split(splits: set[str]) -> list[str]:
    named = {split: sorted(each for each in splits if each.lower() in words) for split, words in SPLITS.items()}
    if not named["held_out"] or not named["train"]:
        return [DRAWN]
    values = "".join(f", {split}: {listed(named[split])}" for split in ("held_out", "tuning") if named[split])
    return [f"  split: {{by: {_folder(splits)}{values}}}  # as the folders have it"]
