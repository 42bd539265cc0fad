"""The elements of a DICOM file (PS3.10, PS3.5 section 7), read once and strictly.

pydicom accepts an element that runs past the end of the file, inflates a deflated data set without limit, and follows
nested sequences by recursion. Here each of these is an error, and only the elements asked for are kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from medray import limits
from medray.errors import ReadError

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
TRANSFER_SYNTAX = 0x00020010
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"

LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
FIRST_READ = 32 << 10  # the header of most single-frame files fits
MAX_HEADER_BYTES = 256 << 20  # before the pixels; the functional groups of thousands of frames take some 10 MB
MAX_INFLATED_BYTES = 256 << 20
DEFLATE_RATIO = 40  # of 1,000 at most; the data set is held in memory, where a gzipped table flows
MAX_DEPTH = 64  # sequences in sequences


@dataclass
class Elements:
    """One file's elements of the top level.

    Attributes:
        values: tag -> (VR or empty, raw value); only the tags asked for, in what byte order `little` says.
        pixels: where the pixel data lie in `file`: (keyword, VR, first byte, length or None if encapsulated).
        file: the file, or what was inflated of it.
    """

    syntax: str
    implicit: bool
    little: bool
    file: BinaryIO
    size: int
    values: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    pixels: tuple[str, str, int, int | None] | None = None


def read(path: Path, file: BinaryIO, size: int, wanted: Collection[int]) -> Elements:
    """The wanted elements of an open file, and where its pixels begin.

    Raises:
        ReadError: no DICOM, cut, nested too deeply, or over a budget.
    """
    walk = _Walk(path, file, size)
    walk.until(132)
    if walk.data[128:132] != b"DICM":
        raise ReadError(path, "no DICOM file: the mark DICM is not at byte 128")
    meta = Elements("", implicit=False, little=True, file=file, size=size)
    walk.go(meta, 132, {TRANSFER_SYNTAX}, last_group=2)
    syntax = meta.values.get(TRANSFER_SYNTAX, ("", b""))[1].rstrip(b"\0 ").decode("ascii")
    if not syntax:
        raise ReadError(path, "names no transfer syntax")
    position = walk.position
    if syntax == DEFLATED:
        file.seek(position)
        inflated = _inflated(path, file.read())
        file, size, position = io.BytesIO(inflated), len(inflated), 0
        walk = _Walk(path, file, size)
    found = Elements(syntax, implicit=syntax == IMPLICIT, little=syntax != BIG_ENDIAN, file=file, size=size)
    if size >= position + 6:  # some writers name explicit VRs and write implicit ones, or the reverse
        walk.until(position + 6)
        vr = walk.data[position + 4 : position + 6]
        found.implicit = not (vr.isalpha() and vr.isupper())
    walk.go(found, position, wanted)
    return found


def fragments(path: Path, elements: Elements) -> tuple[int, int]:
    """How many fragments the encapsulated pixel data have, their offset table aside, and where they end (PS3.5 A.4).

    Raises:
        ReadError: they are cut.
    """
    assert elements.pixels is not None  # noqa: S101 - for the type checker
    file, position, count = elements.file, elements.pixels[2], -1
    while position + 8 <= elements.size:
        file.seek(position)
        tag, length = _joined(*struct.unpack("<HHL", file.read(8)))
        if tag == SEQUENCE_END:
            return max(count, 0), position + 8
        if tag != ITEM:
            raise ReadError(path, "the pixel data's fragments are broken")
        position += 8 + length
        count += 1
    raise ReadError(path, f"pixel data are cut: they go on beyond the {elements.size:,} bytes of the file")


class _Walk:
    """Goes through the elements of a file, of which no more is read than it needs."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.data = b""
        self.position = 0

    def until(self, end: int) -> None:
        """Have the bytes before `end`."""
        if end <= len(self.data):
            return
        if end > self.size:
            raise ReadError(self.path, f"cut: an element goes on beyond the {self.size:,} bytes of the file")
        if end > MAX_HEADER_BYTES:
            raise ReadError(self.path, f"the header is over the budget of {MAX_HEADER_BYTES:,} bytes")
        self.file.seek(len(self.data))
        self.data += self.file.read(max(FIRST_READ, 3 * len(self.data), end - len(self.data)))
        if end > len(self.data):  # it has shrunk since its size was taken
            raise ReadError(self.path, "cut while it was read")

    def go(self, found: Elements, position: int, wanted: Collection[int], last_group: int = 0xFFFF) -> None:
        """Collect the wanted elements up to the pixel data, the end of the file, or a group after `last_group`."""
        order = "<" if found.little else ">"
        tag_and_length, explicit = struct.Struct(order + "HHL").unpack_from, struct.Struct(order + "HH2sH").unpack_from
        implicit = found.implicit
        levels: list[tuple[int, int, bool]] = []  # tag, first byte and encoding of what is open
        while position < self.size:
            if position + 12 > len(self.data):
                self.until(min(position + 12, self.size))
                self.until(position + 8)
            vr, start = b"", position + 8
            if implicit:
                group, element, length = tag_and_length(self.data, position)
            else:
                group, element, vr, length = explicit(self.data, position)
                if group == 0xFFFE or not (vr.isalpha() and vr.isupper()):  # an item, or an implicit element in between
                    vr, (group, element, length) = b"", tag_and_length(self.data, position)
                elif vr in LONG:
                    self.until(position + 12)
                    length = int.from_bytes(
                        self.data[position + 8 : position + 12], "little" if found.little else "big"
                    )
                    start = position + 12
            if group > last_group:
                break
            tag = group << 16 | element
            if tag in PIXELS and not levels:
                size = None if length == UNDEFINED else length
                found.pixels = (PIXELS[tag], vr.decode("ascii"), start, size)
                break
            if tag in {ITEM_END, SEQUENCE_END}:
                if not levels or (levels[-1][0] == ITEM) != (tag == ITEM_END):
                    raise ReadError(self.path, "an item or sequence ends that did not begin")
                outer, first, implicit = levels.pop()
                if not levels and outer in wanted:
                    found.values[outer] = ("SQ", self.data[first:position])
                position = start
            elif length == UNDEFINED:
                if len(levels) == MAX_DEPTH:
                    raise ReadError(self.path, f"sequences are nested more than {MAX_DEPTH} deep")
                levels.append((tag, start, implicit))
                implicit = implicit or vr == b"UN"  # PS3.5 6.2.2: UN of undefined length is implicit within
                position = start
            else:
                end = start + length
                if end > self.size:
                    self.until(end)
                if not levels and tag in wanted:
                    self.until(end)
                    found.values[tag] = (vr.decode("ascii"), self.data[start:end])
                position = end
        if levels:
            raise ReadError(self.path, "cut: a sequence does not end")
        self.position = position


def _inflated(path: Path, deflated: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = min(MAX_INFLATED_BYTES, max(limits.FREE_BYTES, DEFLATE_RATIO * len(deflated)))
    inflated = inflater.decompress(deflated, limit)
    if inflater.unconsumed_tail:
        raise ReadError(path, f"the deflated data set is over the budget of {limit:,} bytes")
    if not inflater.eof:
        raise ReadError(path, "cut: the deflated data set does not end")
    return inflated


def _joined(group: int, element: int, length: int) -> tuple[int, int]:
    return group << 16 | element, length
