"""An evaluation: a report, where it lies, and what the registry wants to know of it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medray import report as reports
from medray.artifacts import Manifest, write_manifest
from medray.artifacts.durable import sha256_of
from medray.registry import Findings
from medray.report import HTML_NAME, JSON_NAME, Paths, Report, words

LIBRARIES = ("medray", "torch", "ray", "numpy", "scikit-learn")  # that decide figures
ELSEWHERE = "Evaluated on subjects from the places and years of the training data; elsewhere it may do worse."


@dataclass(frozen=True)
class Evaluation:
    """A report and its folder, which is named by the report's digest."""

    report: Report
    folder: Path

    @property
    def digest(self) -> str:
        """The artifact's name."""
        return self.folder.name

    @property
    def paths(self) -> Paths:
        """The report as JSON and as a page."""
        return Paths(self.folder / JSON_NAME, self.folder / HTML_NAME)

    def findings(self) -> Findings:
        """What a model's card says of it."""
        certificate, measures = self.report.certificate, self.report.measures
        return Findings(
            report=self.digest,
            verdict=self.report.verdict,
            metrics=measures.units.model,
            baseline=measures.units.baseline,
            subjects=certificate.subjects,
            units=certificate.units,
            left_out=certificate.left_out,
            limits=(*words.cautions(self.report), ELSEWHERE),
            parents=self.report.parents,
        )


def write(report: Report, folder: Path) -> Evaluation:
    """Write a report and complete its folder."""
    paths = reports.write(report, folder)
    write_manifest(
        folder,
        Manifest(
            sort="reports",
            digest=folder.name,
            parents=report.parents,
            files={path.name: sha256_of(path) for path in paths},
            seconds=report.seconds.get("evaluate", 0.0),
            created=datetime.now(UTC),
            versions=report.versions,
        ),
    )
    return Evaluation(report, folder)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide figures."""
    found: Mapping[str, str] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}
