"""Studies for tests: the three of the design, and small ones of CSV files that are never opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.errors import StudyError
from medray.study import Study, settings
from medray.study.written import read

# As DESIGN.md has them.
STUDIES = r"""
name: chest-xray                                   # image only
sources:
  films:
    kind: image
    path: "**/*.jpeg"
    subject: {path: '(train|test)/\w+/(?:NORMAL2-)?(person\d+|IM-\d+)'}
    columns: {finding: {path: '/(NORMAL|PNEUMONIA)/'}}
cohort:
  unit: films
  target: {column: films.finding, positive: PNEUMONIA}
  split: {by: {path: '/(train|test)/'}, held_out: [test]}
---
name: ecg-superclass                               # ECG + CSV, multilabel, published folds
sources:
  ecg:   {kind: wfdb, path: "records100/**/*.hea", record: {path: 'records100/.*_lr'}, subject: {of: chart}}
  chart: {kind: csv, path: ptbxl_database.csv, record: filename_lr, subject: patient_id, time: recording_date}
modalities:
  ecg:    {kind: signal}
  person: {kind: table, of: chart, columns: [age, sex, height, weight]}
cohort:
  unit: ecg
  target: {column: chart.scp_codes, many: true, classes: [NORM, MI, STTC, CD, HYP],
           map: {file: scp_statements.csv, key: "", value: diagnostic_class}}
  split: {by: chart.strat_fold, tuning: ["9"], held_out: ["10"]}
---
name: mortality                                    # image + signal + table, fused; modalities and model are implied
sources:
  films: {kind: dicom, path: "films/*.dcm"}
  ecg:   {kind: wfdb, path: "ecg/*.hea", subject: patient}
  labs:  {kind: csv, path: labs.csv, subject: patient, time: drawn_at}
cohort:
  target: {column: labs.died, positive: "1"}
"""
NAMES = ("chest-xray", "ecg-superclass", "mortality")

SMALL = """
name: small
sources:
  labs: {kind: csv, path: labs.csv, subject: patient, time: drawn_at}
cohort:
  target: {column: labs.died, positive: "1"}
"""

TWO = """
name: two
sources:
  labs: {kind: csv, path: labs.csv, record: visit, subject: patient}
  wards: {kind: csv, path: wards.csv, record: visit, subject: {of: labs}}
cohort:
  target: {column: labs.died, positive: 1}
"""


def study_of(text: str, *changes: str) -> Study:
    study = Study.parse(read(text), Path("/studies"))
    return study.override(settings(changes)) if changes else study


def designed(name: str) -> Study:
    return study_of(STUDIES.split("---")[NAMES.index(name)])


def refused(text: str, *changes: str) -> list[str]:
    """What is said about a wrong study, a line a mistake."""
    with pytest.raises(StudyError) as error:
        study_of(text, *changes)
    return [line.removeprefix("study.yaml: ") for line in str(error.value).splitlines()]
