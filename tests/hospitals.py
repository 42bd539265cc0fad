"""Small hospitals in real formats, and studies of them, for tests of what reads files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medray.artifacts import Workspace
from medray.ingest import Ingested, ingest
from medray.plugins import find
from medray.study import Study
from medray.study.written import read
from medray.synthetic import Persona, personas

LABS = """
name: labs
sources:
  labs: {kind: csv, path: "labs*.csv", subject: patient, time: drawn_at}
cohort:
  target: {column: labs.died, positive: "1"}
governance: {max_quarantined: 0.5}
"""

# the film's header names the subject, the ECG's comment, the table's column
HOSPITAL = """
name: hospital
sources:
  films: {kind: dicom, path: "films/*.dcm"}
  ecg: {kind: wfdb, path: "ecg/*.hea", subject: patient}
  labs: {kind: csv, path: labs.csv, subject: patient, time: drawn_at}
cohort:
  target: {column: labs.died, positive: "1"}
governance: {max_quarantined: 0.2}
"""

# only the chart knows whose record it is
CHART = """
name: chart
sources:
  notes: {kind: csv, path: "notes*.csv", record: visit, subject: {of: chart}}
  chart: {kind: csv, path: "chart*.csv", record: visit, subject: patient}
cohort:
  unit: notes
  target: {column: chart.died, positive: "1"}
  split: {by: chart.fold, tuning: [9], held_out: [10]}
governance: {max_quarantined: 0.5}
"""


def study_in(folder: Path, text: str, **changes: Any) -> Study:
    """A study whose files lie in `folder`; changes as `a__b=value`."""
    study = Study.parse(read(text), folder)
    return study.override({name.replace("__", "."): value for name, value in changes.items()}) if changes else study


def write_labs(folder: Path, count: int = 40, seed: int = 0, name: str = "labs.csv") -> list[Persona]:
    """The table of `count` personas; the 401st row is broken."""
    made = personas(count, seed)
    find("readers", "csv").synthesize(folder, made, seed)  # type: ignore[attr-defined]
    (folder / "labs.csv").rename(folder / name)
    return made


def write_hospital(folder: Path, count: int = 12, seed: int = 0) -> list[Persona]:
    """Films, ECGs and a table of `count` personas, and one broken file of each kind of image and signal."""
    made = personas(count, seed)
    for kind, name in (("dicom", "films"), ("wfdb", "ecg"), ("csv", "")):
        find("readers", kind).synthesize(folder / name, made, seed)  # type: ignore[attr-defined]
    (folder / "films" / "broken.dcm").write_bytes(sorted((folder / "films").glob("*.dcm"))[0].read_bytes()[:2000])
    (folder / "ecg" / "broken.hea").write_text("nothing of a header")
    return made


def write_csv(path: Path, header: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def brought_in(study: Study, root: Path, **options: Any) -> Ingested:
    return ingest(study, Workspace.of(study, root), **options)


def column(ingested: Ingested, name: str) -> list[Any]:
    """A column of its source's rows, by position; a common column is written `source:column`."""
    source, mark, common = name.partition(":")
    source = source if mark else name.partition(".")[0]
    values: list[Any] = ingested.table.read(source, columns=[common or name]).column(0).to_pylist()
    return values


def reasons(ingested: Ingested) -> list[tuple[str, int | None, str]]:
    """Path, row and reason of all that is in the quarantine, by position."""
    rows = ingested.table.quarantine()
    if not rows.num_rows:
        return []
    return list(zip(*(rows.column(name).to_pylist() for name in ("path", "row", "reason")), strict=True))


def bytes_under(*folders: Path) -> Sequence[tuple[Path, bytes]]:
    return [(path, path.read_bytes()) for folder in folders for path in folder.rglob("*") if path.is_file()]
