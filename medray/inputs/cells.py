"""Cells: what a column holds, number, text or time, and its cells as that; the same for files and for served requests.

A number is finite and written with a decimal point. A time is ISO 8601 or its compact form (DICOM, HL7 v2),
month/day/year, day.month.year, day-month-year, or names its month; its year has four digits. Without a zone it is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone

import pyarrow as pa
import pyarrow.compute as pc

from medray.schema import NUMBER, TEXT, TIMESTAMP

TYPES = {NUMBER: pa.float64(), TEXT: pa.string(), TIMESTAMP: pa.timestamp("us", tz="UTC")}
FITTING = 0.9  # of the cells of a column of numbers or times: the rest is wrong, not a reason to call them all text

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d{1,6})?)?)?)?"
_ZONE = r" ?(Z|[+-]\d\d:?\d\d)$"
_COMPACT = r"^(\d{4})(\d\d)(\d\d)"
_CLOCK = r"(?:[T ,]+(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,6})\d*)?)?(?:\s*([AaPp])\.?[Mm]\.?)?)?"
_YEAR_LAST = re.compile(rf"(\d{{1,2}})([/.-])(\d{{1,2}})\2(\d{{4}}){_CLOCK}")
_YEAR_FIRST = re.compile(rf"(\d{{4}})([/.-])(\d{{1,2}})\2(\d{{1,2}}){_CLOCK}")
_DATE_LIKE = r"^\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_MONTH_NAME = re.compile(r"(?i)\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b")


def typed(columns: pa.Table, kinds: Mapping[str, str]) -> tuple[pa.Table, dict[int, str]]:
    """The cells of some columns as numbers (float64), texts and times (timestamp[us, UTC]).

    Args:
        columns: texts as read, or what a format has typed itself; missing cells are null, or texts of blanks.
        kinds: what each wanted column holds: NUMBER, TEXT or TIMESTAMP.

    Returns:
        The wanted columns in their order, absent ones null; and the rows (0-based) that hold something else, each with
        a reason that names the column, never the cell. Such a cell is null.
    """
    arrays: list[pa.Array] = []
    reasons: dict[int, str] = {}
    for name, kind in kinds.items():
        if name not in columns.column_names:
            arrays.append(pa.nulls(columns.num_rows, TYPES[kind]))
            continue
        array, wrong = parse(columns.column(name), kind)
        arrays.append(array)
        for row in pc.indices_nonzero(wrong).to_pylist():
            reasons.setdefault(row, f"column '{name}' holds something that is no {kind}")
    return pa.table(arrays, names=list(kinds)), dict(sorted(reasons.items()))


def count_kinds(column: pa.ChunkedArray) -> dict[str, int]:
    """How many cells of a column are numbers, how many are times, and, as TEXT, how many there are but missing ones."""
    counts = {NUMBER: 0, TIMESTAMP: 0, TEXT: len(column) - parse(column, TEXT)[0].null_count}
    if _is_text(column):
        return counts | {kind: len(column) - parse(column, kind)[0].null_count for kind in (NUMBER, TIMESTAMP)}
    own = NUMBER if _is_number(column.type) else TIMESTAMP if pa.types.is_temporal(column.type) else TEXT
    return counts | {own: counts[TEXT]}


def kind_of(counts: Mapping[str, int]) -> str:
    """What a column holds, by the counts of `count_kinds` over all of its cells: 20240131 is a number before a time."""
    fitting = [kind for kind in (NUMBER, TIMESTAMP) if counts[kind] and counts[kind] >= FITTING * counts[TEXT]]
    return fitting[0] if fitting else TEXT


def parse(column: pa.ChunkedArray, kind: str) -> tuple[pa.Array, pa.BooleanArray]:
    """A column's cells as one kind, and which of them are something else; those and the missing ones are null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or of more than one array can hold
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.nulls(0, array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_text(array):
        array = _trimmed(array)
        found = {NUMBER: _numbers, TEXT: _normalized, TIMESTAMP: _times}[kind](array)
    elif kind == NUMBER and _is_number(array.type):
        numbers = array.cast(pa.uint8()) if pa.types.is_boolean(array.type) else array
        numbers = numbers.cast(pa.float64(), safe=False)
        array = pc.if_else(pc.is_nan(numbers), None, numbers)
        found = pc.if_else(pc.is_finite(array), array, None)
    elif kind == TIMESTAMP and (pa.types.is_timestamp(array.type) or pa.types.is_date(array.type)):
        zoned = pa.types.is_timestamp(array.type) and array.type.tz is not None
        found = array.cast(pa.timestamp("us", tz=array.type.tz if zoned else None), safe=False)
        found = found.cast(TYPES[TIMESTAMP]) if zoned else pc.assume_timezone(found, "UTC")
    elif kind == TEXT and (_is_number(array.type) or pa.types.is_temporal(array.type)):
        found = array.cast(pa.string())
    else:
        found = pa.nulls(len(array), TYPES[kind])
    return found, pc.and_(pc.is_valid(array), pc.is_null(found))


def _is_text(column: pa.Array | pa.ChunkedArray) -> bool:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return any(
        is_(kind) for is_ in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    )


def _trimmed(texts: pa.Array) -> pa.Array:
    """Without blanks at either end; what is nothing then is missing."""
    trimmed = pc.utf8_trim_whitespace(texts.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _normalized(texts: pa.Array) -> pa.Array:
    return pc.utf8_normalize(texts, form="NFC")


def _numbers(texts: pa.Array) -> pa.Array:
    fitting = pc.match_substring_regex(texts, _NUMBER)
    numbers = pc.if_else(fitting, texts, None).cast(pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)  # 1e400 is not


def _times(texts: pa.Array) -> pa.Array:
    texts = pc.replace_substring_regex(texts, r"(:\d\d\.\d{6})\d+", r"\1")  # finer than a microsecond
    texts = pc.replace_substring_regex(texts, _COMPACT + "$", r"\1-\2-\3")
    texts = pc.replace_substring_regex(texts, _COMPACT + r"T?(\d\d)(\d\d)(\d\d)", r"\1-\2-\3 \4:\5:\6")
    naive, zoned = (pc.match_substring_regex(texts, _ISO + end) for end in ("$", _ZONE))
    times = pa.nulls(len(texts), TYPES[TIMESTAMP])
    try:
        if pc.any(naive).as_py():
            found = pc.if_else(naive, texts, None).cast(pa.timestamp("us"))
            times = pc.coalesce(times, pc.assume_timezone(found, "UTC"))
        if pc.any(zoned).as_py():
            without_blank = pc.replace_substring_regex(texts, r" ?(Z|[+-]\d\d:?\d\d)$", r"\1")
            times = pc.coalesce(times, pc.if_else(zoned, without_blank, None).cast(TYPES[TIMESTAMP]))
        others = pc.is_null(times)
    except pa.ArrowInvalid:  # one of them is the 30th of February
        others = pc.is_valid(texts)
        times = pa.nulls(len(texts), TYPES[TIMESTAMP])
    others = pc.and_(others, pc.fill_null(pc.match_substring_regex(texts, _DATE_LIKE), fill_value=False))
    if pc.any(others).as_py():
        encoded = pc.if_else(others, texts, None).dictionary_encode()
        moments = pa.array([_moment(text) for text in encoded.dictionary.to_pylist()], TYPES[TIMESTAMP])
        times = pc.coalesce(times, moments.take(encoded.indices))
    return times


def _moment(text: str) -> datetime | None:
    """A time that is written in none of the usual ways, or None."""
    try:
        if match := _YEAR_LAST.fullmatch(text):
            first, sign, second, year, *clock = match.groups()
            month, day = (first, second) if sign == "/" else (second, first)
            return datetime.combine(date(int(year), int(month), int(day)), _clock(*clock), UTC)
        if match := _YEAR_FIRST.fullmatch(text):
            year, _, month, day, *clock = match.groups()
            return datetime.combine(date(int(year), int(month), int(day)), _clock(*clock), UTC)
        if re.match(_ISO, text):
            return _in_utc(datetime.fromisoformat(text))
        return _by_name(text) if _MONTH_NAME.search(text) and re.search(r"\b\d{4}\b", text) else None
    except (ValueError, OverflowError):
        return None


def _clock(hour: str | None, minute: str | None, second: str | None, fraction: str | None, half: str | None) -> time:
    hours = int(hour or 0)
    if half:
        if not 1 <= hours <= 12:
            raise ValueError("no such hour")
        hours = hours % 12 + (12 if half in "Pp" else 0)
    return time(hours, int(minute or 0), int(second or 0), int((fraction or "").ljust(6, "0")))


def _by_name(text: str) -> datetime | None:
    from dateutil import parser

    def zone(name: str | None, offset: int | None) -> timezone | None:
        if offset is None and name is None:
            return None
        if offset is None:
            raise ValueError(f"unknown time zone {name}")
        return timezone(timedelta(seconds=offset))

    # what the text leaves out is taken from the default: two defaults that differ in day, month and year tell
    one, other = (parser.parse(text, default=datetime(*day), tzinfos=zone) for day in ((2000, 1, 1), (2001, 2, 2)))  # noqa: DTZ001
    return _in_utc(one) if one == other else None


def _in_utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
