"""WFDB: waveforms as PhysioNet keeps them, a text header and binary signal files beside it. A header is one record."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medray import limits
from medray.errors import ReadError
from medray.readers import Reader, Records, Value, parsing

if TYPE_CHECKING:
    import numpy as np

    from medray.synthetic import Persona

    Array = np.ndarray[Any, Any]

MAX_HEADER_BYTES = 4 << 20
MAX_NOTES = 64  # columns from comments
RATE, LEADS, DURATION, RECORDED_AT = "sampling_rate_hz", "leads", "duration_s", "recorded_at"

# WFDB signal(5): bytes a sample of each format, and the value that stands for a missing sample. FLAC has no fixed size.
SAMPLE_BYTES = {"8": 1, "16": 2, "24": 3, "32": 4, "61": 2, "80": 1, "160": 2, "212": 1.5, "310": 4 / 3, "311": 4 / 3}
FLAC = frozenset(("508", "516", "524"))
_PLAIN = {"16": "<i2", "61": ">i2"}  # straight from the file: 0.2 CPU ms a record, by the wfdb library 2.8
_BITS = {"24": 24, "32": 32, "80": 8, "212": 12, "310": 10, "311": 10, "508": 8, "524": 24}
_MILLIVOLTS = {"V": 1e3, "mV": 1.0, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "nV": 1e-6}

_RECORD = re.compile(r"(?P<name>[^\s/]+)(?:/(?P<segments>\d+))?")
_RATE = re.compile(r"(?P<rate>[\d.eE+-]+)(?:/.*)?")
_FORMAT = re.compile(r"(?P<format>\d+)(?:x(?P<per_frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[\d.eE+-]+)(?:\((?P<baseline>-?\d+)\))?(?:/(?P<units>\S+))?")
_NOTE = re.compile(r"#\s*(?P<name>[^\W\d][\w ./()%-]{0,39}?)\s*:\s*(?P<value>.*)")


@dataclass(frozen=True)
class _Signal:
    """One line of a header: where the samples of a lead lie, and what they mean."""

    file: str
    format: str
    per_frame: int
    skew: int
    offset: int
    gain: float
    baseline: int
    units: str
    checksum: int | None
    name: str

    def physical(self, samples: Array) -> Array:
        """Digital samples as float32 in physical units, voltages in mV; what is invalid as NaN."""
        import numpy as np

        scale = _MILLIVOLTS.get(self.units, 1.0) / self.gain
        values = samples.astype(np.float32)
        values -= np.float32(self.baseline)
        values *= np.float32(scale)
        if self.format != "8":  # differences have no such value
            values[samples == -(1 << (_BITS.get(self.format, 16) - 1))] = np.nan
        return values


@dataclass(frozen=True)
class _Header:
    """A header; `segments` are (name, samples) of a record in several parts."""

    rate_hz: float
    length: int | None
    recorded_at: str | None
    num_signals: int
    signals: tuple[_Signal, ...]
    segments: tuple[tuple[str, int], ...]
    notes: dict[str, str]


class Wfdb(Reader):
    """Records of WFDB header files; assets are float32 (T, C) in physical units, voltages in mV, NaN where invalid.

    Columns: `sampling_rate_hz`, `leads` (parted by commas), `duration_s`, and each header comment `name: value`. A lead
    of several samples a frame is averaged over the frame. Files outside the header's folder are not opened.

    Attributes:
        time: `recorded_at` is the header's base date and time.
        checksums: refuse a record whose samples do not add up to the header's checksum.
    """

    modality: ClassVar[str] = "signal"
    extra: ClassVar[str] = "signals"
    library: ClassVar[str] = "wfdb"
    free_form: ClassVar[bool] = True

    time: Value | None = RECORDED_AT
    checksums: bool = True

    def read(self, path: Path, *, assets: bool = True) -> Iterator[Records]:
        """One row.

        Raises:
            ReadError: not a header, a signal file that is missing, cut, changed or elsewhere, or over a budget.
        """
        import pyarrow as pa

        with parsing(path, "not readable as a WFDB record"):
            header = _read_header(path)
            length, leads = _checked(path, header)
            values: dict[str, Any] = {
                RATE: header.rate_hz,
                LEADS: ",".join(leads),
                DURATION: length / header.rate_hz,
                RECORDED_AT: header.recorded_at,
                **{
                    name: value
                    for name, value in header.notes.items()
                    if name not in {RATE, LEADS, DURATION, RECORDED_AT}
                },
            }
            columns = pa.Table.from_pylist([values], schema=_schema(values))
            signal = self._signal(path, header, length) if assets else None
        yield Records(columns, range(1), None if signal is None else [signal])

    def companions(self, path: Path) -> tuple[Path, ...]:
        """The signal files and segments that the header names and that are there; none of a header that is broken."""
        try:
            with parsing(path, "not readable as a WFDB record"):
                header = _read_header(path)
                names = [segment for segment, _ in header.segments if segment != "~"]
                parts = [path.parent / f"{_beside(path, name)}.hea" for name in names]
                headers = [header, *(_read_header(part) for part in parts if part.is_file())]
                files = [path.parent / _beside(path, signal.file) for one in headers for signal in one.signals]
        except ReadError:
            return ()
        return tuple(file for file in dict.fromkeys([*parts, *files]) if file.name != "~" and file.is_file())

    def _signal(self, path: Path, header: _Header, length: int) -> Array:
        import numpy as np

        signals = header.signals
        if header.segments:
            return self._segments(path)
        first = signals[0]
        plain = _PLAIN.get(first.format)
        if plain and all(
            (one.file, one.format, one.per_frame, one.skew) == (first.file, first.format, 1, 0) for one in signals
        ):
            with (path.parent / first.file).open("rb") as file:
                file.seek(first.offset)
                raw = file.read(2 * length * len(signals))
            samples = np.frombuffer(raw, plain).reshape(length, len(signals))
            self._check(path, signals, list(samples.T))
            if len({(one.gain, one.baseline, one.units) for one in signals}) == 1:
                return first.physical(samples)
            return np.stack([one.physical(samples[:, place]) for place, one in enumerate(signals)], axis=1)
        record = self.imported().rdrecord(str(path.with_suffix("")), physical=False, smooth_frames=False)
        expanded = [np.asarray(lead) for lead in record.e_d_signal]
        self._check(path, signals, expanded)
        leads = []
        for one, samples in zip(signals, expanded, strict=True):
            values = one.physical(samples)
            leads.append(values.reshape(-1, one.per_frame).mean(1) if one.per_frame > 1 else values)
        return np.stack(leads, axis=1)

    def _segments(self, path: Path) -> Array:
        import numpy as np

        record = self.imported().rdrecord(str(path.with_suffix("")), physical=True, return_res=32)
        scale = [_MILLIVOLTS.get(units, 1.0) for units in record.units]
        signal: Array = record.p_signal.astype(np.float32) * np.array(scale, np.float32)
        return signal

    def _check(self, path: Path, signals: Sequence[_Signal], samples: Sequence[Array]) -> None:
        if not self.checksums:
            return
        for one, lead in zip(signals, samples, strict=True):
            if one.checksum is not None and (int(lead.sum(dtype="int64")) - one.checksum) % 0x10000:
                raise ReadError(path, "the samples do not add up to the header's checksum: one of them was changed")

    @classmethod
    def synthesize(cls, folder: Path, personas: Sequence[Persona], seed: int) -> None:
        """`ecg_0000.hea` and `.dat` for each persona with an ECG; every 250th signal file is cut."""
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        for number, persona in enumerate(personas):
            if not persona.has_signal:
                continue
            draw = random.Random(f"wfdb {seed} {persona.mrn}")  # noqa: S311 - synthetic data, not a secret
            ecg, gain, rate_hz = persona.ecg(seed=seed), 1000, 100
            samples = np.rint(ecg * gain).astype("<i2")
            when = datetime.fromisoformat(persona.recorded_at)
            name = f"ecg_{number:04d}"
            lines = [f"{name} {samples.shape[1]} {rate_hz} {len(samples)} {when:%H:%M:%S} {when:%d/%m/%Y}"]
            for lead, column in zip(_LEADS, samples.T, strict=True):
                checksum = (int(column.sum(dtype="int64")) + 0x8000) % 0x10000 - 0x8000
                lines.append(f"{name}.dat 16 {gain}(0)/mV 16 0 {column[0]} {checksum} 0 {lead}")
            lines += [
                f"# patient: {persona.mrn}",
                f"# name: {persona.name.replace('^', ', ')}",
                f"# birth_date: {persona.birth_date}",
                f"# sex: {persona.sex}",
                f"# age: {persona.age}",
                f"# address: {draw.randrange(1, 200)} Harbour Street",
                f"# device: {draw.choice(('Pulse 3', 'Pulse 4'))}",
            ]
            (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
            raw = samples.tobytes()
            (folder / f"{name}.dat").write_bytes(raw[: len(raw) // 2] if number % 250 == 249 else raw)


_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def _schema(values: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.schema([(name, pa.float64() if name in {RATE, DURATION} else pa.string()) for name in values])


def _read_header(path: Path) -> _Header:
    """Header of WFDB header(5), or a `ValueError` or `ReadError`."""
    limits.check_file(path, MAX_HEADER_BYTES)
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [line.strip() for line in text.splitlines()]
    first, *rest = [line for line in lines if line and not line.startswith("#")]
    record, count, *more = first.split()
    named = _RECORD.fullmatch(record)
    rate = _RATE.fullmatch(more[0]) if more else None
    if named is None or (more and rate is None):
        raise ReadError(path, "its record line is no WFDB record line")
    rate_hz = float(rate["rate"]) if rate else 250.0  # the format's default
    if not 0 < rate_hz < 1e6 or not 0 <= int(count) <= len(rest) + int(named["segments"] or 0) * 10_000:
        raise ReadError(path, "its sampling rate or number of signals is not possible")
    length = int(more[1]) if len(more) > 1 else 0
    segments: tuple[tuple[str, int], ...] = ()
    signals: tuple[_Signal, ...] = ()
    if named["segments"]:
        if len(rest) != int(named["segments"]):
            raise ReadError(path, f"announces {named['segments']} segments and lists {len(rest)}")
        segments = tuple((name, int(size)) for name, size in (line.split()[:2] for line in rest))
    else:
        if len(rest) != int(count):
            raise ReadError(path, f"announces {count} signals and lists {len(rest)}")
        signals = tuple(_signal_line(path, line, place) for place, line in enumerate(rest))
    moment = _moment(*more[2:4]) if len(more) > 3 else None
    return _Header(rate_hz, length or None, moment, int(count), signals, segments, _notes(lines))


def _signal_line(path: Path, line: str, place: int) -> _Signal:
    file, sort, *more = line.split(None, 8)
    fields = _FORMAT.fullmatch(sort)
    gain = _GAIN.fullmatch(more[0]) if more else None
    if fields is None or (more and gain is None):
        raise ReadError(path, f"its line for signal {place + 1} is no WFDB signal line")
    if fields["format"] not in SAMPLE_BYTES and fields["format"] not in FLAC:
        raise ReadError(path, f"signal format {fields['format']} is not known")
    zero = int(more[2]) if len(more) > 2 else 0
    factor = float(gain["gain"]) if gain else 0.0
    if not math.isfinite(factor):
        raise ReadError(path, f"the gain of signal {place + 1} is no number")
    return _Signal(
        file=file,
        format=fields["format"],
        per_frame=max(1, int(fields["per_frame"] or 1)),
        skew=int(fields["skew"] or 0),
        offset=int(fields["offset"] or 0),
        gain=factor or 200.0,  # header(5): 0 or absent means uncalibrated, taken as 200
        baseline=int(gain["baseline"]) if gain and gain["baseline"] else zero,
        units=(gain["units"] if gain else None) or "mV",
        checksum=int(more[4]) if len(more) > 4 else None,
        name=(more[6] if len(more) > 6 else "").strip().replace(",", " ") or str(place + 1),
    )


def _notes(lines: Sequence[str]) -> dict[str, str]:
    """Header comments `name: value`; of a name given twice both values."""
    found: dict[str, str] = {}
    for line in lines:
        note = _NOTE.fullmatch(line)
        if note and (value := note["value"].strip()) and (note["name"] in found or len(found) < MAX_NOTES):
            found[note["name"]] = f"{found[note['name']]}; {value}" if note["name"] in found else value
    return found


def _moment(time: str, date: str) -> str | None:
    for pattern in ("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M"):
        try:
            return datetime.strptime(f"{date} {time}", pattern).isoformat(sep=" ")  # noqa: DTZ007 - the format has no zone
        except ValueError:
            continue
    return None


def _beside(path: Path, name: str) -> str:
    """A file name within the header's folder: a header may not reach elsewhere, nor over the network."""
    if not re.fullmatch(r"[^\s/\\:\0]+", name) or name in {".", ".."}:
        raise ReadError(path, "names a file outside its folder")
    return name


