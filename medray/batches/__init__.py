"""Batches: table -> joined, split and encoded samples, in sealed shards that training and scoring open whole.

Every task takes some buckets of subjects, whose records all lie together, so that joins stay local. Statistics are
gathered over the train split, one pass for each step of preparation, and merged here; then everything is encoded once.
"""

from __future__ import annotations

import datetime
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from medray import inputs, plugins
from medray.artifacts.durable import sha256_of
from medray.artifacts.manifest import Manifest, read_manifest, write_manifest
from medray.artifacts.shards import Entry, ShardFacts, Shards
from medray.artifacts.table import Description, Table
from medray.artifacts.workspace import Workspace, digest_of
from medray.batches import words
from medray.batches.join import NO_INPUT, NO_LABEL, OUTSIDE, SUBJECT, By, Input, Plan
from medray.batches.labels import NO, YES, Labels
from medray.batches.work import Work, naming, opened, run
from medray.errors import ArtifactError, DataError
from medray.runtime import Progress, cluster, quiet, settle, watchdog
from medray.schema import HELD_OUT, SPLITS, TIMESTAMP, TRAIN
from medray.study import Study

SECTIONS = ("cohort", "modalities")  # what decides samples, beside the table: neither model nor training
MAX_ROWS, MAX_BYTES = 512, 16 << 20  # of a shard
TRAIN_SHARDS, MIN_ROWS = 16, 8  # small cohorts are cut finer, so that there is something to mix and to share
TASK_ROWS, TASK_ASSETS, MIN_TASKS = 8_192, 256, 4  # rows of a task, those with an array, tasks: never by the cluster's
# size, so that the same table gives the same shards on every machine

Found = list[dict[str, Any]]


def encode(
    study: Study, workspace: Workspace | None = None, *, force: bool = False, progress: Progress = quiet
) -> Shards:
    """The samples of a study; what is there already is not made again.

    Args:
        study: its cohort and modalities decide; model and training do not, so that all trials of a search share them.
        workspace: `Workspace.of(study)` unless given.
        force: encode again.
        progress: is told tasks done and tasks in all.

    Raises:
        ArtifactError: the study was not ingested.
        DataError: the target is missing, contradicts itself or has one class only; a split is empty; a modality has
            nothing to learn from; a subject is in two splits.
        IntegrityError: the table was changed.
    """
    workspace = workspace or Workspace.of(study)
    found = _Found(study, workspace)
    with workspace.lock(f"shards-{found.shards.folder.name}"):
        if force or read_manifest(found.shards.folder) is None:
            shutil.rmtree(found.shards.folder, ignore_errors=True)  # also what a run left that was cut off
            _encode(study, found, progress)
    return Shards(found.shards.folder, workspace.keyring)


def locate(study: Study, workspace: Workspace) -> Shards:
    """Where a study's samples lie, or will lie once they are encoded.

    Raises:
        ArtifactError: the study was not ingested.
        DataError: the file of codes that the target names is missing or lacks a column.
    """
    return _Found(study, workspace).shards


class _Found:
    """What is encoded, and where to."""

    def __init__(self, study: Study, workspace: Workspace) -> None:
        table = workspace.table(study)
        description = table.describe()
        if description is None or table.version < 0:
            raise ArtifactError(f"{study.name}: no table yet. Ingest first: `medray ingest {study.file}`")
        self.description, self.table, self.labels = description, table.at(table.version), Labels.of(study)
        self.parents = {"table": table.digest, "version": str(self.table.version), "head": self.table.head()}
        codes = self.labels.codes
        named = {**self.parents, **({} if codes is None else {"codes": json.dumps(codes, sort_keys=True)})}
        self.shards = Shards(workspace.folder("shards", digest_of(study, SECTIONS, named)), workspace.keyring)


def _encode(study: Study, found: _Found, progress: Progress) -> None:
    began = time.monotonic()
    shards, description = found.shards, found.description
    plan = _plan(study, found.table, description, found.labels)
    work = Work(plan, dict(study.modalities), vault=shards.vault)
    groups = _groups(plan, description.num_buckets)
    with cluster(study.compute):
        surveyed = _run("survey", work, groups, "counting and fitting", progress)
        facts = _facts(study, plan, description, surveyed)
        work = _fit(work, surveyed, groups, progress)
        states = {name: inputs.joined(work.fitted[name]) for name in work.modalities}
        facts.states = states
        facts.shapes = {name: list(shape) for name, shape in inputs.shapes(work.modalities, states).items()}
        facts.names = {name: m.names(states[name]["modality"]) for name, m in work.modalities.items()}
        work = replace(work, classes=tuple(facts.classes), rows_per_shard=_rows_per_shard(work, states, facts))
        shards.vault.key_for("")  # made before many tasks ask for it at once
        encoded = _run("encode", work, groups, "encoding", progress)
    facts.entries = [Entry.model_validate(entry) for found in encoded for entry in found["entries"]]
    present = sum((Counter(found["present"]) for found in surveyed), Counter(dict.fromkeys(work.modalities, 0)))
    facts.warnings = words.warnings(study, facts, present)
    files = {name: digest for found in encoded for name, digest in found["files"].items()}
    files |= {path.name: sha256_of(path) for path in _others(shards.folder, files)}
    write_manifest(
        shards.folder,
        Manifest(
            sort="shards",
            digest=shards.folder.name,
            parents=found.parents,
            facts=facts.model_dump(),
            files=files,
            seconds=round(time.monotonic() - began, 3),
            created=datetime.datetime.now(datetime.UTC),
        ),
    )


