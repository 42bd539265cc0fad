"""Sources: are the files there, do they open, and do they have the columns and keys that the study names?"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from medray import plugins
from medray.check.findings import Findings
from medray.errors import MissingExtraError, ReadError, StudyError
from medray.plugins import Kind
from medray.readers import OfValue, PathValue, Reader, Records, column_names, evaluate, parts, path_text
from medray.runtime import Progress
from medray.schema import canonical, is_identifier
from medray.study import Study

FILES = 200  # opened at most, spread over all of them
ROWS = 100_000  # read at most


@dataclass
class Seen:
    """What was looked at of one source.

    Attributes:
        files: that match its path.
        size: of these, in bytes.
        rows: that were read.
        all: whether that was every row of every file.
    """

    reader: Reader
    relatives: list[str] = field(default_factory=list)
    size: int = 0
    rows: int = 0
    all: bool = False
    heads: list[tuple[str, Records]] = field(default_factory=list)

    @property
    def files(self) -> int:
        """That match its path."""
        return len(self.relatives)

    @property
    def columns(self) -> list[str]:
        """By name: those of the format, and those that the study adds."""
        native = [name for _, records in self.heads for name in records.columns.column_names]
        return list(dict.fromkeys([*native, *self.reader.columns]))

    def values(self, value: Any) -> list[str | None]:
        """A value for each row that was read; where it stands in the path alone, for each file."""
        if isinstance(value, str):
            value = self.reader.columns.get(value, value)
        if all(isinstance(part, PathValue) for part in parts(value)) and not self.reader.free_form:
            return [self._of_path(value, relative) for relative in self.relatives]
        return [text for relative, records in self.heads for text in evaluate(value, records, relative)]

    def complete(self, value: Any) -> bool:
        """Whether `values` gives all that there are."""
        if isinstance(value, str):
            value = self.reader.columns.get(value, value)
        return self.all or (all(isinstance(part, PathValue) for part in parts(value)) and not self.reader.free_form)

    @staticmethod
    def _of_path(value: Any, relative: str) -> str | None:
        found = [canonical(path_text(part.path, relative)) for part in parts(value)]
        return None if None in found else "/".join(map(str, found))


def check_sources(study: Study, findings: Findings, progress: Progress) -> dict[str, Seen]:
    """What can be seen of each source; what is wrong with it goes to `findings`."""
    _check_libraries(study, findings)
    seen: dict[str, Seen] = {}
    for number, name in enumerate(study.sources):
        progress("looking at the sources", number, len(study.sources))
        found = _look(study, name, findings)
        if found is not None:
            seen[name] = found
            _check_names(study, name, found, findings)
            _check_keys(study, name, found, findings)
    progress("looking at the sources", len(study.sources), len(study.sources))
    return seen


def _check_libraries(study: Study, findings: Findings) -> None:
    """The libraries that the study's kinds need."""
    for where, kind in _kinds(study, ""):
        library, extra = getattr(kind, "library", ""), getattr(kind, "extra", "")
        if library and importlib.util.find_spec(library) is None:
            findings.fail(
                where, str(MissingExtraError(library, extra)).split(". ")[0], f"pip install 'medray[{extra}]'"
            )


def _kinds(value: Any, where: str) -> Iterator[tuple[str, Kind]]:
    if isinstance(value, Kind):
        yield where, value
    if hasattr(type(value), "model_fields"):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _kinds(item, f"{where}.{name}".lstrip("."))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _kinds(item, f"{where}.{index}")


def _look(study: Study, name: str, findings: Findings) -> Seen | None:
    reader: Reader = study.sources[name]
    where = f"sources.{name}"
    try:
        root = study.root(name)
    except StudyError as error:
        findings.fail(f"{where}.root", str(error).rsplit(": ", 1)[-1].rstrip("."), "Set it, or write the folder")
        return None
    if not root.is_dir():
        findings.fail(f"{where}.root", f"{root} is no folder", "Correct the root")
        return None
    try:
        paths = sorted(
            path for path in root.glob(reader.path) if path.is_file() and not _hidden(path.relative_to(root))
        )
    except (NotImplementedError, ValueError):
        findings.fail(f"{where}.path", f"'{reader.path}' is not relative to the root", "Put its folder into `root`")
        return None
    if not paths:
        findings.fail(f"{where}.path", f"no file below {root} matches '{reader.path}'", "Correct the path or the root")
        return None
    seen = Seen(
        reader, [path.relative_to(root).as_posix() for path in paths], sum(path.stat().st_size for path in paths)
    )
    if reader.library and importlib.util.find_spec(reader.library) is None:
        return seen  # said already
    unreadable = _read(seen, root, _spread(paths))
    total = seen.rows + sum(unreadable.values())
    if unreadable:
        (reason, _), share = unreadable.most_common(1)[0], sum(unreadable.values()) / total
        what = f"{share:.1%} of the {total:,} records looked at cannot be read, most often: {reason}"
        _over(study, findings, share, where, what, "They are quarantined. Correct the files")
    if not seen.rows and not unreadable:
        findings.fail(where, "its files hold no rows", "Correct the path")
    return seen


def _hidden(relative: Path) -> bool:
    """A workspace among them."""
    return any(part.startswith(".") for part in relative.parts)


def _spread(paths: list[Path]) -> list[Path]:
    """At most `FILES` of them, evenly spread: a sorted list has one class first."""
    step = max(1.0, len(paths) / FILES)
    return [paths[int(index * step)] for index in range(min(len(paths), FILES))]


