"""What a DICOM header says of its pixels, checked against the budgets and the file's length; no pixel is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medray import limits
from medray.errors import ReadError
from medray.readers.dicom import elements as parts
from medray.readers.dicom.elements import Elements

NATIVE = frozenset((parts.IMPLICIT, parts.EXPLICIT, parts.DEFLATED, parts.BIG_ENDIAN))
RLE = "1.2.840.10008.1.2.5"
RLE_RATIO = 40  # of 64 at most: pydicom's decoder takes 24 s a GB
MAX_CODED_FRAME_BYTES = 128 << 20  # one compressed frame, decoded: 8,192 x 8,192 of 16 bits
MAX_FRAMES = 1 << 16

GRAY, COLOUR, LOOKED_UP = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422"), "PALETTE COLOR"
WITHIN_CODE = ("YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")  # the decoder's own business

ROWS, COLUMNS, SAMPLES, PHOTOMETRIC = 0x00280010, 0x00280011, 0x00280002, 0x00280004
PLANAR, FRAMES, ALLOCATED, STORED, HIGH, SIGNED = 0x00280006, 0x00280008, 0x00280100, 0x00280101, 0x00280102, 0x00280103
TAGS = frozenset((ROWS, COLUMNS, SAMPLES, PHOTOMETRIC, PLANAR, FRAMES, ALLOCATED, STORED, HIGH, SIGNED))


@dataclass(frozen=True)
class Layout:
    """How the pixels lie; bits are of one sample."""

    keyword: str
    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: bool
    photometric: str

    @property
    def frame_samples(self) -> int:
        """Samples in the file for one frame."""
        count = self.rows * self.columns * self.samples
        return count * 2 // 3 if self.photometric == "YBR_FULL_422" else count

    @property
    def frame_bytes(self) -> int:
        """Of one frame in memory."""
        return self.rows * self.columns * self.samples * -(-self.allocated // 8)

    @property
    def num_bytes(self) -> int:
        """Of all frames as they stand in a file without compression."""
        return -(-self.frames * self.frame_samples * self.allocated // 8)


def read(path: Path, header: Elements) -> Layout:
    """The layout of a file's pixels, if they can be read.

    Raises:
        ReadError: no pixels, an impossible layout, cut pixel data, or over a budget.
    """
    if header.pixels is None:
        raise ReadError(path, "holds no pixel data: not an image")
    keyword = header.pixels[0]
    rows, columns, allocated = (whole(header, tag) or 0 for tag in (ROWS, COLUMNS, ALLOCATED))
    stored, samples = whole(header, STORED) or allocated, whole(header, SAMPLES) or 1
    frames, photometric = int(text(header, FRAMES) or 1) or 1, text(header, PHOTOMETRIC).upper()
    possible = {"FloatPixelData": (32,), "DoubleFloatPixelData": (64,), "PixelData": (1, 8, 16, 32)}[keyword]
    if allocated not in possible or not 0 < stored <= allocated:
        raise ReadError(path, f"samples of {stored} in {allocated} bits cannot be read")
    if photometric not in (*GRAY, *COLOUR, *WITHIN_CODE, LOOKED_UP):
        raise ReadError(path, "its PhotometricInterpretation is missing or not supported")
    if samples != (1 if photometric in (*GRAY, LOOKED_UP) else 3):
        raise ReadError(path, f"{samples} samples a pixel do not fit its PhotometricInterpretation")
    high = whole(header, HIGH)
    high = high if high is not None and stored - 1 <= high < allocated else stored - 1
    signed, planar = whole(header, SIGNED) == 1, whole(header, PLANAR) == 1
    found = Layout(keyword, frames, rows, columns, samples, allocated, stored, high, signed, planar, photometric)
    if not 0 < frames <= MAX_FRAMES:
        raise ReadError(path, f"announces {frames:,} frames; 1 to {MAX_FRAMES:,} are read")
    limits.check_array(path, (rows, columns, samples), -(-allocated // 8))
    (_check_native if header.syntax in NATIVE else _check_coded)(path, header, found)
    return found


def _check_native(path: Path, header: Elements, found: Layout) -> None:
    assert header.pixels is not None  # noqa: S101 - for the type checker
    _, _, start, length = header.pixels
    if found.photometric in WITHIN_CODE:
        raise ReadError(path, f"{found.photometric} needs a compressed transfer syntax")
    there = header.size - start if length is None else min(length, header.size - start)
    if length is None or there < max(length, found.num_bytes):
        expected = max(length or 0, found.num_bytes)
        raise ReadError(path, f"pixel data are cut: {there:,} of {expected:,} bytes")


def _check_coded(path: Path, header: Elements, found: Layout) -> None:
    assert header.pixels is not None  # noqa: S101 - for the type checker
    _, _, start, length = header.pixels
    if length is not None:
        raise ReadError(path, "its transfer syntax is a compressed one, its pixel data are not in fragments")
    count, end = parts.fragments(path, header)
    if count < found.frames:
        raise ReadError(path, f"pixel data are cut: {count} fragments for {found.frames} frames")
    limits.check_array(path, (found.frame_bytes,), 1, MAX_CODED_FRAME_BYTES)
    ratio = RLE_RATIO if header.syntax == RLE else limits.MAX_INFLATE_RATIO
    limits.check_inflation(path, end - start, found.num_bytes, ratio)


def whole(header: Elements, tag: int) -> int | None:
    """A US or SS element; US where the file does not say."""
    vr, value = header.values.get(tag, ("", b""))
    if len(value) < 2:
        return None
    return int.from_bytes(value[:2], "little" if header.little else "big", signed=vr == "SS")


def text(header: Elements, tag: int) -> str:
    """A text element; empty where it is not there."""
    return header.values.get(tag, ("", b""))[1].decode("latin-1").strip(" \0")
