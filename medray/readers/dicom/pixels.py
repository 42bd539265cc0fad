"""DICOM pixel data -> gray or RGB arrays (PS3.3 C.7.6.3, PS3.5 section 8), frame by frame, budgets first."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray.errors import MissingExtraError, ReadError
from medray.readers import parsing
from medray.readers.dicom import elements as parts
from medray.readers.dicom.elements import Elements
from medray.readers.dicom.finish import Finish
from medray.readers.dicom.layout import NATIVE, RLE, Layout

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CHUNK_BYTES = 32 << 20  # frames held at a time


def read(path: Path, header: Elements, found: Layout) -> Iterator[list[Array]]:
    """Frames as (H, W) or (H, W, 3), some at a time: rescaled, bright where there is much, RGB where there is colour.

    MONOCHROME1 is inverted before it is rescaled; padding becomes the darkest other pixel.

    Raises:
        ReadError: they cannot be decoded.
    """
    with parsing(path, "its pixel data cannot be decoded"):
        finish = Finish(path, header, found)
    frames = _native(header, found) if header.syntax in NATIVE else _decoded(path, header, found)
    done, share = 0, max(1, CHUNK_BYTES // found.frame_bytes)
    while done < found.frames:
        with parsing(path, "its pixel data cannot be decoded"):
            chunk = [_one(frame, found) for frame in itertools.islice(frames, min(share, found.frames - done))]
            if found.samples == 1:
                chunk = [finish(frame, done + place) for place, frame in enumerate(chunk)]
        if not chunk:
            raise ReadError(path, f"pixel data are cut: {done} of {found.frames} frames are there")
        done += len(chunk)
        yield chunk


def _one(frame: Array, found: Layout) -> Array:
    """A frame in this machine's byte order, if it is one."""
    if frame.shape[:2] != (found.rows, found.columns) or frame.shape[2:] != ((3,) if found.samples == 3 else ()):
        raise ValueError("a frame of another shape than the header's")
    return frame if frame.dtype.isnative else frame.astype(frame.dtype.newbyteorder("="))