# ---- before there are tasks


def _plan(study: Study, table: Table, description: Description, labels: Labels) -> Plan:
    """What joins to what.

    Raises:
        DataError: a column is not there; says why.
    """
    source, _, column = labels.column.partition(".")
    _known(description, source, column, f"{study.file}: cohort.target.column")
    holds = {name: any(part.packs for part in table.parts(name)) for name in study.sources}
    given = {}
    for name, modality in study.modalities.items():
        of = study.source_of(name)
        assets = modality.reads == "assets"
        if assets and not holds[of]:
            raise DataError(
                f"modalities.{name}: kind '{modality.kind}' needs images or signals, '{of}' holds columns only"
            )
        given[name] = Input(of, _by(study, of), modality.use, _columns(study, description, name), assets)
    return Plan(table, study.cohort.unit, labels, _by(study, source), given)


def _by(study: Study, source: str) -> By:
    """What joins a source's rows to the units: by record where both name one."""
    unit = study.cohort.unit
    if unit == source:
        return "row"
    both = unit != SUBJECT and study.keyed(unit, "record") and study.keyed(source, "record")
    return "record" if both else "subject"


def _columns(study: Study, description: Description, name: str) -> tuple[str, ...]:
    """The columns that a modality may see: those it names, else all that the study does not use otherwise."""
    source, never = study.source_of(name), study.never_inputs()
    known = description.columns.get(source, {})
    chosen = getattr(study.modalities[name], "columns", None)
    if chosen is None:
        return tuple(c for c, kind in known.items() if f"{source}.{c}" not in never and kind != TIMESTAMP)
    for column in chosen:
        where = f"{study.file}: modalities.{name}.columns"
        if f"{source}.{column}" in never:
            raise DataError(f"{where}: '{column}' is a target, split, key or time and never an input")
        _known(description, source, column, where)
    return tuple(chosen)


def _known(description: Description, source: str, column: str, where: str) -> None:
    known = description.columns.get(source, {})
    dropped = description.dropped.get(source, {})
    if column in known:
        return
    if column in dropped:
        raise DataError(
            f"{where}: '{source}.{column}' is not in the table: {dropped[column]}. Name it in governance.keep_columns "
            "if it identifies nobody."
        )
    raise DataError(f"{where}: '{source}' has no column '{column}'{plugins.suggest(column, [*known, *dropped])}")


def _groups(plan: Plan, num_buckets: int) -> list[list[int]]:
    """The buckets of each task."""
    wanted = 0.0
    for source in {plan.target_source, *(given.source for given in plan.inputs.values())}:
        opens = any(given.assets for given in plan.inputs.values() if given.source == source)
        wanted += sum(part.rows for part in plan.table.parts(source)) / (TASK_ASSETS if opens else TASK_ROWS)
    count = min(num_buckets, max(MIN_TASKS, math.ceil(wanted)))
    return [list(range(first, num_buckets, count)) for first in range(count)]


