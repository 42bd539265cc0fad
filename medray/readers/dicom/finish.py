"""What is done to a DICOM frame once decoded: unused bits, padding, palette, inversion, rescale (PS3.3 C.7.6.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray.errors import ReadError
from medray.readers.dicom.elements import Elements
from medray.readers.dicom.layout import LOOKED_UP, SIGNED, Layout, text, whole

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PADDING, PADDING_LIMIT, INTERCEPT, SLOPE = 0x00280120, 0x00280121, 0x00281052, 0x00281053
MODALITY_LUT, SHARED_GROUPS, FRAME_GROUPS = 0x00283000, 0x52009229, 0x52009230
DESCRIPTOR, TABLES, SEGMENTS = 0x00281101, (0x00281201, 0x00281202, 0x00281203), (0x00281221, 0x00281222, 0x00281223)
TAGS = frozenset(
    (
        PADDING,
        PADDING_LIMIT,
        INTERCEPT,
        SLOPE,
        MODALITY_LUT,
        SHARED_GROUPS,
        FRAME_GROUPS,
        DESCRIPTOR,
        *TABLES,
        *SEGMENTS,
    )
)
MAX_FACTOR = 1e9  # of a rescale


class Finish:
    """Finishes the gray frames of one file; `number` counts them."""

    def __init__(self, path: Path, header: Elements, found: Layout) -> None:
        self.found = found
        self.factors = _factors(path, header)
        self.padding = _padding(header, found)
        self.palette = _palette(header) if found.photometric == LOOKED_UP else None
        self.table = _dataset(header, MODALITY_LUT) if MODALITY_LUT in header.values else None

    def __call__(self, frame: Array, number: int) -> Array:
        """(H, W), or (H, W, 3) uint8 of a palette's colours."""
        import numpy as np

        found = self.found
        if frame.dtype.kind in "iu" and found.allocated > 1:
            frame = _without_unused_bits(frame, found)
        if self.palette is not None:
            first, colours = self.palette
            return colours[np.clip(frame.astype(np.int64) - first, 0, len(colours) - 1)]
        if self.padding is not None:
            frame = _without_padding(frame, self.padding, darkest=found.photometric == "MONOCHROME2")
        if found.photometric == "MONOCHROME1":
            # within the bits stored, so that it does not depend on what the image shows
            white = frame.dtype.type((1 << found.stored) - 1) if frame.dtype.kind == "u" else frame.dtype.type(-1)
            frame = white - frame
        if self.table is not None:
            from pydicom.pixels.processing import apply_modality_lut

            looked_up: Array = apply_modality_lut(frame, self.table)
            return looked_up
        return _rescaled(frame, *self.factors.get(number, self.factors[-1]))


def _without_unused_bits(frame: Array, found: Layout) -> Array:
    """Old overlays stand in the bits beyond the stored ones, and burned-in text with them."""
    above, below = 8 * frame.dtype.itemsize - 1 - found.high, found.high + 1 - found.stored
    if above < 0 or (not above and not below):
        return frame
    if not below:  # mostly nothing stands there
        half = 1 << (found.stored - 1)
        lowest, highest = (-half, half) if found.signed else (0, 2 * half)
        if lowest <= frame.min() and frame.max() < highest:
            return frame
    cleaned: Array = (frame << above) >> (above + below)
    return cleaned


def _padding(header: Elements, found: Layout) -> tuple[int, int] | None:
    """The lowest and highest value that means no pixel (PS3.3 C.7.5.1.1.2)."""
    padding = whole(header, PADDING)
    if padding is None:
        return None
    limit = whole(header, PADDING_LIMIT)
    ends = [padding, padding if limit is None else limit]
    # of the pixels' own sign, also where the file has no VRs or the wrong one
    ends = [(end + 0x8000) % 0x10000 - 0x8000 if found.signed else end % 0x10000 for end in ends]
    return min(ends), max(ends)


def _without_padding(frame: Array, padding: tuple[int, int], *, darkest: bool) -> Array:
    """Pixels outside a scanner's round field as the darkest of the others, lest they stretch the window."""
    low, high = padding
    padded = frame == low if low == high else (frame >= low) & (frame <= high)
    if not padded.any() or padded.all():
        return frame
    others = frame[~padded]
    frame = frame.copy()
    frame[padded] = others.min() if darkest else others.max()
    return frame


