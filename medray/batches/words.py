"""Words: how subjects are known and split, for the split certificate, and what a person should mind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medray.artifacts.shards import ShardFacts
from medray.readers import OfValue, PathValue, RowValue, parts
from medray.schema import HELD_OUT, SPLITS, TUNING
from medray.study import Study

FEW = 0.05  # present in a smaller share of train: hardly learned from
NAMED = 8  # columns that one warning names


def subject_rule(study: Study) -> str:
    """What names the subject of each source's records."""
    rules = []
    for name, reader in study.sources.items():
        value = reader.subject or reader.own_subject()
        rules.append(f"{name}: {'each record is its own subject' if value is None else _words(value)}")
    return "; ".join(rules)


def split_rule(study: Study) -> str:
    """What decides which split a subject is in."""
    split = study.cohort.split
    named = {HELD_OUT: split.held_out, TUNING: split.tuning}
    start = "drawn" if split.by is None else f"by {_words(split.by)}"
    rules = [f"{name} where it is {' or '.join(values)}" for name, values in named.items() if values]
    of = {HELD_OUT: (split.held_out_share, "subjects"), TUNING: (split.tuning_share, "the remaining subjects")}
    rules += [
        f"{share:.0%} of {whom} {name}, drawn by a hash of seed {split.seed} and the subject"
        for name, (share, whom) in of.items()
        if not named[name]
    ]
    return f"{start}: {', '.join(rules)}; the rest train"


def warnings(study: Study, facts: ShardFacts, present: Mapping[str, int]) -> list[str]:
    """What a person should mind before they believe a figure."""
    return [*_of_subjects(study), *_of_splits(facts), *_of_modalities(study, facts, present)]


def _of_subjects(study: Study) -> Iterator[str]:
    for name, reader in study.sources.items():
        if reader.subject is None and reader.own_subject() is None:
            yield (
                f"sources.{name} names no subject: each record counts as its own, and a person with several records "
                "may be in two splits"
            )


def _of_splits(facts: ShardFacts) -> Iterator[str]:
    if not facts.units[TUNING]:
        yield "the tuning split is empty: training will stop early by the train loss"
    for split in SPLITS:
        counts = facts.units_per_class.get(split, {})
        lacking = [name for name in facts.classes if not counts.get(name)]
        if lacking and facts.units[split]:
            yield f"{split} has no unit with {', '.join(lacking)}"
        alike = [name for name in facts.classes if counts.get(name) == facts.units[split]]
        if alike and facts.units[split]:
            yield f"in {split} every unit has {', '.join(alike)}"


def _of_modalities(study: Study, facts: ShardFacts, present: Mapping[str, int]) -> Iterator[str]:
    total = sum(facts.units.values())
    for name in study.modalities:
        if present[name] < FEW * total:
            yield f"modalities.{name} is present in {present[name]:,} of {total:,} units"
        left_out: Mapping[str, Any] = facts.states[name]["modality"].get("left_out", {})
        if left_out:
            named = [f"{column} ({reason})" for column, reason in list(left_out.items())[:NAMED]]
            more = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
            yield f"modalities.{name} leaves out {', '.join(named)}{more}"


def _words(value: Any) -> str:
    words = []
    for part in parts(value):
        if isinstance(part, PathValue):
            words.append(f"path {part.path}")
        elif isinstance(part, OfValue):
            words.append(f"that of the same record in {part.of}")
        else:
            words.append("the row" if isinstance(part, RowValue) else f"column {part}")
    return " and ".join(words)