def _checked(path: Path, header: _Header) -> tuple[int, list[str]]:
    """Samples a lead, and the leads, of a record whose files are there, whole, and within the budgets."""
    if header.segments:
        return _checked_segments(path, header)
    if not header.signals:
        raise ReadError(path, "holds no signals")
    length = header.length
    groups: dict[str, list[_Signal]] = {}
    for one in header.signals:
        groups.setdefault(_beside(path, one.file), []).append(one)
    for name, group in groups.items():
        file, first = path.parent / name, group[0]
        if not file.is_file():
            raise ReadError(path, "its signal file is missing")
        if len({(one.format, one.offset) for one in group}) != 1:
            raise ReadError(path, "one signal file in two formats")
        there = file.stat().st_size - first.offset
        frame = sum(one.per_frame for one in group)
        if first.format in FLAC:
            if length is None:
                raise ReadError(path, "says not how many samples its compressed signal file holds")
            continue
        sample = SAMPLE_BYTES[first.format]
        if length is None:
            length = int(there / sample) // frame
        if there < math.floor(length * frame * sample):
            raise ReadError(
                path, f"its signal file is cut: {max(0, int(there / sample) // frame):,} of {length:,} samples"
            )
    assert length is not None  # noqa: S101 - for the type checker
    frame = sum(one.per_frame for one in header.signals)
    limits.check_array(path, (length, frame), 8)  # whole numbers of 64 bits on the way
    return length, [one.name for one in header.signals]


def _checked_segments(path: Path, header: _Header) -> tuple[int, list[str]]:
    length = sum(size for _, size in header.segments)
    limits.check_array(path, (length, header.num_signals), 8)
    if header.length is not None and header.length != length:
        raise ReadError(path, "its segments do not add up to its length")
    names: list[str] = []
    for place, (name, size) in enumerate(header.segments):
        if name == "~":
            continue
        part = path.parent / f"{_beside(path, name)}.hea"
        layout = size == 0 and place == 0
        try:
            inner = _read_header(part)
            length_there = 0 if inner.segments or layout else _checked(part, inner)[0]
        except ReadError as error:
            raise ReadError(path, f"its segment {place + 1}: {error.reason}") from None
        if inner.segments:
            raise ReadError(path, "a segment of segments")
        if length_there < size:
            raise ReadError(path, f"its segment {place + 1} is shorter than announced")
        if not names or layout:
            names = [one.name for one in inner.signals]
    if len(names) != header.num_signals:
        raise ReadError(path, f"announces {header.num_signals} signals, its segments have {len(names)}")
    return length, names
