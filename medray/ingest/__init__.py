"""Ingest: raw records -> a de-identified, sealed, versioned table. Ray Data reads; what a task has read stays in it.

`ingest` finds the files that are new or changed, surveys what must be known before the first row is written (what
columns hold, whose records they are, which split), writes in tasks, and commits each task's rows, quarantine and file
index in one transaction as it ends. A run that was cut off goes on where it stopped; the same files change nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from medray.artifacts import Workspace
from medray.artifacts.table import Part, Table
from medray.errors import DataError
from medray.ingest import plan as tasks
from medray.ingest.files import NUMBERS, Changes, File, compare, discover
from medray.ingest.keys import sources_of
from medray.ingest.plan import Plan
from medray.ingest.preparing import Prepared, prepare
from medray.ingest.writing import write
from medray.runtime import Progress, cluster, quiet
from medray.schema import FILE_ID, FILES, POSITION, QUARANTINE, SPLIT, SUBJECT_ID
from medray.study import Study

__all__ = ["Ingested", "ingest"]


@dataclass(frozen=True)
class Ingested:
    """A table, and what came into it.

    Attributes:
        table: at the version that this run has left.
        records: rows in the table, of all sources.
        subjects: in the table.
        new_files, changed_files: that this run has read.
        vanished_files: that are in the table and no longer there, or were until this run pruned them.
        quarantined: source -> reason -> how many rows or files are in the quarantine.
        splits: split -> subjects.
        dropped: source -> column -> why it is not in the table.
        own_subject: sources of which each record counts as its own subject.
    """

    table: Table
    records: int
    subjects: int
    new_files: int
    changed_files: int
    vanished_files: int
    quarantined: dict[str, dict[str, int]]
    splits: dict[str, int]
    dropped: dict[str, dict[str, str]]
    own_subject: list[str]
    seconds: float


def ingest(
    study: Study,
    workspace: Workspace | None = None,
    *,
    force: bool = False,
    prune: bool = False,
    progress: Progress = quiet,
) -> Ingested:
    """Bring a study's table up to its files.

    Args:
        study: what to read.
        workspace: where the table lies; the study's own unless given.
        force: read every file again, as if all had changed.
        prune: take the rows of vanished files out.
        progress: is told what is being done.

    Raises:
        DataError: a source has no file, or none that can be read; subjects in two splits; more than
            `governance.max_quarantined` of a source's records in the quarantine. Good rows are committed by then, and
            the quarantine says what is wrong with the others.
        ComputeError: Ray does not start, or makes no progress.
    """
    started = time.monotonic()
    workspace = workspace or Workspace.of(study)
    table = workspace.table(study)
    with workspace.lock(f"table-{table.digest}"):
        table.purge()  # what a run that was cut off left behind
        base = Plan(table, workspace.keyring, sources_of(study), shift_dates=study.governance.shift_dates)
        progress("files", 0, 0)
        found = discover(study, workspace, base.pseudonyms())
        changes = compare(study, found, table, force=force, prune=prune)
        unknown: dict[str, set[str]] = {}
        if changes.todo:
            here = tasks.in_process(changes.todo)
            with contextlib.nullcontext() if here else cluster(study.compute) as ray_cluster:
                num_cpus = ray_cluster.num_cpus if ray_cluster else 1.0
                prepared = prepare(study, base, changes, num_cpus=num_cpus, here=here, progress=progress)
                unknown = Run(study, table, changes, prepared).write(num_cpus, here=here, progress=progress)
        if changes.pruned:
            _prune(table, {received.file_id for received in changes.pruned})
        _end(table)
        table.purge()  # what a task that was tried again left behind
    table = table.at(table.version)
    check_quarantine(study, table)
    return _summary(study, table, changes, unknown, time.monotonic() - started)


@dataclass
class Run:
    """The writing of some files: a committer that lives as long as its run."""

    study: Study
    table: Table
    changes: Changes
    prepared: Prepared
    good: Counter[str] = field(default_factory=Counter)  # rows by source
    bad: Counter[str] = field(default_factory=Counter)

    def write(self, num_cpus: float, *, here: bool, progress: Progress) -> dict[str, set[str]]:
        """Write all groups, committing each as it is ready.

        Returns:
            source -> columns that the table does not have, fixed as they are since its first ingest.

        Raises:
            DataError: so much is in the quarantine that what is left cannot make up for it.
        """
        todo = self.changes.todo
        target = tasks.group_target(todo, num_cpus)
        groups = []
        for source in self.prepared.plan.sources:
            groups += tasks.grouped(source, [file for file in todo if file.source == source], target)
        if len(groups) > 1 and self.changes.unnumbered:
            self._number(self.changes.new)
        self._count_stored()
        unknown: dict[str, set[str]] = {}
        done = 0
        for number, result in enumerate(tasks.run(write, self.prepared.plan, groups, "ingest", here=here), 1):
            self._commit(result, last=number == len(groups))
            unknown.setdefault(result["source"], set()).update(result["unknown"])
            done += len(result["files"])
            progress("ingest", done, len(todo))
            if result["bad"]:
                self._stop_early(result["source"])
        return unknown

    def _number(self, files: list[File]) -> None:
        """Make the numbers of new files durable: a run that goes on after this one must give them no others."""
        rows = pa.table(
            {
                FILE_ID: [file.file_id for file in files],
                POSITION: pa.array([file.number << 32 for file in files], pa.int64()),
            }
        )
        self.table.commit([self.table.write_part(NUMBERS, rows)])

    def _commit(self, result: Mapping[str, Any], *, last: bool) -> None:
        """One transaction: the rows, quarantine and index of some files, in place of what was there of them."""
        add = [Part.model_validate(part) for part in result["parts"]]
        remove = _numbered(self.table) if last else []
        replaced = self.changes.replaced & set(result["files"])
        if replaced:
            for source in (result["source"], QUARANTINE, FILES):
                rewritten, names = self.table.without_files(source, replaced)
                add, remove = add + rewritten, remove + names
        self.table.commit(add, remove)
        self.good[result["source"]] += result["rows"]
        self.bad[result["source"]] += result["bad"]

    def _count_stored(self) -> None:
        """Start from what the table has of files that stay."""
        replaced = self.changes.replaced
        for received in self.changes.known.values():
            if received.file_id not in replaced:
                self.good[received.source] += received.rows
        for source, file_id in _quarantined(self.table):
            if file_id not in replaced:
                self.bad[source] += 1

    def _stop_early(self, source: str) -> None:
        """Stop where even a source without another bad record would end over the limit."""
        total = max(self.prepared.expected.get(source, 0), self.good[source] + self.bad[source])
        if source in self.prepared.expected:
            _hold(self.study, source, _reasons(self.table).get(source, {}), total)


def check_quarantine(study: Study, table: Table) -> None:
    """Hold what is in the quarantine against the study's limit.

    Raises:
        DataError: more than `governance.max_quarantined` of a source's records is there.
    """
    good: Counter[str] = Counter()
    for part in table.parts():
        good[part.source] += part.rows
    for source, reasons in _reasons(table).items():
        _hold(study, source, reasons, good[source] + sum(reasons.values()))


def _hold(study: Study, source: str, reasons: Mapping[str, int], total: int) -> None:
    limit, bad = study.governance.max_quarantined, sum(reasons.values())
    if bad > limit * total:
        most = ", ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(3))
        raise DataError(
            f"sources.{source}: {bad} of {total} records are in the quarantine ({most}), more than "
            f"governance.max_quarantined ({limit:.4g}). Correct the files and ingest again, or raise the limit."
        )


def _prune(table: Table, file_ids: set[str]) -> None:
    """Take files that vanished out of the table, in one transaction."""
    add: list[Part] = []
    remove: list[str] = []
    for source in dict.fromkeys(part.source for part in table.parts()):
        rewritten, names = table.without_files(source, file_ids)
        add, remove = add + rewritten, remove + names
    if remove:
        table.commit(add, remove)


def _end(table: Table) -> None:
    """The numbers of files on their way in are needed no longer: all are in the index, or vanished before."""
    left = _numbered(table)
    if left:
        table.commit([], left)


def _numbered(table: Table) -> list[str]:
    """The parts that hold the numbers of files on their way in."""
    return [part.name for part in table.parts(NUMBERS)]


def _quarantined(table: Table) -> list[tuple[str, str]]:
    """Source and file of each row of the quarantine."""
    rows = table.quarantine()
    if not rows.num_rows:
        return []
    return list(zip(rows.column("of").to_pylist(), rows.column(FILE_ID).to_pylist(), strict=True))


def _reasons(table: Table) -> dict[str, dict[str, int]]:
    """Source -> reason -> rows of the quarantine."""
    rows = table.quarantine()
    found: dict[str, Counter[str]] = {}
    if rows.num_rows:
        for source, reason in zip(rows.column("of").to_pylist(), rows.column("reason").to_pylist(), strict=True):
            found.setdefault(source, Counter())[reason] += 1
    return {source: dict(reasons) for source, reasons in found.items()}


def _summary(study: Study, table: Table, changes: Changes, unknown: Mapping[str, set[str]], seconds: float) -> Ingested:
    """What a person wants to know of the table."""
    description = table.describe()
    splits: Counter[str] = Counter()
    for bucket in range(description.num_buckets if description else 0):  # a subject is in one: memory stays flat
        read = [table.read(name, buckets=[bucket], columns=[SUBJECT_ID, SPLIT]) for name in study.sources]
        subjects = pa.concat_tables(read).group_by([SUBJECT_ID, SPLIT]).aggregate([])
        splits.update(subjects.column(SPLIT).to_pylist())
    dropped = {name: dict(columns) for name, columns in description.dropped.items()} if description else {}
    for source, columns in unknown.items():
        late = dict.fromkeys(sorted(columns), "not among the columns that the first ingest fixed")
        dropped[source] = dropped.get(source, {}) | late
    named = {"target": study.cohort.target.column, "split": study.cohort.split.by}
    for what, column in named.items():
        source, _, name = column.partition(".") if isinstance(column, str) else ("", "", "")
        if name in dropped.get(source, {}):
            dropped[source][name] += f"; it is the study's {what}: keep it by governance.keep_columns"
    return Ingested(
        table=table,
        records=sum(part.rows for part in table.parts() if part.source in study.sources),
        subjects=splits.total(),
        new_files=len(changes.new),
        changed_files=len(changes.changed) + len(changes.again),
        vanished_files=len(changes.vanished),
        quarantined=_reasons(table),
        splits=dict(splits),
        dropped={name: columns for name, columns in dropped.items() if columns},
        own_subject=[name for name in study.sources if not study.keyed(name, "subject")],
        seconds=seconds,
    )
