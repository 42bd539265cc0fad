"""Check: what would fail an hour later, found before anything runs.

It reads the study, lists the files, reads the heads of a bounded number of them (no pixels, no samples), and looks at
the machine. It writes nothing, and what it says quotes column names, never a cell.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from medray.check.findings import Findings
from medray.check.labels import check_labels
from medray.check.machine import check_machine
from medray.check.sources import Seen, check_joins, check_sources
from medray.errors import DataError
from medray.runtime import Progress, quiet
from medray.study import Study

__all__ = ["Checked", "Findings", "Seen", "check"]


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        findings: each one line; those that would fail come first.
        seen: how much of each source was looked at.
    """

    findings: Findings
    seen: dict[str, Seen]
    seconds: float

    def raise_failures(self) -> None:
        """Refuse to go on with what would fail.

        Raises:
            DataError: one line a finding that would fail.
        """
        failing = [str(finding) for finding in self.findings if finding.fails]
        if failing:
            raise DataError("\n".join(failing))


def check(study: Study, workspace: Path | None = None, *, progress: Progress = quiet) -> Checked:
    """Look at a study, its files and this machine; nothing is written.

    Args:
        study: what would run.
        workspace: the folder of the workspace, which need not be there yet; its place and disk are looked at.
        progress: is told which source is being read.
    """
    start = time.monotonic()
    findings = Findings()
    seen = check_sources(study, findings, progress)
    check_joins(study, seen, findings)
    check_labels(study, seen, findings)
    check_machine(study, workspace, seen, findings)
    return Checked(findings.sorted(), seen, round(time.monotonic() - start, 3))
