"""A table as `medray.ingest` leaves it, from rows that a test writes down, for tests of what comes after it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medray.artifacts.table import Description, Table
from medray.artifacts.workspace import Workspace
from medray.study import Study

COMMON = {"subject", "record", "split", "time", "asset"}


def hexadecimal(name: object) -> str:
    """What stands for a name in a table."""
    return hashlib.sha256(str(name).encode()).hexdigest()[:32]


def day(number: int) -> datetime:
    return datetime(2024, 1, 1 + number, tzinfo=UTC)


def write_table(
    study: Study,
    workspace: Workspace,
    sources: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    dropped: Mapping[str, Mapping[str, str]] | None = None,
    num_buckets: int = 8,
) -> Table:
    """Rows of each source: `subject`, `split` (train unless given), `record`, `time`, `asset`, and its own columns."""
    columns: dict[str, dict[str, Any]] = {}
    for source, rows in sources.items():
        names = list(dict.fromkeys(name for row in rows for name in row if name not in COMMON))
        columns[source] = {name: _kind([row.get(name) for row in rows]) for name in names}
    table = workspace.table(study)
    described = {source: dict(reasons) for source, reasons in (dropped or {}).items()}
    table.create(Description(num_buckets=num_buckets, columns=columns, dropped=described))
    parts = []
    for source, rows in sources.items():
        assets: list[dict[str, Any] | None] = [None] * len(rows)
        if any(row.get("asset") is not None for row in rows):
            with table.pack() as pack:
                assets = [
                    None if row.get("asset") is None else pack.append(np.ascontiguousarray(row["asset"]))
                    for row in rows
                ]
        cells: dict[str, Any] = {
            "subject_id": [hexadecimal(row["subject"]) for row in rows],
            "split": [row.get("split", "train") for row in rows],
            "record_id": [hexadecimal(row.get("record", f"{source} {number}")) for number, row in enumerate(rows)],
            "time": pa.array([row.get("time") for row in rows], pa.timestamp("us", "UTC")),
            "position": list(range(len(rows))),
            "asset": assets,
        }
        cells |= {f"{source}.{name}": [row.get(name) for row in rows] for name in columns[source]}
        parts.append(table.write_part(source, pa.table(cells)))
    table.commit(parts)
    return table


def ingested_labs(folder: Path, count: int = 200, **sections: Any) -> tuple[Study, Workspace]:
    """Labs of `count` subjects, of whom three fifths train; a raised CRP is the cause."""
    study = study_of(
        folder,
        sources={"labs": {"kind": "csv", "path": "labs.csv", "subject": "who"}},
        cohort={"target": {"column": "labs.died", "positive": "1"}},
        **sections,
    )
    workspace = Workspace.of(study, folder / "workspace")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        died = int(draw.random() < 0.5)
        split = ("train", "train", "train", "tuning", "held_out")[number % 5]
        labs = {"crp": draw.normal() + 2 * died, "sex": "FM"[number % 2]}
        rows.append({"subject": number, "died": died, "split": split, **labs})
    write_table(study, workspace, {"labs": rows})
    return study, workspace


def study_of(folder: Path, **sections: Any) -> Study:
    """A study; `sources` and `cohort` as in a file."""
    return Study.parse({"name": "tried", **sections}, folder)


def _kind(cells: Sequence[Any]) -> str:
    known = [cell for cell in cells if cell is not None]
    if known and all(isinstance(cell, datetime) for cell in known):
        return "time"
    return "number" if all(isinstance(cell, int | float) for cell in known) else "text"
