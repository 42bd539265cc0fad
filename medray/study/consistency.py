"""Mistakes that only show when the sections of a study are held side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medray import plugins
from medray.readers import OfValue
from medray.schema import FILES, QUARANTINE

if TYPE_CHECKING:
    from medray.study import Study


def inconsistencies(study: Study) -> list[str]:
    """One line a mistake."""
    wrong = []
    sources = study.sources
    if not sources:
        wrong.append("sources: at least one is needed")
    wrong += [f"sources.{name}: this name is reserved" for name in sources if name in {QUARANTINE, FILES, "subject"}]
    wrong += [f"sources.{name}: a name may not hold a dot" for name in sources if "." in name]
    for name, reader in sources.items():
        if isinstance(reader.subject, OfValue):
            owner = reader.subject.of
            if owner not in sources:
                wrong.append(f"sources.{name}.subject: no source '{owner}'{plugins.suggest(owner, sources)}")
            elif reader.record is None or sources[owner].record is None:
                wrong.append(
                    f"sources.{name}.subject: both '{name}' and '{owner}' must name their `record` to be joined"
                )
    for name in study.modalities:
        of = study.source_of(name)
        if of not in sources:
            wrong.append(f"modalities.{name}: no source '{of}'{plugins.suggest(of, sources)} Name one with `of:`.")
    named = {"cohort.target.column": study.cohort.target.column}
    if isinstance(study.cohort.split.by, str):
        named["cohort.split.by"] = study.cohort.split.by
    for where, column in named.items():
        source = column.split(".", 1)[0]
        if source not in sources:
            wrong.append(f"{where}: no source '{source}'{plugins.suggest(source, sources)}")
    if study.cohort.unit != "subject" and study.cohort.unit not in sources:
        wrong.append(f"cohort.unit: 'subject' or a source{plugins.suggest(study.cohort.unit, sources)}")
    wrong += [
        f"explain.{name}: no modality '{name}'{plugins.suggest(name, study.modalities)}"
        for name in study.explain
        if name not in study.modalities
    ]
    if study.cohort.split.by is None and (study.cohort.split.held_out or study.cohort.split.tuning):
        wrong.append("cohort.split: held_out and tuning name values of `by:`, which is not given")
    return wrong