def _rows_per_shard(work: Work, states: Mapping[str, dict[str, Any]], facts: ShardFacts) -> int:
    bytes_each = sum(inputs.blank(modality, states[name], 1).nbytes for name, modality in work.modalities.items())
    finer = max(MIN_ROWS, facts.units[TRAIN] // TRAIN_SHARDS)
    return max(1, min(MAX_ROWS, MAX_BYTES // max(1, bytes_each), finer))


# ---- tasks


def _run(sort: str, work: Work, groups: Sequence[Sequence[int]], what: str, progress: Progress) -> Found:
    """What each task gave, in their order; one execution of Ray Data, which costs about a second whatever it does."""
    import ray.data

    settle(ray.data.DataContext.get_current())
    items = [{"task": task, "buckets": json.dumps(list(buckets))} for task, buckets in enumerate(groups)]
    progress(what, 0, len(items))
    rows = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(cast(Any, run), batch_size=1, batch_format="numpy", fn_kwargs={"sort": sort, "work": work})
        .iter_rows()
    )
    found: dict[int, dict[str, Any]] = {}
    for row in watchdog(rows, what):
        found[int(row["task"])] = opened(row["result"])
        progress(what, len(found), len(items))
    return [found[task] for task in range(len(items))]


def _fit(work: Work, surveyed: Found, groups: Sequence[Sequence[int]], progress: Progress) -> Work:
    """The work with every step of every modality fitted; a step needs a pass of its own.

    Raises:
        DataError: a modality has nothing to learn from.
    """
    found = surveyed
    while True:
        fitted = {name: list(work.fitted.get(name, ())) for name in work.modalities}
        for name, modality in work.modalities.items():
            partials = [partial for one in found for partial in one["partials"].get(name, [])]
            if len(fitted[name]) < inputs.num_passes(modality):
                if not partials:
                    raise DataError(f"modalities.{name}: no unit of the train split has it")
                with naming(name):
                    fitted[name].append(inputs.merge(modality, fitted[name], partials))
        work = replace(work, fitted=fitted)
        left = [name for name, m in work.modalities.items() if len(fitted[name]) < inputs.num_passes(m)]
        if not left:
            return work
        found = _run("refit", work, groups, "fitting", progress)


# ---- what is known


def _facts(study: Study, plan: Plan, description: Description, surveyed: Found) -> ShardFacts:
    """What the survey tells.

    Raises:
        DataError: labels contradict each other, a subject is in two splits, a split is empty, or has one class only.
    """
    labels, where = plan.labels, f"cohort.target {plan.labels.column}"
    contradicted = sum(found["contradicted"] for found in surveyed)
    if contradicted:
        raise DataError(
            f"{where}: {contradicted:,} units have rows that disagree. Correct them, or make each record a unit "
            f"(cohort.unit: {plan.target_source})."
        )
    crossing = sum(found["crossing"] for found in surveyed)
    if crossing:
        raise DataError(f"cohort.split: {crossing:,} subjects have records in two splits")
    counted = {key: {s: sum(found[key][s] for found in surveyed) for s in SPLITS} for key in ("units", "subjects")}
    left_out: Counter[str] = sum((Counter(found["left_out"]) for found in surveyed), Counter())
    for split in (TRAIN, HELD_OUT):
        if not counted["units"][split]:
            told = ", ".join(f"{left_out[reason]:,} {reason}" for reason in (NO_LABEL, NO_INPUT, OUTSIDE))
            raise DataError(f"cohort.split: no unit with a label is in {split}. Units left out: {told}.")
    facts = ShardFacts(
        task=labels.task,
        columns=_shown(study, description),
        units=counted["units"],
        subjects=counted["subjects"],
        left_out=dict(left_out),
        disjoint=crossing == 0,
        subject_rule=words.subject_rule(study),
        split_rule=words.split_rule(study),
    )
    if labels.task == "regression":
        facts.label_mean, facts.label_std = _mean_and_std([found["moments"] for found in surveyed])
        if not facts.label_std:
            raise DataError(f"{where}: every unit of the train split has the same value")
        return facts
    per_class: dict[str, Counter[str]] = {
        s: sum((Counter(found["classes"][s]) for found in surveyed), Counter()) for s in SPLITS
    }
    facts.classes = labels.name_classes({name for counts in per_class.values() for name in counts})
    if labels.task == "binary":
        several = per_class[TRAIN][YES] and per_class[TRAIN][NO]
        facts.units_per_class = {s: {facts.classes[0]: per_class[s][YES]} for s in SPLITS}
    else:
        facts.units_per_class = {s: {name: per_class[s][name] for name in facts.classes} for s in SPLITS}
        counts = facts.units_per_class[TRAIN].values()
        several = any(0 < count < counted["units"][TRAIN] for count in counts)
    if not several:
        raise DataError(f"{where}: every unit of the train split is of one class; there is nothing to tell apart")
    facts.class_share = {name: n / facts.units[TRAIN] for name, n in facts.units_per_class[TRAIN].items()}
    return facts


def _shown(study: Study, description: Description) -> dict[str, dict[str, str]]:
    """The columns that a served request may name, by source."""
    never = study.never_inputs()
    return {
        source: {name: kind for name, kind in columns.items() if f"{source}.{name}" not in never}
        for source, columns in description.columns.items()
        if source in study.sources
    }


def _mean_and_std(parts: Sequence[Sequence[float]]) -> tuple[float, float]:
    count = sum(part[0] for part in parts)
    mean = math.fsum(part[0] * part[1] for part in parts) / count
    return mean, math.sqrt(math.fsum(part[2] + part[0] * (part[1] - mean) ** 2 for part in parts) / count)


def _others(folder: Path, files: Mapping[str, str]) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name not in files]
