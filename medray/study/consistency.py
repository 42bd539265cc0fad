"""Mistakes that only show when the sections of a study are held side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medray import plugins
from medray.errors import StudyError
from medray.models import EncoderModel
from medray.readers import OfValue, PathValue, column_names, parts
from medray.schema import FILES, QUARANTINE

if TYPE_CHECKING:
    from medray.study import Study

RESERVED = {QUARANTINE, FILES, "subject"}


def mistakes(study: Study) -> list[str]:
    """One line a mistake."""
    # a search is tried out only on a study that is right by itself
    return [*_of_sources(study), *_of_cohort(study), *_of_modalities(study)] or [*_of_tune(study)]


def never_inputs(study: Study) -> set[str]:
    """`source.column` of target, split, keys and times, and of every column that says the same under another name."""
    named = {study.cohort.target.column}
    patterns: dict[str, set[str]] = {name: set() for name in study.sources}
    by = study.cohort.split.by
    if isinstance(by, str):
        named.add(by)
    for name, reader in study.sources.items():
        named |= {f"{name}.{column}" for column in reader.record_names()}
        for value in (by, reader.record, reader.subject or reader.own_subject(), reader.time):
            patterns[name] |= {part.path for part in parts(value) if isinstance(part, PathValue)}
    found = -1
    while found != len(named):  # an alias of an alias
        found = len(named)
        for name, reader in study.sources.items():
            for column, value in reader.columns.items():
                read = {f"{name}.{other}" for other in column_names(value)}
                paths = {part.path for part in parts(value) if isinstance(part, PathValue)}
                if f"{name}.{column}" in named:
                    named |= read
                    patterns[name] |= paths
                elif read & named or paths & patterns[name]:
                    named.add(f"{name}.{column}")
    return named


def _of_sources(study: Study) -> Iterator[str]:
    sources = study.sources
    if not sources:
        yield "sources: at least one is needed"
    for name, reader in sources.items():
        if name in RESERVED:
            yield f"sources.{name}: this name is reserved"
        elif not re.fullmatch(r"[A-Za-z][\w-]*", name):
            yield f"sources.{name}: a name is a letter, then letters, digits, '_' and '-'"
        if not isinstance(reader.subject, OfValue):
            continue
        owner = reader.subject.of
        if owner not in sources:
            yield f"sources.{name}.subject: no source '{owner}'{plugins.suggest(owner, sources)}"
        elif owner == name or isinstance(sources[owner].subject, OfValue):
            yield f"sources.{name}.subject: '{owner}' does not know the subject itself; name the source that does"
        elif reader.record is None or sources[owner].record is None:
            yield f"sources.{name}.subject: '{name}' and '{owner}' must both name their `record` to be joined"
    if study.train.batch_size % study.compute.workers:
        shared = f"{study.train.batch_size} samples are not shared equally by {study.compute.workers} workers"
        yield f"train.batch_size: {shared}; take a multiple"
    for column in study.governance.keep_columns:
        if column.partition(".")[0] not in sources:
            yield f"governance.keep_columns: '{column}' is not the source.column of any source"


def _of_cohort(study: Study) -> Iterator[str]:
    sources, cohort = study.sources, study.cohort
    named = {"cohort.target.column": cohort.target.column, "cohort.split.by": cohort.split.by}
    for where, column in named.items():
        source = column.partition(".")[0] if isinstance(column, str) else None
        if source is not None and source not in sources:
            yield f"{where}: no source '{source}'{plugins.suggest(source, sources)}"
    if cohort.unit != "subject" and cohort.unit not in sources:
        near = plugins.suggest(cohort.unit, ["subject", *sources])
        yield f"cohort.unit: no source '{cohort.unit}'{near} Give a source, or 'subject'."


def _of_modalities(study: Study) -> Iterator[str]:
    if not study.modalities:
        yield "modalities: at least one is needed"
    never = never_inputs(study)
    for name, modality in study.modalities.items():
        source = study.source_of(name)
        if name not in study.sources and not re.fullmatch(r"[A-Za-z][\w-]*", name):
            yield f"modalities.{name}: a name is a letter, then letters, digits, '_' and '-'"
        if source not in study.sources:
            near = plugins.suggest(source, study.sources)
            yield f"modalities.{name}: no source '{source}'{near} Name one with `of:`."
        for column in getattr(modality, "columns", None) or ():
            if f"{source}.{column}" in never:
                yield f"modalities.{name}.columns: '{column}' is a target, split, key or time and never an input"
    yield from _of_model(study)
    for sort, explainers in (("fast", study.explain.fast), ("full", study.explain.full)):
        for name in explainers:
            if name not in study.modalities:
                yield f"explain.{sort}.{name}: no modality '{name}'{plugins.suggest(name, study.modalities)}"


def _of_model(study: Study) -> Iterator[str]:
    chosen: dict[str, Any] = getattr(study.model, "encoders", dict.fromkeys(study.modalities, study.model))
    for name, model in chosen.items():
        where = "model" if model is study.model else f"model.encoders.{name}"
        if name not in study.modalities:
            yield f"{where}: no modality '{name}'{plugins.suggest(name, study.modalities)}"
        elif isinstance(model, EncoderModel) and model.axes != (axes := study.modalities[name].axes):
            takes, gives = ", ".join(model.axes), ", ".join(axes)
            yield f"{where}: kind '{model.kind}' takes ({takes}), but modality '{name}' gives ({gives})"


def _of_tune(study: Study) -> Iterator[str]:
    for path, dimension in study.tune.space.items() if study.tune else ():
        ((_, values),) = dimension.items()
        for value in values:
            try:
                study.override({path: value, "tune": None})
            except StudyError as error:
                yield f"tune.space: {str(error).splitlines()[0].removeprefix(study.file + ': ')}"
                break
