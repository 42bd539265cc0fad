"""Files made to hurt: refused by name, soon, in little memory, without a look outside their folder, without a word."""

from __future__ import annotations

import gzip
import io
import json
import logging
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from medray.errors import ReadError
from medray.readers.dicom import Dicom
from tests.dicoms import dataset, pixels_of, read, save
from tests.mutations import mutated

SECONDS, MEGABYTES = 5, 512
PIXELS = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)
BOMBS: dict[str, Callable[[Path], Path]] = {}


def bomb(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    BOMBS[make.__name__] = make
    return make


def coded(path: Path, code: list[bytes], syntax: str, **elements: Any) -> Path:
    data = dataset(np.zeros((16, 16), np.uint8), **elements)
    data.file_meta.TransferSyntaxUID = syntax
    data.NumberOfFrames = len(code)
    data.PixelData = encapsulate(code)
    data["PixelData"].VR = "OB"
    return save(path, data)


@bomb
def deflated_zeros(folder: Path) -> Path:
    """1.5 GB in 1.5 MB."""
    path = save(folder / "a.dcm", dataset(PIXELS))
    raw = path.read_bytes()
    meta = pydicom.dcmread(path).file_meta
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(pydicom.filebase.DicomFileLike(head), meta)
    deflate = zlib.compressobj(wbits=-15)
    body = [
        deflate.compress(raw[raw.index(b"\x08\x00\x05\x00" if b"\x08\x00\x05\x00" in raw else b"\x08\x00\x16\x00") :])
    ]
    body += [deflate.compress(b"\0" * (16 << 20)) for _ in range(96)]
    path.write_bytes(b"\0" * 128 + b"DICM" + head.getvalue() + b"".join([*body, deflate.flush()]))
    return path


@bomb
def run_lengths_of_one_frame(folder: Path) -> Path:
    """512 MB in 8 MB."""
    segment = b"\x81\0" * (16384 * 16384 // 128)
    code = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    return coded(folder / "b.dcm", [code], RLELossless, Rows=16384, Columns=16384, BitsAllocated=16, BitsStored=16)


@bomb
def run_lengths_of_many_frames(folder: Path) -> Path:
    """512 MB in 8 MB, of frames that are no bomb alone."""
    segment = b"\x81\0" * (4096 * 4096 // 128)
    code = struct.pack("<16L", 1, 64, *[0] * 14) + segment
    return coded(folder / "c.dcm", [code] * 32, RLELossless, Rows=4096, Columns=4096)


@bomb
def run_lengths_beyond_the_frame(folder: Path) -> Path:
    code = struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\0" * (8 << 20)
    return coded(folder / "d.dcm", [code], RLELossless)


@bomb
def code_of_another_size(folder: Path) -> Path:
    """JPEG 2000 of 60,000 x 60,000 pixels in a header that says 16 x 16."""
    size = struct.pack(">HHHLLLLLLLLH", 0xFF51, 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1) + bytes((7, 1, 1))
    return coded(folder / "e.dcm", [b"\xff\x4f" + size + b"\0" * 64], JPEG2000Lossless)


@bomb
def jpeg_of_another_size(folder: Path) -> Path:
    buffer = io.BytesIO()
    Pillow.new("L", (16, 16)).save(buffer, "JPEG")
    code = bytearray(buffer.getvalue())
    frame = code.index(b"\xff\xc0")
    code[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return coded(folder / "f.dcm", [bytes(code)], JPEGBaseline8Bit)


@bomb
def sequences_in_sequences(folder: Path) -> Path:
    """5,000 deep: a parser that calls itself for each runs out of stack."""
    path = save(folder / "g.dcm", dataset(PIXELS))
    raw = path.read_bytes()
    place = raw.index(b"\x28\x00\x02\x00US")
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * 5000
    path.write_bytes(raw[:place] + opened + closed + raw[place:])
    return path


@bomb
def frames_without_end(folder: Path) -> Path:
    return save(folder / "h.dcm", dataset(PIXELS, NumberOfFrames="2000000000"))


@bomb
def pixels_without_end(folder: Path) -> Path:
    return save(folder / "i.dcm", dataset(PIXELS, Rows=65535, Columns=65535))


@bomb
def palette_in_segments(folder: Path) -> Path:
    """1 MB that unfolds to ten thousand million entries."""
    data = dataset(PIXELS.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        code = np.tile(np.array([1, 65535, 9], np.uint16), 160_000)
        setattr(data, f"Segmented{name}PaletteColorLookupTableData", code.tobytes())
    return save(folder / "j.dcm", data)


@bomb
def png_of_nothing(folder: Path) -> Path:
    """169 MB in 170 kB, just below what Pillow itself refuses."""
    Pillow.new("L", (13000, 13000)).save(folder / "k.png")
    return folder / "k.png"


@bomb
def png_of_words(folder: Path) -> Path:
    """A text of 400 MB beside a small picture."""
    buffer = io.BytesIO()
    Pillow.new("L", (16, 16)).save(buffer, "PNG")
    raw = buffer.getvalue()
    chunk = b"zTXtTitle\0\0" + zlib.compress(b"\0" * (400 << 20))
    chunk = struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk))
    (folder / "l.png").write_bytes(raw[:33] + chunk + raw[33:])
    return folder / "l.png"


@bomb
def jpeg_without_end(folder: Path) -> Path:
    buffer = io.BytesIO()
    Pillow.new("L", (16, 16)).save(buffer, "JPEG")
    code = bytearray(buffer.getvalue())
    frame = code.index(b"\xff\xc0")
    code[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    (folder / "m.jpeg").write_bytes(code)
    return folder / "m.jpeg"


@bomb
def rows_without_end(folder: Path) -> Path:
    """1.5 GB in 1.5 MB."""
    with gzip.open(folder / "n.csv.gz", "wb", compresslevel=6) as file:
        file.write(b"a,b\n")
        for _ in range(96):
            file.write(b"1,2\n" * (4 << 20))
    return folder / "n.csv.gz"


@bomb
def a_line_without_end(folder: Path) -> Path:
    (folder / "o.csv").write_bytes(b"a,b" + b"x" * (64 << 20))
    return folder / "o.csv"


@bomb
def a_quote_without_end(folder: Path) -> Path:
    (folder / "p.csv").write_bytes(b'a,b\n1,"' + b"x,y\n" * (8 << 20))
    return folder / "p.csv"


@bomb
def columns_without_end(folder: Path) -> Path:
    (folder / "q.csv").write_bytes(b",".join(b"c%d" % number for number in range(400_000)) + b"\n1\n")
    return folder / "q.csv"


@bomb
def samples_without_end(folder: Path) -> Path:
    (folder / "r.dat").write_bytes(b"\0" * 64)
    (folder / "r.hea").write_text("r 1 100 999999999999\nr.dat 16 200 16 0 0 0 0 I\n")
    return folder / "r.hea"


@bomb
def flac_samples_without_end(folder: Path) -> Path:
    (folder / "s.dat").write_bytes(b"fLaC" + b"\0" * 64)
    (folder / "s.hea").write_text("s 1 100 999999999\ns.dat 516 200 16 0 0 0 0 I\n")
    return folder / "s.hea"


@bomb
def segments_without_end(folder: Path) -> Path:
    lines = [f"t/{300_000} 1 100 300000000000", *("t 1000000" for _ in range(300_000))]
    (folder / "t.hea").write_text("\n".join(lines))
    return folder / "t.hea"


# the guard that is to refuse it: a decoder that fails of itself may not fail with the next release
SAID = {
    "code_of_another_size": "its code is of 60000 x 60000 pixels",
    "jpeg_of_another_size": "its code is of 65000 x 65000 pixels",
    "sequences_in_sequences": "nested more than 64 deep",
    "png_of_nothing": "would decode to",
    "run_lengths_of_many_frames": "would decode to",
    "rows_without_end": "would decode to",
}

WATCHED = """
import json, re, sys, time
from pathlib import Path
from medray import plugins
from medray.errors import ReadError
kinds = {".dcm": "dicom", ".png": "image", ".jpeg": "image", ".hea": "wfdb"}
path = Path(sys.argv[1])
reader = plugins.resolve("readers", {"kind": kinds.get(path.suffix, "csv"), "path": "*"})
start, rows, refused = time.process_time(), 0, ""
try:
    for chunk in reader.read(path):
        rows += len(chunk.rows)
except ReadError as error:
    refused = error.reason
# not ru_maxrss, which starts from what the test's own process held
memory = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([refused, rows, time.process_time() - start, memory]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_in_little_memory(name: str, tmp_path: Path) -> None:
    path = BOMBS[name](tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    refused, rows, seconds, megabytes = json.loads(done.stdout)
    assert refused
    assert SAID.get(name, "") in refused
    assert not rows
    assert seconds < SECONDS
    assert megabytes < MEGABYTES


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_cut_pixels_are_an_error_that_says_so(syntax: str | None, share: float, tmp_path: Path) -> None:
    data = dataset(np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16))
    if syntax:
        data.compress(syntax, generate_instance_uid=False)
    path = save(tmp_path / "a.dcm", data)
    raw = path.read_bytes()
    pixels = raw.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(raw[: pixels + 20 + int(share * (len(raw) - pixels - 20))])
    for assets in (True, False):  # a survey that passed it would promise a record that then is not there
        with pytest.raises(ReadError, match="pixel data are cut"):
            read(path, assets=assets)


def test_a_lie_about_a_length_is_an_error(tmp_path: Path) -> None:
    """pydicom 3.0 takes what is there, without a word."""
    path = save(tmp_path / "a.dcm", dataset(PIXELS, InstitutionName="x" * 64))
    raw = path.read_bytes()
    place = raw.index(b"\x08\x00\x80\x00LO")
    path.write_bytes(raw[: place + 6] + b"\xff\xff" + raw[place + 8 :])
    with pytest.raises(ReadError, match="cut: an element goes on beyond"):
        read(path)


def test_burned_in_names_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", dataset(PIXELS, BurnedInAnnotation="YES"))
    for assets in (True, False):
        with pytest.raises(ReadError, match="burned into its pixels"):
            read(path, assets=assets)
    assert pixels_of(save(path, dataset(PIXELS, BurnedInAnnotation="NO"))).shape == (48, 32)


def test_burned_in_names_of_a_real_file_are_refused(shared_data: Path) -> None:
    with pytest.raises(ReadError, match="burned into its pixels"):
        read(shared_data / "dicom_phi_examples/ultrasounds/GREYSCALE_IMAGE.dcm")


def test_nothing_of_a_header_is_logged_or_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    data = dataset(PIXELS)
    for tag, vr in ((0x00080005, "CS"), (0x00100010, "PN"), (0x00100020, "LO"), (0x00180060, "DS"), (0x00080020, "DA")):
        raw = b"CANARY\xff "
        data._dict[BaseTag(tag)] = RawDataElement(BaseTag(tag), vr, len(raw), raw, 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(tmp_path / "a.dcm", data)
    caplog.clear()  # what pydicom says when it writes such a file is the test's own doing
    reader = Dicom(path="*", columns={"name": "PatientName"})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        (records,) = reader.read(path)
        assert records.columns.column("PatientName").to_pylist()[0].startswith("CANARY")
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ReadError) as caught:
            list(reader.read(path))
    said = capfd.readouterr()
    assert not warned
    assert "CANARY" not in f"{caught.value}{said.out}{said.err}{caplog.text}{caught.value.__cause__}"


def real_files(shared_data: Path) -> Iterator[Path]:
    for path in sorted((shared_data / "dicom_variety").rglob("*.dcm")):
        if path.stat().st_size < 400_000:
            yield path


def test_damaged_files_of_every_encoding_are_read_or_are_one_named_error(shared_data: Path, tmp_path: Path) -> None:
    draw, paths, outcomes = random.Random(3), list(real_files(shared_data)), set()
    for _ in range(500):
        path = tmp_path / "a.dcm"
        path.write_bytes(mutated(draw.choice(paths).read_bytes(), draw))
        try:
            read(path)
        except ReadError as error:
            outcomes.add(error.reason.split(":")[0])
    assert len(outcomes) > 5
