"""A first study of tables."""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medray import plugins
from medray.errors import DataError, ReadError
from medray.init.words import CLASSES, DRAWN, listed, number, target, text
from medray.schema import canonical, is_identifier

SUFFIXES = (".csv.gz", ".tsv.gz", ".csv", ".tsv", ".data")
SNIFF = 64 << 10  # characters
ROWS = 50_000  # looked at; enough to tell a category from a number
TARGETS = (
    "target",
    "label",
    "diagnosis",
    "outcome",
    "died",
    "death",
    "mortality",
    "disease",
    "readmitted",
    "class",
    "y",
)
SUBJECT = r"(patient|subject|person|participant|case)_?(id|no|nr|num|number|key)?|mrn|pid|id"
TIME = r"(.*_)?(date|time|datetime|timestamp|at)(_.*)?"


@dataclass
class _Table:
    """One source: its columns as canonical texts, by name."""

    source: str
    path: str
    header: tuple[str, ...]  # empty where the file has its own
    columns: dict[str, list[str | None]]

    @property
    def subject(self) -> str:
        return _named(SUBJECT, self.columns)

    @property
    def time(self) -> str:
        name = _named(TIME, self.columns)
        cells = [cell for cell in self.columns.get(name, ()) if cell]
        dated = sum(bool(re.match(r"\d{4}-\d\d-\d\d", cell)) for cell in cells)
        return name if cells and dated > 0.9 * len(cells) else ""


def study(folder: Path, paths: Sequence[PurePosixPath], wanted: str) -> list[str]:
    """The lines of a study of these tables, joined by the column that names the subject.

    Raises:
        DataError: none can be read, or it is not known which column to predict.
    """
    found = _tables(folder, paths)
    if not found:
        raise DataError(f"{folder}: no table that can be read ({', '.join(SUFFIXES)}), no images in folders by class")
    owner, column = _target(found, wanted)
    joined = [owner, *(each for each in found if each is not owner and owner.subject and each.subject)]
    rest = [each.path for each in found if each not in joined]
    lines = ["sources:"]
    for each in joined:
        lines += _source(each)
    if rest:
        lines += [f"  # not used, for no column tells whose rows they hold: {', '.join(rest)}"]
    lines += [*_inputs(owner, column, joined), "cohort:"]
    if not owner.subject:
        lines += ["  # no column looks like a person's number, so each row counts as its own subject"]
    return [*lines, *target(f"{owner.source}.{column}", owner.columns[column]), DRAWN]


def _tables(folder: Path, paths: Sequence[PurePosixPath]) -> list[_Table]:
    """Tables by their columns: all files of one folder with the same ones are one source."""
    reader = plugins.find("readers", "csv")
    groups: dict[tuple[str, ...], tuple[_Table, list[str]]] = {}
    for path in paths:
        try:
            header = _numbered(folder / path)
            first = next(iter(reader(path=str(path), header=header).read(folder / path)), None)  # type: ignore[attr-defined, call-arg]
        except (ReadError, OSError, csv.Error):
            continue
        if first is None or not first.columns.num_columns:
            continue
        columns = {
            str(name): [canonical(cell) for cell in column.to_pylist()[:ROWS]]
            for name, column in zip(first.columns.column_names, first.columns.columns, strict=True)
        }
        source, used = _word(path.name), [table.source for table, _ in groups.values()]
        table = _Table(
            source if source not in used else _word(f"{path.parent}_{path.name}"), str(path), header, columns
        )
        groups.setdefault((str(path.parent), *columns), (table, []))[1].append(str(path))
    for table, names in groups.values():
        suffix = next(each for each in SUFFIXES if names[0].lower().endswith(each))
        glob = str(PurePosixPath(names[0]).with_name("*" + names[0][-len(suffix) :]))
        if len(names) > 1 and sorted(names) == sorted(
            path.relative_to(folder).as_posix() for path in folder.glob(glob)
        ):
            table.path = glob
    return [table for table, _ in groups.values()]


def _numbered(path: Path) -> tuple[str, ...]:
    """`c1`, `c2`, ... for a file whose first line holds nothing but numbers; empty where it names its columns."""
    with gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else path.open(errors="replace") as file:
        head = file.read(SNIFF)
    dialect = csv.excel_tab if ".tsv" in path.suffixes else csv.Sniffer().sniff(head, delimiters=",;\t|")
    names = next(csv.reader(head.splitlines(), dialect))
    if any(number(name.strip()) is None and name.strip() not in {"", "?"} for name in names):
        return ()
    return tuple(f"c{index + 1}" for index in range(len(names)))


def _target(tables: Sequence[_Table], wanted: str) -> tuple[_Table, str]:
    """The column to predict: as asked for, else by its name, else a last column of a few classes."""
    for table in tables:
        for name, cells in table.columns.items():
            if name == wanted or (not wanted and name.lower() in TARGETS and len(set(cells)) > 1):
                return table, name
    known = [name for table in tables for name in table.columns]
    if wanted:
        raise DataError(f"no column '{wanted}'{plugins.suggest(wanted, known)} Columns: {', '.join(known[:30])}.")
    for table in tables:
        name = list(table.columns)[-1]
        if 2 <= len(set(table.columns[name]) - {None}) <= CLASSES:
            return table, name
    raise DataError(f"which column is to be predicted? Give --target COLUMN, one of: {', '.join(known[:30])}.")


def _source(table: _Table) -> list[str]:
    lines = [f"  {table.source}:", "    kind: csv", f"    path: {text(table.path)}"]
    if table.header:
        lines += [f"    header: {listed(table.header)}  # the file has no header line: name the columns here"]
    if table.subject:
        lines += [f"    subject: {text(table.subject)}  # whose row it is; becomes a pseudonym"]
    if table.time:
        lines += [f"    time: {text(table.time)}  # of several rows of a subject the latest is taken"]
    hidden = [name for name in table.columns if is_identifier(name) and name not in {table.subject, table.time}]
    return lines + ([f"    # left out, for their names say that they identify: {', '.join(hidden)}"] if hidden else [])


def _inputs(owner: _Table, column: str, joined: Sequence[_Table]) -> list[str]:
    """The inputs, where the target's own table has columns that would give it away."""
    telling = [name for name in owner.columns if name != column and _tells(owner.columns, name, column)]
    never = {owner.subject, owner.time, column, *telling}
    kept = [name for name in owner.columns if name not in never and not is_identifier(name)]
    if not telling or not kept:
        return []
    return [
        f"# no input is {', '.join(telling)}: each of its values goes with one value of the target",
        "modalities:",
        f"  {owner.source}: {{columns: {listed(kept)}}}",
        *(f"  {each.source}: {{}}" for each in joined[1:]),
    ]


def _tells(columns: Mapping[str, list[str | None]], column: str, of: str) -> bool:
    """Whether a column of a few values decides another one."""
    pairs = Counter(zip(columns[column], columns[of], strict=True))
    values = {value for value, _ in pairs}
    return 1 < len(values) <= CLASSES and len(pairs) == len(values) and sum(pairs.values()) >= 5 * len(values)


def _named(pattern: str, columns: Mapping[str, object]) -> str:
    """The first column whose name is like this; empty if none is."""
    return next((name for name in columns if re.fullmatch(pattern, name, re.IGNORECASE)), "")


def _word(name: str) -> str:
    """A source's name: a letter, then letters, digits and `_`."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower().split(".")[0]).strip("_") or "table"
    return word if word[0].isalpha() and word != "subject" else f"table_{word}"
