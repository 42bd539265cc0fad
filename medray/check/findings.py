"""Findings: one line each, gathered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        where: the place in the study, or the part of the machine.
        what: is wrong.
        do: about it.
        fails: whether a run would stop at it; else it is only to be minded.
    """

    where: str
    what: str
    do: str
    fails: bool = True

    def __str__(self) -> str:
        """As one line: `sources.labs.path: no file matches labs*.csv. Correct the path`."""
        return f"{self.where}: {self.what}. {self.do}"


class Findings:
    """All that was found."""

    def __init__(self, found: list[Finding] | None = None) -> None:
        self._found = found or []

    def fail(self, where: str, what: str, do: str) -> None:
        """Add something at which a run would stop."""
        self._found.append(Finding(where, what, do))

    def mind(self, where: str, what: str, do: str) -> None:
        """Add something that does not stop a run."""
        self._found.append(Finding(where, what, do, fails=False))

    def sorted(self) -> Findings:
        """What would fail first; each thing once."""
        return Findings(sorted(dict.fromkeys(self._found), key=lambda finding: not finding.fails))

    def __iter__(self) -> Iterator[Finding]:
        """One by one."""
        return iter(self._found)

    def __len__(self) -> int:
        """How many."""
        return len(self._found)
