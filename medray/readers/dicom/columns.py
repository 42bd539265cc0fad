"""DICOM elements -> columns: what is technical or clinical and identifies nobody, and what a study asks for by name."""

from __future__ import annotations

import functools
import re
from datetime import datetime
from typing import TYPE_CHECKING

from medray.errors import StudyError
from medray.plugins import suggest
from medray.readers.dicom.elements import Elements

if TYPE_CHECKING:
    import pyarrow as pa

RECORDED_AT = "recorded_at"
# When the pixels came to be, or what is nearest to it: one date and time, or a date and a time.
_MOMENTS = (
    ("AcquisitionDateTime",),
    ("AcquisitionDate", "AcquisitionTime"),
    ("ContentDate", "ContentTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
_MOMENTS_ONLY = frozenset(keyword for moment in _MOMENTS for keyword in moment)
# Codes and measures of the device and the exam, and of the person what PS3.15 E.3.9 calls characteristics. No dates, no
# UIDs, no free text: these say who it is. An element that may hold several values is a text, its values parted by \.
TECHNICAL = (
    *("Modality", "BodyPartExamined", "ViewPosition", "Laterality", "ImageLaterality", "PatientPosition"),
    *("PatientOrientation", "ImageType", "PresentationIntentType", "PhotometricInterpretation", "Manufacturer"),
    *("ManufacturerModelName", "DetectorType", "ConvolutionKernel", "ScanningSequence", "SequenceVariant"),
    *("MRAcquisitionType", "PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    *("Rows", "Columns", "BitsStored", "InstanceNumber", "SliceThickness", "SpacingBetweenSlices", "SliceLocation"),
    *("KVP", "Exposure", "ExposureTime", "XRayTubeCurrent", "MagneticFieldStrength", "EchoTime", "RepetitionTime"),
    *("FlipAngle", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
)
BURNED_IN, CHARSET = 0x00280301, 0x00080005

_NUMBERS = {"US": "u2", "SS": "i2", "UL": "u4", "SL": "i4", "UV": "u8", "SV": "i8", "FL": "f4", "FD": "f8"}
_ASCII = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"))
_SPOKEN = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "UN", ""))  # in the file's character set
_YEARS = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}  # how many make a year


@functools.cache
def wanted(names: frozenset[str]) -> dict[str, tuple[int, str, bool]]:
    """Column -> (tag, VR, whether it is one number), of the technical columns and those of these names.

    Args:
        names: DICOM keywords, or tags written `gggg,eeee`.

    Raises:
        StudyError: a name is neither.
    """
    from pydicom import datadict

    found = {}
    moments = _MOMENTS_ONLY if RECORDED_AT in names else frozenset()
    for name in (*TECHNICAL, *sorted(names - {RECORDED_AT, *TECHNICAL}), *sorted(moments - names)):
        written = re.fullmatch(r"\(?([0-9a-fA-F]{4}),\s?([0-9a-fA-F]{4})\)?", name)
        tag = int(written[1] + written[2], 16) if written else datadict.tag_for_keyword(name)
        if tag is None:
            near = suggest(name, sorted(set(datadict.keyword_dict) - {""}))
            raise StudyError(f"'{name}' is no DICOM keyword{near} A tag is written 'gggg,eeee'.")
        try:
            vr, many = datadict.dictionary_VR(tag), datadict.dictionary_VM(tag) != "1"
        except KeyError:  # a private element
            vr, many = "UN", True
        found[name] = (tag, vr, not many and (vr in _NUMBERS or vr in {"AS", "DS", "IS"}))
    return found


def tags(names: frozenset[str]) -> frozenset[int]:
    """The tags that the columns are made of."""
    return frozenset(tag for tag, _, _ in wanted(names).values()) | {BURNED_IN, CHARSET}


def table(header: Elements, names: frozenset[str], count: int) -> pa.Table:
    """One row a frame; numbers as float64, PatientAge in years, dates and times as ISO 8601, the rest as text."""
    import pyarrow as pa

    chosen = wanted(names)
    values = {name: _value(header, tag, vr, number=number) for name, (tag, vr, number) in chosen.items()}
    kept = {
        name: pa.float64() if chosen[name][2] else pa.string() for name in chosen if name not in _MOMENTS_ONLY - names
    }
    if RECORDED_AT in names:
        values[RECORDED_AT] = _moment(values)
        kept[RECORDED_AT] = pa.string()
    # by a struct: half the time of an array a column
    one = pa.Table.from_struct_array(pa.array([values], pa.struct(list(kept.items()))))
    return one if count == 1 else one.take(pa.array([0] * count, pa.int32()))


def is_burned_in(header: Elements) -> bool:
    """Whether the file says that its pixels show who it is."""
    return header.values.get(BURNED_IN, ("", b""))[1].strip(b" \0").upper() == b"YES"


def _value(header: Elements, tag: int, known_vr: str, *, number: bool) -> str | float | None:
    if tag not in header.values:
        return None
    vr, raw = header.values[tag]
    vr = known_vr if vr in {"", "UN"} else vr
    if vr in _NUMBERS:
        import numpy as np

        dtype = np.dtype(_NUMBERS[vr]).newbyteorder("<" if header.little else ">")
        parts = [repr(item) for item in np.frombuffer(raw, dtype, count=len(raw) // dtype.itemsize).tolist()]
    elif vr in _ASCII or vr in _SPOKEN:
        text = raw.decode("ascii") if raw.isascii() and b"\x1b" not in raw else _spoken(header, raw, vr)
        parts = [part.strip(" \0\r\n") for part in text.split("\\")]
        parts = [_iso(part, vr) for part in parts] if vr in {"DA", "TM", "DT"} else parts
    else:
        return None
    if not number:
        return "\\".join(parts) if any(parts) else None
    if len(parts) != 1:
        return None
    return _years(parts[0]) if vr == "AS" else _number(parts[0])


def _spoken(header: Elements, raw: bytes, vr: str) -> str:
    """Text in the file's own character set; what does not fit it is replaced."""
    if vr in _ASCII:
        return raw.decode("latin-1")
    from pydicom import charset

    named = header.values.get(CHARSET, ("", b""))[1].decode("latin-1")
    encodings = charset.convert_encodings([name.strip(" \0") for name in named.split("\\")])
    return str(charset.decode_bytes(raw, encodings, {0x0D, 0x0A, 0x09, 0x0C}))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _years(text: str) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text)
    return int(match[1]) / _YEARS[match[2]] if match else None


def _iso(text: str, vr: str) -> str:
    """`20240131`, `101530.5`, `20240131101530.5+0100` as ISO 8601; empty where it is none of them."""
    digits = text.replace(".", "", 2) if vr == "DA" else text.replace(":", "")
    pattern = {
        "DA": r"(?P<date>\d{8})(?P<time>)(?P<zone>)",
        "TM": r"(?P<date>)(?P<time>\d{2}(?:\d{2}){0,2}(?:\.\d{1,6})?)(?P<zone>)",
        "DT": r"(?P<date>\d{8})(?P<time>(?:\d{2}){0,3}(?:\.\d{1,6})?)(?P<zone>[+-]\d{4})?",
    }[vr]
    match = re.fullmatch(pattern, digits)
    if match is None:
        return ""
    date, time, zone = match["date"], match["time"], match["zone"]
    iso = f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else ""
    if time:
        whole, _, fraction = time.partition(".")
        clock = ":".join((whole + "000000")[place : place + 2] for place in (0, 2, 4))
        iso += (" " if iso else "") + clock + (f".{fraction}" if fraction else "")
        iso += f"{zone[:3]}:{zone[3:]}" if zone else ""
    try:
        datetime.fromisoformat(iso if date else f"2000-01-01 {iso}")
    except ValueError:  # a 13th month
        return ""
    return iso


def _moment(values: dict[str, str | float | None]) -> str | None:
    for moment in _MOMENTS:
        date, *time = [values.get(keyword) for keyword in moment]
        if date:
            return " ".join(str(part) for part in (date, *time) if part)
    return None
