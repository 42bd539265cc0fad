"""What every layer agrees on: column names, splits, identifiers, canonical text, frozen mappings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

# The common columns of every row of a table. All are pseudonymous: nothing below ingest has seen an identifier.
SUBJECT_ID = "subject_id"
RECORD_ID = "record_id"
SPLIT = "split"
SOURCE = "source"
TIME = "time"
FILE_ID = "file_id"
POSITION = "position"  # order of arrival: file number << 32 | row; makes every later order repeatable
ASSET = "asset"  # where a row's array lies: pack, offset, length, digest, dtype, shape

# Split names are those of MEDS (Medical Event Data Standard).
TRAIN, TUNING, HELD_OUT, EXCLUDED = "train", "tuning", "held_out", "excluded"
SPLITS = (TRAIN, TUNING, HELD_OUT)

QUARANTINE = "_quarantine"  # partitions of a table that hold no records
FILES = "_files"

NUMBER, TEXT, TIMESTAMP = "number", "text", "time"

# Column names that hold one of the 18 identifiers of HIPAA 164.514(b)(2)(i): dropped at ingest, listed in its summary.
_IDENTIFIERS = re.compile(
    r"""(^|[_.\s-])(
      (first|last|full|family|given|middle|maiden|patients?|subjects?|mothers?|fathers?)?_?names? | surname | initials
    | mrn | ssn | national_id | passport\w* | next_of_kin
    | (social_security|nhs|medical_record|health_plan|beneficiary|insurance|account|policy|licen[cs]e|accession|serial
      |patients?|subjects?|persons?|encounter|visit|admission|hadm|stay|episode)_?(ids?|number|num|no)
    | licen[cs]e_plate\w* | vehicle\w* | device_(id|serial)\w* | u?uid | guid
    | address\w* | street\w* | city | zip(_?codes?)? | post_?code | postal\w* | county | phone\w* | tel | telephone
    | mobile_?(number|phone) | fax | e[_-]?mail\w* | url | ip | ip_address
    | (birth|death|admission|discharge)_?(date|day)\w* | date_of_(birth|death|admission|discharge) | dob | dod
    | fingerprint\w* | voice_?print\w* | biometric\w* | photo(graph)?s?
    )($|[_.\s-]) | ^(id|patients?|subjects?|persons?|mobile)$""",
    re.VERBOSE | re.IGNORECASE,
)


def is_identifier(column: str) -> bool:
    """Whether a column's name says that it identifies a person (HIPAA 164.514(b)(2)(i))."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return bool(_IDENTIFIERS.search(words))


def canonical(value: object) -> str | None:
    """The text under which keys and values compare: stripped, NFC, `15709.0` is `15709`, `True` is `true`.

    Returns None for what is missing: None, NaN, an empty text.
    """
    if value is None or value != value:  # NaN is the one value that differs from itself
        return None
    text = str(value)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.strip()
    if text in {"True", "False", "TRUE", "FALSE"}:
        return text.lower()
    if text.endswith(("0", ".")) and "." in text and re.fullmatch(r"[+-]?\d+\.0*", text):
        text = text.split(".")[0]
    return text or None


class FrozenDict(dict[str, Any]):
    """A mapping that cannot be changed and can be hashed, so that a study is frozen all the way down."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a study is frozen; use study.override({...}) to get a changed one")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        """Equal mappings hash alike."""
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        """Pickle by value: the default would call the refused __setitem__."""
        return (FrozenDict, (dict(self),))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate as a dict, then freeze all that is in it."""
        return core_schema.no_info_after_validator_function(freeze, handler.generate_schema(dict[str, Any]))


def freeze(value: Any) -> Any:
    """`value` with every list a tuple and every mapping a `FrozenDict`, all the way down."""
    if isinstance(value, Mapping):
        return FrozenDict({str(key): freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value
