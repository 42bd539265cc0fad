"""The exception tree: all that medray raises on purpose is a `MedrayError`, one line: what is wrong, where, what to do.

    MedrayError
    ├── StudyError          the study file: unknown key, unknown kind, value out of range
    ├── MissingExtraError   an optional library is not installed; says which extra brings it
    ├── DataError           the data do not fit the study: no file, no label, a subject in two splits
    │   └── ReadError       one file or row cannot be read; it is quarantined with its path and reason
    ├── ArtifactError       a table, shard, checkpoint or report is missing, incomplete or of another study
    │   └── IntegrityError  stored bytes were changed, swapped, cut or sealed under another key
    ├── TrainingError       training cannot go on: loss not finite, workers that do not fit
    ├── EvaluationError     scores cannot be evaluated
    ├── ComputeError        Ray does not start, does not answer, or makes no progress
    ├── AccessError         not allowed: no token, wrong token, model version not approved
    └── ServiceError        serving cannot go on: no server answers, the port is taken, the audit log cannot be written

A message quotes no record: neither cells nor identifiers.
"""

from __future__ import annotations

from pathlib import Path


class MedrayError(Exception):
    """Base of all errors that medray raises on purpose."""


class StudyError(MedrayError):
    """The study file is wrong; the message has one line a mistake."""


class MissingExtraError(MedrayError):
    """An optional library is missing."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed. Install it with: pip install 'medray[{extra}]'")


class DataError(MedrayError):
    """The data do not fit the study."""


class ReadError(DataError):
    """One file or row cannot be read."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ReadError], tuple[str, str]]:
        """Survive the way back from a worker process."""
        return (ReadError, (self.path, self.reason))


class ArtifactError(MedrayError):
    """A stored artifact is missing, incomplete or belongs to another study."""


class IntegrityError(ArtifactError):
    """Stored bytes are not what was sealed."""


class TrainingError(MedrayError):
    """Training cannot go on."""


class EvaluationError(MedrayError):
    """Scores cannot be evaluated."""


class ComputeError(MedrayError):
    """Ray does not start, does not answer, or makes no progress."""


class AccessError(MedrayError):
    """Not allowed."""


class ServiceError(MedrayError):
    """A service does not start, or does not answer."""
