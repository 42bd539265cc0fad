"""WFDB samples are what the header says they are, and a header cannot reach beyond its folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wfdb

from medray.errors import MissingExtraError, ReadError
from medray.readers.wfdb import Wfdb

HEADER = """\
r 2 100 4 10:15:30 31/01/2024
r.dat 16 200(10)/mV 16 0 210 {one} 0 I
r.dat 16 100/uV 16 0 0 {two} 0 lead, two
# patient: MRN7
# sex: F
# Dx: 426783006
#Dx: 164889003
# leads: 99
# The PVCs are uniform.
"""
WRITING = "ignore:The inplace keyword"  # wfdb 4.3 under pandas 3.1, when it writes
SAMPLES = np.array([[210, 0], [10, -32768], [-190, 100], [410, 200]], "<i2")


def read(path: Path, **fields: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The columns and the signal of a record."""
    (records,) = Wfdb(path="*", **fields).read(path)
    assert records.assets is not None
    return records.columns.to_pylist()[0], records.assets[0]


def write(folder: Path, header: str = HEADER, samples: np.ndarray[Any, Any] = SAMPLES) -> Path:
    one, two = (int(column.sum(dtype="int64")) for column in samples.T)
    (folder / "r.hea").write_text(header.format(one=one, two=two), encoding="utf-8")
    (folder / "r.dat").write_bytes(samples.tobytes())
    return folder / "r.hea"


def test_samples_are_in_millivolts_and_gaps_are_no_number(tmp_path: Path) -> None:
    columns, signal = read(write(tmp_path))
    assert signal.dtype == np.float32
    np.testing.assert_allclose(signal, [[1, 0], [0, np.nan], [-1, 0.001], [2, 0.002]])
    assert (columns["sampling_rate_hz"], columns["duration_s"], columns["leads"]) == (100.0, 0.04, "I,lead  two")


def test_comments_are_columns_and_the_base_time_is_the_records(tmp_path: Path) -> None:
    columns, _ = read(write(tmp_path))
    assert columns["recorded_at"] == "2024-01-31 10:15:30"
    assert (columns["patient"], columns["sex"], columns["Dx"]) == ("MRN7", "F", "426783006; 164889003")
    assert not [name for name in columns if "PVC" in name]
    assert "recorded_at" in Wfdb(path="*").record_names()


def test_a_changed_sample_is_seen_by_the_checksum(tmp_path: Path) -> None:
    path = write(tmp_path)
    changed = SAMPLES.copy()
    changed[0, 0] += 1
    (tmp_path / "r.dat").write_bytes(changed.tobytes())
    with pytest.raises(ReadError, match=r"r\.hea: the samples do not add up to the header's checksum"):
        read(path)
    assert read(path, checksums=False)[1][0, 0] == np.float32(1.005)


def test_samples_may_begin_after_a_header_of_their_own(tmp_path: Path) -> None:
    """As in the .mat files of PhysioNet's challenges: format 16+24."""
    path = write(tmp_path, HEADER.replace("dat 16 ", "dat 16+24 "))
    (tmp_path / "r.dat").write_bytes(b"m" * 24 + SAMPLES.tobytes())
    np.testing.assert_allclose(read(path)[1][:, 0], [1, 0, -1, 2])


def test_equals_the_wfdb_library_on_real_records(shared_data: Path) -> None:
    paths = [*sorted((shared_data / "ptbxl_500").rglob("*.hea"))[::40], shared_data / "mitbih_arrhythmia/106.hea"]
    for path in paths:
        _, signal = read(path)
        np.testing.assert_allclose(signal, wfdb.rdrecord(str(path)[:-4]).p_signal, atol=1e-5)


