"""De-identification: pseudonyms, which columns may be kept, and what of the kept ones is changed.

The 18 identifiers of HIPAA 164.514(b)(2)(i) are removed by the column's name and by what a survey has counted in it;
dates are shifted, which Safe Harbor does not ask for but longitudinal research does (intervals stay exact). Ages over
89 become 90 (164.514(b)(2)(i)(C)). No column is judged by a value that left the task that read it: only counts do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medray.schema import NUMBER, TEXT, is_identifier

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ID_BYTES = 16
MAX_SHIFT_DAYS = 365
OLDEST = 89  # years; whoever is older is 90

LITERAL_SHARE = 0.95  # of the values that must be lists or mappings for a column of these
UNIQUE_SHARE = 0.95  # of the values that are distinct in a column of names, numbers of files or the like
FEW = 10  # values; too few to call a column unique
CATEGORIES = 32  # distinct texts of several words that are still categories; a model takes no more either
SKETCH = 1024  # hashes kept to estimate distinct values: within about 3 %

_ID_NAME = re.compile(
    r"(^|[_.\s-])(ids?|nos?|nrs?|num|numbers?|keys?|codes?|index|idx|row|uid|guid|barcode)$", re.IGNORECASE
)
_AGE = re.compile(r"(^|[_.\s-])age($|[_.\s-])", re.IGNORECASE)
_NO_AGE_IN_YEARS = re.compile(r"(months?|weeks?|days?|hours?|groups?|gestational|bone)", re.IGNORECASE)


class Pseudonyms:
    """Keyed hashes of identifiers, HMAC-SHA256, the first 16 bytes: without the key neither made nor undone.

    Attributes:
        secret: 32 bytes, derived from the installation's secret for pseudonyms.
        dates: 32 bytes, for the shift of dates.
    """

    def __init__(self, secret: bytes, dates: bytes) -> None:
        self._secret = secret
        self._dates = dates
        self._subjects: dict[str, bytes] = {}

    def subject(self, patient_id: str) -> bytes:
        """The subject that a patient becomes."""
        found = self._subjects.get(patient_id)
        if found is None:
            if len(self._subjects) > 1 << 20:  # a task sees many records of one patient, seldom a million patients
                self._subjects.clear()
            found = self._subjects[patient_id] = self._keyed("subject", patient_id)
        return found

    def record(self, key: str) -> bytes:
        """The record of a key; the same key in two sources is the same record."""
        return self._keyed("record", key)

    def file(self, source: str, path: str) -> bytes:
        """The file of a source at a path relative to the source's root."""
        return self._keyed("file", f"{source}\0{path}")

    def value(self, text: str) -> int:
        """64 bits that stand for a cell while distinct ones are counted."""
        return int.from_bytes(self._keyed("value", text)[:8], "big")

    def shift_days(self, subject_id: bytes) -> int:
        """By how many days every date of a subject is shifted: 1 to 365, forward or back."""
        drawn = int.from_bytes(hmac.digest(self._dates, subject_id, hashlib.sha256)[:8], "big") % (2 * MAX_SHIFT_DAYS)
        return drawn - MAX_SHIFT_DAYS if drawn < MAX_SHIFT_DAYS else drawn - MAX_SHIFT_DAYS + 1

    def _keyed(self, purpose: str, text: str) -> bytes:
        return hmac.digest(self._secret, f"{purpose}\0{text}".encode(), hashlib.sha256)[:ID_BYTES]


@dataclass
class Facts:
    """What a survey has counted of one column over some rows; no value is in it.

    Attributes:
        native: what the format itself says that the column holds; empty where it is text.
        values: cells that are not missing; all that follows counts among them.
        numbers, times: cells that read as such; `whole` of the numbers are integers.
        codes: numbers that are written with a leading zero, as codes are.
        sentences: texts of three words or more.
        literals: texts that are a list, a mapping or a set, as JSON or Python write them.
        sketch: the smallest keyed hashes of the distinct values, at most 1,024 (Bar-Yossef et al. 2002).
    """

    native: str = ""
    values: int = 0
    numbers: int = 0
    whole: int = 0
    codes: int = 0
    times: int = 0
    sentences: int = 0
    literals: int = 0
    sketch: list[int] = field(default_factory=list)

    def add(self, other: Facts) -> None:
        """Count what another part of the same column holds."""
        self.native = self.native or other.native
        for name in ("values", "numbers", "whole", "codes", "times", "sentences", "literals"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sketch = sorted({*self.sketch, *other.sketch})[:SKETCH]

    @property
    def distinct(self) -> float:
        """How many distinct values, exact up to 1,023."""
        if len(self.sketch) < SKETCH:
            return float(len(self.sketch))
        return (SKETCH - 1) / (self.sketch[-1] / 2.0**64)

    @property
    def unique(self) -> bool:
        """Whether (nearly) every value stands once."""
        return self.values >= FEW and self.distinct >= UNIQUE_SHARE * self.values


def names_a_number(column: str) -> bool:
    """Whether a column's name, or its want of one, says that it numbers rows: `id`, `ecg_id`, the index of a CSV."""
    return not column or bool(_ID_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)))


def reason_to_drop(column: str, kind: str, facts: Facts, *, free_text: bool, shift_dates: bool) -> str:
    """Why a column may not be kept; empty where it may.

    Args:
        column: its name.
        kind: what it holds.
        facts: what the survey has counted in it.
        free_text: keep free text.
        shift_dates: dates may only stay where they can be shifted.
    """
    if is_identifier(column):
        return "its name is that of an identifier"
    if kind == NUMBER and facts.unique and facts.whole == facts.numbers and names_a_number(column):
        return "an identifier: every number stands once"
    if kind != TEXT or facts.literals >= LITERAL_SHARE * facts.values:
        return ""
    if facts.times and shift_dates:
        return "dates among other text, which cannot be shifted"
    if facts.sentences >= facts.values / 2 and facts.distinct > min(CATEGORIES, facts.values / 2):
        return "" if free_text else "free text"
    if facts.unique:
        return "an identifier: every text stands once"
    return ""


def is_age(column: str) -> bool:
    """Whether a column's name says that it holds ages in years."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return bool(_AGE.search(words)) and not _NO_AGE_IN_YEARS.search(words)


def cap_ages(columns: pa.Table) -> pa.Table:
    """Numbers over 89 in columns of ages become 90."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, name in enumerate(columns.column_names):
        if is_age(name) and pa.types.is_floating(columns.column(place).type):
            ages = columns.column(place)
            columns = columns.set_column(place, name, pc.if_else(pc.greater(ages, OLDEST), 90.0, ages))
    return columns


def shifts(pseudonyms: Pseudonyms, subject_ids: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """By how many days the dates of each row are shifted, int64 (n,)."""
    import numpy as np

    known: dict[bytes, int] = {}
    for subject_id in subject_ids:
        if subject_id not in known:
            known[subject_id] = pseudonyms.shift_days(subject_id)
    return np.array([known[subject_id] for subject_id in subject_ids], dtype=np.int64)


def shift_dates(columns: pa.Table, days: np.ndarray[Any, Any]) -> pa.Table:
    """Every column of times, moved by each row's days; the time of day stays."""
    import pyarrow as pa
    import pyarrow.compute as pc

    moved = pa.array(days * 86_400_000_000, pa.duration("us"))
    for place, name in enumerate(columns.column_names):
        if pa.types.is_timestamp(columns.column(place).type):
            columns = columns.set_column(place, name, pc.add(columns.column(place), moved))
    return columns