def _native(header: Elements, found: Layout) -> Iterator[Array]:
    import numpy as np

    assert header.pixels is not None  # noqa: S101 - for the type checker
    keyword, vr, start, length = header.pixels
    order = "<" if header.little else ">"
    sort = "f" if keyword != "PixelData" else "i" if found.signed else "u"
    dtype = np.dtype(f"{order}{sort}{max(1, found.allocated // 8)}")
    bits = found.frame_samples * found.allocated
    for number in range(found.frames):
        first = number * bits // 8
        end = -(-(number + 1) * bits // 8)
        swapped = not header.little and vr == "OW" and found.allocated == 8  # pairs of bytes stand as words
        low = first - first % 2 if swapped else first
        high = min(end + end % 2, length or end) if swapped else end
        header.file.seek(start + low)
        raw = header.file.read(high - low)
        if swapped:
            raw = np.frombuffer(raw[: len(raw) // 2 * 2], np.uint16).byteswap().tobytes()[first - low :]
        if found.allocated == 1:
            skip = number * bits % 8
            frame = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[skip : skip + bits]
        else:
            frame = np.frombuffer(raw, dtype, count=found.frame_samples)
        frame = _shaped(frame, found)
        yield _from_ybr(frame, found.photometric)


def _shaped(frame: Array, found: Layout) -> Array:
    if found.photometric == "YBR_FULL_422":  # Y Y Cb Cr for each two pixels
        import numpy as np

        luma, chroma = frame.reshape(-1, 4)[:, :2].reshape(-1), frame.reshape(-1, 4)[:, 2:]
        frame = np.column_stack([luma, np.repeat(chroma, 2, axis=0)])
    elif found.samples == 3 and found.planar:
        return frame.reshape(3, found.rows, found.columns).transpose(1, 2, 0)
    return frame.reshape((found.rows, found.columns, 3) if found.samples == 3 else (found.rows, found.columns))


def _decoded(path: Path, header: Elements, found: Layout) -> Iterator[Array]:
    from pydicom import encaps
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    assert header.pixels is not None  # noqa: S101 - for the type checker
    start = header.pixels[2]
    try:
        decoder = get_decoder(header.syntax)
    except NotImplementedError:
        raise ReadError(path, f"transfer syntax {header.syntax} is not supported") from None
    if not decoder.is_available:
        raise MissingExtraError(f"a decoder of transfer syntax {header.syntax}", "imaging")
    length = parts.fragments(path, header)[1] - start
    header.file.seek(start)
    code = header.file.read(length)
    with parsing(path, "its pixel data cannot be decoded"):
        for number, frame in enumerate(encaps.generate_frames(code, number_of_frames=found.frames)):
            if number < found.frames:
                _check_code(path, frame, header.syntax, found)
    options: dict[str, Any] = {
        "transfer_syntax_uid": UID(header.syntax),
        "rows": found.rows,
        "columns": found.columns,
        "samples_per_pixel": found.samples,
        "photometric_interpretation": found.photometric,
        "number_of_frames": found.frames,
        "bits_allocated": found.allocated,
        "bits_stored": found.stored,
        "pixel_representation": int(found.signed),
        "planar_configuration": int(found.planar),
        "pixel_keyword": "PixelData",
    }
    # one by one: pydicom 3.0 corrects signs in place, and the arrays of its iterator are read-only
    for number in range(found.frames if found.signed else 0):
        signed, meta = decoder.as_array(code, index=number, raw=True, **options)
        yield _from_ybr(signed, str(meta["photometric_interpretation"]))
    if not found.signed:
        for unsigned, meta in decoder.iter_array(code, raw=True, **options):
            yield _from_ybr(unsigned, str(meta["photometric_interpretation"]))


def _check_code(path: Path, code: bytes, syntax: str, found: Layout) -> None:
    """Refuse a code stream that would decode to another size than the header says."""
    if syntax == RLE:
        # PS3.5 G.3: at worst a byte more for 128, and two a row
        most = 64 + found.samples * -(-found.allocated // 8) * (found.rows + 1) * (found.columns * 129 // 128 + 4)
        if len(code) > most:
            raise ReadError(path, "its RLE code is longer than the frame can be")
        return
    size = _size_in_code(code)
    if size is not None and size != (found.rows, found.columns):
        raise ReadError(
            path, f"its code is of {size[0]} x {size[1]} pixels, its header says {found.rows} x {found.columns}"
        )


def _size_in_code(code: bytes) -> tuple[int, int] | None:
    """Rows and columns in a JPEG, JPEG-LS or JPEG 2000 code stream; None where they are not found."""
    if code[:4] == b"\xff\x4f\xff\x51":  # ISO/IEC 15444-1 A.5.1: SIZ
        right, lower, left, upper = struct.unpack(">4L", code[8:24])
        return lower - upper, right - left
    position = 2
    while code[:2] == b"\xff\xd8" and position + 9 <= len(code):  # ISO/IEC 10918-1 B.2.2, 14495-1: SOF
        mark, length = code[position + 1], int.from_bytes(code[position + 2 : position + 4], "big")
        if mark == 0xF7 or (0xC0 <= mark <= 0xCF and mark not in {0xC4, 0xC8, 0xCC}):
            rows, columns = struct.unpack(">HH", code[position + 5 : position + 9])
            return rows, columns
        position += 1 if mark == 0xFF else 2 + length
    return None


def _from_ybr(frame: Array, photometric: str) -> Array:
    if not photometric.startswith("YBR") or photometric in {"YBR_RCT", "YBR_ICT"}:
        return frame
    from pydicom.pixels.processing import convert_color_space

    # the decoder has undone the subsampling
    rgb: Array = convert_color_space(frame, "YBR_FULL", "RGB")
    return rgb