@pytest.mark.filterwarnings(WRITING)
@pytest.mark.parametrize("sort", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_every_format_is_read(sort: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(int(sort))
    digital = draw.integers(-100, 100, (301, 3))
    bits = {"80": 8, "508": 8, "212": 12, "24": 24, "524": 24, "32": 32}.get(sort, 16)
    digital[7, 1] = -(1 << (bits - 1))  # no sample
    names, units = ["I", "II", "V1"], ["mV"] * 3
    wfdb.wrsamp(
        "x", 250, units, names, d_signal=digital, fmt=[sort] * 3, adc_gain=[100.0] * 3, baseline=[0, 5, 0],
        write_dir=str(tmp_path),
    )  # fmt: skip
    columns, signal = read(tmp_path / "x.hea")
    expected = (digital - [0, 5, 0]) / 100.0
    expected[7, 1] = np.nan
    np.testing.assert_allclose(signal, expected, atol=1e-5)
    assert columns["leads"] == "I,II,V1"


@pytest.mark.parametrize(
    ("sort", "stored"),
    [
        ("61", SAMPLES.astype(">i2")),
        ("160", (SAMPLES.astype(int) + 32768).astype("<u2")),
        ("8", np.array([[90, 0], [-5, 7], [-9, 8], [6, 9]], np.int8)),
    ],
)
def test_older_formats_are_read(sort: str, stored: np.ndarray[Any, Any], tmp_path: Path) -> None:
    path = write(tmp_path, HEADER.replace("dat 16 ", f"dat {sort} ").replace("210 {one}", "0 {one}"))
    (tmp_path / "r.dat").write_bytes(stored.tobytes())
    _, signal = read(path, checksums=sort != "8")
    digital = np.cumsum(stored.astype(int), 0) if sort == "8" else SAMPLES
    np.testing.assert_allclose(signal[:, 0], (digital[:, 0] - 10) / 200, atol=1e-6)
    assert np.isnan(signal[1, 1]) == (sort != "8")


@pytest.mark.filterwarnings(WRITING)
def test_several_samples_a_frame_become_their_mean(tmp_path: Path) -> None:
    slow, fast = np.arange(10), np.arange(40)
    wfdb.wrsamp(
        "x", 100, ["mV", "mV"], ["slow", "fast"], e_d_signal=[slow, fast], fmt=["16", "16"], adc_gain=[1.0, 1.0],
        baseline=[0, 0], samps_per_frame=[1, 4], write_dir=str(tmp_path),
    )  # fmt: skip
    _, signal = read(tmp_path / "x.hea")
    np.testing.assert_allclose(signal, np.column_stack([slow, fast.reshape(10, 4).mean(1)]))


def segmented(folder: Path) -> Path:
    for name, start in (("a", 0), ("b", 100)):
        part = np.arange(start, start + 8, dtype="<i2").reshape(4, 2)
        lines = "".join(f"{name}.dat 16 1000/uV 16 0 0 {int(part[:, lead].sum())} 0 {lead}\n" for lead in (0, 1))
        (folder / f"{name}.hea").write_text(f"{name} 2 100 4\n{lines}")
        (folder / f"{name}.dat").write_bytes(part.tobytes())
    (folder / "r.hea").write_text("r/2 2 100 8\na 4\nb 4\n# patient: MRN7\n")
    return folder / "r.hea"


def test_a_record_in_segments_is_one_record(tmp_path: Path) -> None:
    path = segmented(tmp_path)
    columns, signal = read(path)
    expected = np.concatenate([np.arange(8).reshape(4, 2), np.arange(100, 108).reshape(4, 2)]) * 1e-6
    np.testing.assert_allclose(signal, expected, atol=1e-9)
    assert (columns["leads"], columns["duration_s"], columns["patient"]) == ("0,1", 0.08, "MRN7")
    assert {part.name for part in Wfdb(path="*").companions(path)} == {"a.hea", "a.dat", "b.hea", "b.dat"}
    (tmp_path / "b.dat").write_bytes(b"\0" * 6)
    with pytest.raises(ReadError, match=r"r\.hea: its segment 2: its signal file is cut: 1 of 4 samples"):
        read(path)


@pytest.mark.parametrize("assets", [True, False])
def test_a_cut_or_missing_signal_file_is_an_error_that_says_so(tmp_path: Path, assets: bool) -> None:
    path = write(tmp_path)
    (tmp_path / "r.dat").write_bytes(SAMPLES.tobytes()[:-1])
    with pytest.raises(ReadError, match=r"r\.hea: its signal file is cut: 3 of 4 samples"):
        list(Wfdb(path="*").read(path, assets=assets))
    (tmp_path / "r.dat").unlink()
    with pytest.raises(ReadError, match="its signal file is missing"):
        list(Wfdb(path="*").read(path, assets=assets))


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.dat", "../../secret.dat", "/etc/passwd", "sub/secret.dat", "./r.dat", "..", ".", "~"),
        *("http://127.0.0.1:9/x.dat", "s3://bucket/x.dat", "file:///etc/passwd", "C:\\secret.dat", "..\\secret.dat"),
    ],
)
@pytest.mark.parametrize("sort", ["16", "212"])
def test_a_header_cannot_reach_beyond_its_folder(name: str, sort: str, tmp_path: Path) -> None:
    (tmp_path / "secret.dat").write_bytes(b"\1\0" * 64)
    folder = tmp_path / "records" / "sub"
    folder.mkdir(parents=True)
    (folder.parent / "secret.dat").write_bytes(b"\1\0" * 64)
    path = folder.parent / "r.hea"
    path.write_text(f"r 1 100 4\n{name} {sort} 200 16 0 0 4 0 I\n")
    with pytest.raises(ReadError, match=r"outside its folder|is missing"):
        read(path)
    path.write_text(f"r/1 1 100 4\n{name.removesuffix('.dat')} 4\n")
    with pytest.raises(ReadError):
        read(path)
    for companion in Wfdb(path="*").companions(path):
        assert companion.parent == folder.parent


def test_companions_of_a_broken_header_are_none(tmp_path: Path) -> None:
    path = tmp_path / "r.hea"
    for text in ("", "nonsense", "r 1 100 4\n../x.dat 16\n", "r 2 100 4\nr.dat 16\n", "r 1 nan 4\nr.dat 16\n"):
        path.write_text(text)
        assert Wfdb(path="*").companions(path) == ()
    assert Wfdb(path="*").companions(write(tmp_path)) == (tmp_path / "r.dat",)


def test_format_16_needs_no_library_and_the_others_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "wfdb", None)
    assert read(path)[1].shape == (4, 2)
    path.write_text("r 1 100 4\nr.dat 212 200 12 0 0 0 0 I\n")
    with pytest.raises(MissingExtraError, match=r"medray\[signals\]"):
        read(path)