def _rescaled(frame: Array, slope: float, intercept: float) -> Array:
    """In the narrowest of int16, int32 and float32 that holds it."""
    import numpy as np

    if slope == 1 and intercept == 0:
        return frame
    if frame.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        factors = np.array([int(slope), int(intercept)])
        ends = [int(end) * int(slope) + int(intercept) for end in (frame.min(), frame.max())]
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
                scale, shift = factors.astype(dtype)
                # modulo 2^16 or 2^32 on the way, right in the end
                whole_numbers: Array = frame.astype(dtype) * scale + shift
                return whole_numbers
    return frame.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _factors(path: Path, header: Elements) -> dict[int, tuple[float, float]]:
    """Slope and intercept by frame; under -1 those of all other frames (PS3.3 C.7.6.16.2.9: enhanced CT and MR)."""
    found = {-1: (float(text(header, SLOPE) or 1), float(text(header, INTERCEPT) or 0))}
    transformation = b"\x28\x00\x45\x91" if header.little else b"\x00\x28\x91\x45"
    for tag in (SHARED_GROUPS, FRAME_GROUPS):
        if transformation not in header.values.get(tag, ("", b""))[1]:
            continue
        for number, item in enumerate(_dataset(header, tag)[tag].value):
            for group in item.get("PixelValueTransformationSequence") or ():
                key = -1 if tag == SHARED_GROUPS else number
                found[key] = float(group.RescaleSlope), float(group.RescaleIntercept)
    if not all(math.isfinite(factor) and abs(factor) < MAX_FACTOR for pair in found.values() for factor in pair):
        raise ReadError(path, "its rescale slope or intercept is no possible number")
    return found


def _palette(header: Elements) -> tuple[int, Array]:
    """The value of the first entry, and the colours, (entries, 3) uint8 (PS3.3 C.7.6.3.1.5)."""
    import numpy as np

    order = "<" if header.little else ">"
    entries, first, bits = np.frombuffer(header.values[DESCRIPTOR][1], f"{order}u2", count=3).tolist()
    entries = entries or 1 << 16
    if whole(header, SIGNED) == 1:
        first = (first + 0x8000) % 0x10000 - 0x8000
    columns = []
    for table, segments in zip(TABLES, SEGMENTS, strict=True):
        if table in header.values:
            raw = header.values[table][1]
            wide = len(raw) >= 2 * entries  # an 8-bit table may stand in words
            columns.append(np.frombuffer(raw, f"{order}u2" if wide else "u1", count=entries))
        else:
            raw = header.values[segments][1]
            columns.append(_joined(np.frombuffer(raw, f"{order}u2" if bits == 16 else "u1"), entries))
    colours = np.stack(columns, axis=1)
    return first, (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)


def _joined(code: Array, entries: int) -> Array:
    """A table of discrete and linear segments (PS3.3 C.7.9.2), no longer than `entries`."""
    import numpy as np

    table: list[Array] = []
    size, place = 0, 0
    while place + 2 < len(code) and size < entries:
        sort, length = int(code[place]), min(int(code[place + 1]), entries - size)
        if sort == 0:
            part, place = code[place + 2 : place + 2 + length], place + 2 + int(code[place + 1])
        elif sort == 1 and table:
            steps = np.linspace(int(table[-1][-1]), int(code[place + 2]), length + 1)[1:]
            part, place = np.rint(steps).astype(code.dtype), place + 3
        else:
            raise ValueError("a segment of another sort")
        if not len(part):
            raise ValueError("an empty segment")
        table.append(part)
        size += len(part)
    if size != entries:
        raise ValueError("the segments do not fill the table")
    return np.concatenate(table)


def _dataset(header: Elements, tag: int) -> Any:
    """One element of a file as pydicom takes it."""
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

    raw = {}
    for wanted in (tag, SIGNED):  # whether US or SS is meant depends on it
        if wanted in header.values:
            vr, value = header.values[wanted]
            element = RawDataElement(BaseTag(wanted), vr or None, len(value), value, 0, header.implicit, header.little)
            raw[BaseTag(wanted)] = element
    return Dataset(raw)  # type: ignore[arg-type]
