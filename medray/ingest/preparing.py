"""Prepare: survey what must be known before the first row is written, and decide it, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.artifacts.table import Description
from medray.errors import ArtifactError, DataError
from medray.ingest import decide, plan
from medray.ingest.files import Changes, File
from medray.ingest.plan import Plan
from medray.ingest.survey import Surveyed, described, merged, survey
from medray.runtime import Progress
from medray.study import Study

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

SAMPLE_FILES = 64  # of a format with fixed columns: enough to tell a text from a number
BUCKET_BYTES = 16 << 20
MAX_BUCKETS = 1024


@dataclass
class Prepared:
    """Everything that is decided.

    Attributes:
        plan: for the writing tasks.
        expected: source -> records in the files to be read, where a survey has counted them.
    """

    plan: Plan
    expected: dict[str, int] = field(default_factory=dict)


def prepare(study: Study, base: Plan, changes: Changes, *, num_cpus: float, here: bool, progress: Progress) -> Prepared:
    """Survey the files to be read, fix the columns at the first ingest, and decide duplicates, owners and splits.

    Args:
        study: what is ingested.
        base: the plan without what is decided here.
        changes: the files to be read; those whose owner knows their subject differently now are added.
        num_cpus: of the cluster.
        here: in this process.
        progress: is told how far the survey is.

    Raises:
        DataError: no file of a source can be read, or subjects are in two splits.
    """
    sources, table = base.sources, base.table
    first = table.describe() is None
    owners = sorted({source.owner for source in sources.values()} - {""})
    holder = next((source for source in sources.values() if source.by is not None), None)

    def look(names: Sequence[str]) -> dict[str, Surveyed]:
        files = changes.todo
        groups = [
            group
            for name in names
            for group in _groups(base, name, [file for file in files if file.source == name], first, num_cpus)
        ]
        results: list[dict[str, Any]] = []
        for result in plan.run(survey, base, groups, "survey", here=here):
            results.append(result)
            progress("survey", len(results), len(groups))
        return merged(results)

    before = {} if first else {name: decide.stored(table, name) for name in sources}
    surveyed: dict[str, Surveyed] = {}
    if not first and changes.moved & set(owners):
        # an owner that changed may know other rows' subjects differently now: find their files before the rest
        surveyed = look(owners)
        _add_moved(base, changes, surveyed, before)
    surveyed |= look([name for name in sources if name not in surveyed])

    kept = {name: old.without(changes.gone) for name, old in before.items()}
    keys = {name: found.keys for name, found in surveyed.items() if found.keys is not None}
    repeated = {name: decide.duplicates(known, kept.get(name, decide.NOTHING)) for name, known in keys.items()}
    maps = {
        name: decide.owner_map(keys.get(name), repeated.get(name), kept.get(name, decide.NOTHING)) for name in owners
    }
    splits = None
    if holder is not None:
        splits = decide.split_map(holder, keys.get(holder.name), repeated.get(holder.name), maps, kept)
    description = _description(study, base, changes, surveyed) if first else table.describe()
    if description is None:
        raise ArtifactError(f"{table.folder}: its description vanished while it was read. Ingest again.")
    if first:
        table.create(description)
    positions = [known.positions[repeated[name]] for name, known in keys.items()]
    decided = replace(
        base,
        kinds=description.columns,
        dropped={name: frozenset(columns) for name, columns in description.dropped.items()},
        owners=maps,
        splits=splits,
        duplicates=np.sort(np.concatenate([np.zeros(0, np.int64), *positions])),
    )
    whole = {name: found.rows for name, found in surveyed.items() if _surveys_whole(base, name, first)}
    return Prepared(decided, whole)


def _add_moved(
    base: Plan, changes: Changes, surveyed: Mapping[str, Surveyed], before: Mapping[str, decide.Stored]
) -> None:
    """Have files read again whose rows' subjects their owner knows differently now."""
    for name, source in base.sources.items():
        if source.owner:
            keys = surveyed[source.owner].keys if source.owner in surveyed else None
            old = before[source.owner].without(changes.gone)
            repeated = None if keys is None else decide.duplicates(keys, old)
            changes.read_again(decide.moved_files(decide.owner_map(keys, repeated, old), before[name]))


def _groups(base: Plan, name: str, files: list[File], first: bool, num_cpus: float) -> list[dict[str, Any]]:
    """The groups in which a source is surveyed; none where nothing of it need be known."""
    source = base.sources[name]
    target = plan.group_target(files, num_cpus)
    if _surveys_whole(base, name, first):
        return plan.grouped(name, files, target, types=first, keys=_needs_keys(base, name), open=True)
    groups = []
    if first:
        sample = files[:: max(1, len(files) // SAMPLE_FILES)][:SAMPLE_FILES]
        groups += plan.grouped(name, sample, target, types=True, keys=False, open=True)
    if _needs_keys(base, name):
        groups += plan.grouped(name, files, target, types=False, keys=True, open=not source.only_by_path())
    return groups


def _surveys_whole(base: Plan, name: str, first: bool) -> bool:
    """Whether every file of a source is opened: for its columns, where only files know them, or for its keys."""
    source = base.sources[name]
    opened = _needs_keys(base, name) and not source.only_by_path()
    return opened or (first and source.reader.free_form)


def _needs_keys(base: Plan, name: str) -> bool:
    """Whether others ask a source for subjects or splits, or a record key could be there twice."""
    source = base.sources[name]
    return source.names_record or source.by is not None or any(other.owner == name for other in base.sources.values())


def _description(study: Study, base: Plan, changes: Changes, surveyed: Mapping[str, Surveyed]) -> Description:
    """The columns of each source, fixed from now on, and how many buckets of subjects."""
    columns: dict[str, dict[str, str]] = {}
    dropped: dict[str, dict[str, str]] = {}
    rules = study.governance
    for name, source in base.sources.items():
        found = surveyed[name]
        if not found.files:
            count = sum(file.source == name for file in changes.todo)
            raise DataError(f"sources.{name}: none of its {count} file(s) can be read as {source.reader.kind}")
        columns[name], dropped[name] = described(
            source,
            found.facts,
            free_text=rules.free_text == "keep",
            shift_dates=rules.shift_dates,
            keep_columns=rules.keep_columns,
        )
        for key in sorted(source.reader.record_names()):
            dropped[name][key] = "a key, kept as a pseudonym or a shifted time only"
    weight = sum(file.weight for file in changes.todo)
    buckets = 1
    while buckets < MAX_BUCKETS and buckets * BUCKET_BYTES < weight:
        buckets *= 2
    return Description.model_validate({"num_buckets": buckets, "columns": columns, "dropped": dropped})