def _read(seen: Seen, root: Path, paths: list[Path]) -> Counter[str]:
    """Read heads into `seen`; what could not be read, by reason."""
    unreadable: Counter[str] = Counter()
    seen.all = len(paths) == seen.files
    share = max(1, ROWS // len(paths))
    for path in paths:
        rows = 0
        try:
            if not all(part.is_file() for part in seen.reader.companions(path)):
                raise ReadError(path, "a file that belongs to it is missing")
            for records in seen.reader.read(path, assets=False):
                seen.heads.append((path.relative_to(root).as_posix(), records))
                unreadable.update(reason for _, reason in records.bad)
                rows += len(records.rows)
                if rows >= share:
                    seen.all = False
                    break
        except ReadError as error:
            unreadable[error.reason] += 1
        seen.rows += rows
    return unreadable


def _over(study: Study, findings: Findings, share: float, where: str, what: str, do: str) -> None:
    """A share of a source's records that will be quarantined: fails where it is more than the study allows."""
    allowed = study.governance.max_quarantined
    if share > allowed:
        findings.fail(where, what, f"{do}, or raise governance.max_quarantined (now {allowed:.0%})")
    else:
        findings.mind(where, what, do)


def _check_names(study: Study, name: str, seen: Seen, findings: Findings) -> None:
    """Columns that the study names and the source does not have."""
    if not seen.heads:
        return
    reader, known = seen.reader, seen.columns
    named: list[tuple[str, str]] = []
    for field_name in ("record", "subject", "time"):
        value = getattr(reader, field_name)
        named += [(f"sources.{name}.{field_name}", column) for column in sorted(column_names(value) if value else ())]
    for column, value in reader.columns.items():
        named += [(f"sources.{name}.columns.{column}", each) for each in sorted(column_names(value))]
    for where, whole in (
        ("cohort.target.column", study.cohort.target.column),
        ("cohort.split.by", study.cohort.split.by),
    ):
        if isinstance(whole, str) and whole.split(".", 1)[0] == name:
            named.append((where, whole.split(".", 1)[1]))
    for where, column in named:
        if column not in known:
            hint = plugins.suggest(column, known)
            findings.fail(
                where, f"{name} has no column '{column}'{hint.rstrip('?.')}{'?' * ('?' in hint)}", _some(known)
            )
    for modality, config in study.modalities.items():
        if study.source_of(modality) != name:
            continue
        for column in getattr(config, "columns", None) or ():
            where = f"modalities.{modality}.columns"
            if column not in known:
                findings.fail(where, f"{name} has no column '{column}'", _some(known))
            elif is_identifier(column) and f"{name}.{column}" not in study.governance.keep_columns:
                do = f"Leave it out, or name {name}.{column} in governance.keep_columns"
                findings.fail(where, f"'{column}' is dropped as identifying by its name", do)


def _some(known: Iterable[str]) -> str:
    names = list(islice(known, 13))
    return f"It has: {', '.join(names[:12])}{', ...' * (len(names) > 12)}" if names else "It has none"


def _check_keys(study: Study, name: str, seen: Seen, findings: Findings) -> None:
    """Keys and path patterns that fit too few files or rows, and record keys that occur twice."""
    reader = seen.reader
    for field_name in ("record", "subject", "time"):
        value = getattr(reader, field_name)
        if value is None or isinstance(value, OfValue) or column_names(value) - set(seen.columns):
            continue
        where, texts = f"sources.{name}.{field_name}", seen.values(value)
        missing = sum(text is None for text in texts)
        if missing and field_name != "time":
            what = f"{missing:,} of the {len(texts):,} records looked at have none"
            _over(
                study,
                findings,
                missing / len(texts),
                where,
                what,
                "They are quarantined. Correct the pattern or the data",
            )
        if field_name == "record":
            twice = sum(count - 1 for text, count in Counter(texts).items() if text is not None)
            if twice:
                what = f"{twice:,} of the {len(texts):,} records looked at have a key that occurred before"
                _over(study, findings, twice / len(texts), where, what, "Each record needs its own key")
    for column, value in reader.columns.items():
        patterns = [part.path for part in parts(value) if isinstance(part, PathValue)]
        unmatched = sum(any(path_text(each, relative) is None for each in patterns) for relative in seen.relatives)
        if unmatched:
            what = f"the pattern fits {seen.files - unmatched:,} of {seen.files:,} files"
            where = f"sources.{name}.columns.{column}"
            _over(
                study, findings, unmatched / seen.files, where, what, "The others are quarantined. Correct the pattern"
            )


def check_joins(study: Study, seen: dict[str, Seen], findings: Findings) -> None:
    """Subjects that are found in another source by the record's key: do the keys meet?"""
    for name, here in seen.items():
        subject = here.reader.subject
        if not isinstance(subject, OfValue) or subject.of not in seen or here.reader.record is None:
            continue
        owner = seen[subject.of]
        keys = {text for text in here.values(here.reader.record) if text is not None}
        known = {text for text in owner.values(owner.reader.record) if text is not None}
        if not keys or not known or not owner.complete(owner.reader.record):
            continue
        lost = len(keys - known) / len(keys)
        if lost:
            what = f"{len(keys & known):,} of the {len(keys):,} record keys looked at are in '{subject.of}'"
            do = f"Compare sources.{name}.record with sources.{subject.of}.record"
            _over(study, findings, lost, f"sources.{name}.subject", what, do)
