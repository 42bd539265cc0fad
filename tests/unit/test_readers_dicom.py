"""DICOM pixels are what the standard says they are, and columns are what identifies nobody."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medray.errors import ReadError, StudyError
from medray.readers.dicom import Dicom
from medray.schema import is_identifier
from tests.dicoms import columns_of, dataset, pixels_of, read, save

RAMP = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)


def test_pixels_are_rescaled_into_the_narrowest_type_that_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    plain = pixels_of(save(path, dataset(RAMP, RescaleSlope=1, RescaleIntercept=0)))
    assert plain.dtype == np.uint16
    np.testing.assert_array_equal(plain, RAMP)
    hounsfield = pixels_of(save(path, dataset(RAMP, RescaleSlope=1, RescaleIntercept=-1024)))
    assert hounsfield.dtype == np.int16
    np.testing.assert_array_equal(hounsfield, RAMP.astype(int) - 1024)
    wide = pixels_of(save(path, dataset(RAMP, RescaleSlope=1000, RescaleIntercept=-40_000)))
    assert wide.dtype == np.int32
    np.testing.assert_array_equal(wide, RAMP.astype(int) * 1000 - 40_000)
    fine = pixels_of(save(path, dataset(RAMP, RescaleSlope="0.25", RescaleIntercept="0.5")))
    assert fine.dtype == np.float32
    np.testing.assert_allclose(fine, RAMP * 0.25 + 0.5)


def test_what_is_dark_in_monochrome1_is_bright(tmp_path: Path) -> None:
    film = dataset(RAMP, PhotometricInterpretation="MONOCHROME1", BitsStored=12)
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "a.dcm", film)), 4095 - RAMP)
    signed = dataset(RAMP.astype(np.int16) - 700, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "b.dcm", signed)), 699 - RAMP.astype(int))


def test_signed_pixels_keep_their_sign(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.int16) - 700
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "a.dcm", dataset(pixels))), pixels)


def test_an_overlay_in_unused_bits_is_not_seen(tmp_path: Path) -> None:
    burned = RAMP | 0xF000  # as old scanners wrote names into the picture
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "a.dcm", dataset(burned, BitsStored=12))), RAMP)
    shifted = (RAMP << 4) | 0x000F
    high = dataset(shifted, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "b.dcm", high)), RAMP)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, None], ids=["implicit", "explicit"])
def test_padding_becomes_the_darkest_other_pixel(syntax: UID | None, tmp_path: Path) -> None:
    pixels = RAMP.astype(np.int16)
    pixels[:4] = -2000
    data = dataset(pixels, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=-1000)
    data["PixelPaddingValue"].VR = "SS"
    if syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
    found = pixels_of(save(tmp_path / "a.dcm", data))
    assert found.min() == pixels[4:].min() - 1000
    np.testing.assert_array_equal(found[4:], pixels[4:] - 1000)


def test_colours_are_rgb_however_they_lie(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "a.dcm", dataset(rgb, SamplesPerPixel=3))), rgb)
    planes = dataset(rgb, SamplesPerPixel=3, PlanarConfiguration=1)
    planes.PixelData = rgb.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(pixels_of(save(tmp_path / "b.dcm", planes)), rgb)
    ybr = pydicom.pixels.convert_color_space(rgb, "RGB", "YBR_FULL")
    converted = pixels_of(
        save(tmp_path / "c.dcm", dataset(ybr, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL"))
    )
    assert np.abs(converted.astype(int) - rgb).max() <= 3
    halved = dataset(rgb, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422")
    halved.PixelData = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1).tobytes()
    first = pixels_of(save(tmp_path / "d.dcm", halved))[:, ::2]
    assert np.abs(first.astype(int) - rgb[:, ::2]).max() <= 3


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    table = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    data = dataset(RAMP.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, colour in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{name}PaletteColorLookupTableData", colour.tobytes())
    found = pixels_of(save(tmp_path / "a.dcm", data))
    np.testing.assert_array_equal(found, (table.T[RAMP.astype(np.uint8)] >> 8).astype(np.uint8))


def test_a_file_of_many_frames_is_a_record_for_each(tmp_path: Path) -> None:
    frames = np.stack([RAMP + 10 * number for number in range(5)])
    data = dataset(frames, PatientAge="045Y")
    groups = []
    for number in range(5):
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = "1", str(-100 * number)
        group = Dataset()
        group.PixelValueTransformationSequence = [rescale]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    (records,) = read(save(tmp_path / "a.dcm", data))
    assert list(records.rows) == [0, 1, 2, 3, 4]
    assert records.columns.column("PatientAge").to_pylist() == [45.0] * 5
    assert records.assets is not None
    for number, frame in enumerate(records.assets):
        np.testing.assert_array_equal(frame, frames[number].astype(int) - 100 * number)


def test_large_frames_come_some_at_a_time(tmp_path: Path) -> None:
    frames = np.zeros((5, 2048, 2048), np.uint16)
    frames += np.arange(5, dtype=np.uint16)[:, None, None]
    chunks = read(save(tmp_path / "a.dcm", dataset(frames)))
    assert [len(chunk.rows) for chunk in chunks] == [4, 1]
    assert [frame.max() for chunk in chunks for frame in chunk.assets or []] == [0, 1, 2, 3, 4]
    assert [row for chunk in chunks for row in chunk.rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_loses_nothing(syntax: UID, signed: bool, tmp_path: Path) -> None:
    pixels = np.stack([RAMP, RAMP[::-1]]).astype(np.int16 if signed else np.uint16) - (700 if signed else 0)
    data = dataset(pixels, BitsStored=12)
    data.compress(syntax, generate_instance_uid=False)
    (records,) = read(save(tmp_path / "a.dcm", data))
    np.testing.assert_array_equal(np.stack(records.assets or []), pixels)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_native_encoding_gives_the_same(syntax: UID, tmp_path: Path) -> None:
    big = syntax == ExplicitVRBigEndian
    data = dataset(RAMP.astype(">u2") if big else RAMP, PatientWeight="70.5", PatientAge="018M")
    data.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "a.dcm"
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    np.testing.assert_array_equal(pixels_of(path), RAMP)
    assert columns_of(path)["PatientWeight"] == 70.5
    assert columns_of(path)["PatientAge"] == 1.5


def test_frames_equal_those_of_pydicom_in_every_encoding(shared_data: Path) -> None:
    """Native, JPEG, JPEG-LS, JPEG 2000, HTJ2K and RLE; CT, MR, US, CR, NM, DX, microscopy, segmentations."""
    compared, syntaxes = 0, set()
    for path in sorted((shared_data / "dicom_variety").rglob("*.dcm")):
        try:
            frames = np.stack([frame for chunk in read(path) for frame in chunk.assets or []])
        except ReadError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path)
            if "PixelPaddingValue" in data or "PerFrameFunctionalGroupsSequence" in data:
                continue  # pydicom leaves both to its user
            expected = pixel_array(data)
            if data.PhotometricInterpretation == "PALETTE COLOR":
                expected = apply_color_lut(expected, data)
                expected = expected >> 8 if expected.max() > 255 else expected
            elif data.PhotometricInterpretation == "MONOCHROME1":
                expected = (1 << data.BitsStored) - 1 - expected
            if "FloatPixelData" not in data and "DoubleFloatPixelData" not in data and data.get("SamplesPerPixel") == 1:
                expected = apply_modality_lut(expected, data)
        np.testing.assert_allclose(frames, expected.reshape(frames.shape), rtol=1e-5, atol=1e-3, err_msg=path.name)
        compared += 1
        syntaxes.add(data.file_meta.TransferSyntaxUID)
    assert compared > 60
    assert len(syntaxes) >= 10


def test_what_identifies_is_no_column(tmp_path: Path) -> None:
    data = dataset(
        RAMP, InstitutionName="Oakfield", StudyDescription="CT of Jane Doe", AccessionNumber="A1", StudyID="9"
    )
    data.private_block(0x19, "MAKER", create=True).add_new(0x10, "LO", "Doe^Jane")
    path = save(tmp_path / "a.dcm", data)
    columns = columns_of(path, subject={"of": "chart"}, record="SOPInstanceUID")
    assert columns.pop("SOPInstanceUID") == "1.2.3"  # a key, which is never stored
    text = " ".join(str(value) for value in columns.values())
    assert not [word for word in ("MRN1", "Doe", "1940", "Oakfield", "A1") if word in text]
    assert [name for name in columns if is_identifier(name)] == ["ManufacturerModelName"]  # a device has a name too
    assert columns_of(path)["PatientID"] == "MRN1"  # where nothing else says whose record it is
    assert "PatientID" in Dicom(path="*").record_names()


@pytest.mark.parametrize(
    ("age", "years"), [("045Y", 45.0), ("018M", 1.5), ("026W", 0.498), ("010D", 0.0274), ("old", None), ("", None)]
)
def test_an_age_is_in_years(age: str, years: float | None, tmp_path: Path) -> None:
    data = dataset(RAMP)
    data.add_new("PatientAge", "LO", age)
    data["PatientAge"].VR = "AS"
    found = columns_of(save(tmp_path / "a.dcm", data))["PatientAge"]
    assert found == (years if years is None else pytest.approx(years, abs=1e-3))


@pytest.mark.parametrize(
    ("elements", "moment"),
    [
        ({"AcquisitionDateTime": "20240131101530.5+0100", "StudyDate": "20230101"}, "2024-01-31 10:15:30.5+01:00"),
        ({"AcquisitionDate": "20240131", "AcquisitionTime": "1015", "StudyDate": "20230101"}, "2024-01-31 10:15:00"),
        ({"StudyDate": "20240131", "StudyTime": ""}, "2024-01-31"),
        ({"SeriesDate": "20241399", "StudyDate": "20240131", "StudyTime": "101530"}, "2024-01-31 10:15:30"),
        ({}, None),
    ],
)
def test_a_record_is_of_the_moment_of_its_acquisition(
    elements: dict[str, str], moment: str | None, tmp_path: Path
) -> None:
    data = dataset(RAMP)
    with pydicom.config.disable_value_validation():
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        path = save(tmp_path / "a.dcm", data)
    assert columns_of(path)["recorded_at"] == moment
    assert not set(columns_of(path)) & set(elements)  # the dates themselves are no columns


def test_any_element_can_be_named(tmp_path: Path) -> None:
    data = dataset(
        RAMP, SpecificCharacterSet="ISO_IR 192", StudyDate="20240131", PatientComments="müde", EchoTime="8.5"
    )
    data.add_new((0x0019, 0x100C), "IS", "1000")
    path = save(tmp_path / "a.dcm", data)
    columns: dict[str, Any] = {"note": "PatientComments", "b": "0019,100c", "echo": "EchoTime"}
    found = columns_of(path, columns=columns, time="StudyDate")
    assert (found["PatientComments"], found["0019,100c"], found["EchoTime"]) == ("müde", "1000", 8.5)
    assert found["StudyDate"] == "2024-01-31"
    with pytest.raises(StudyError, match=r"'PatientComent' is no DICOM keyword. Did you mean 'PatientComments'"):
        columns_of(path, columns={"note": "PatientComent"})


def test_a_value_that_is_no_number_is_missing(tmp_path: Path) -> None:
    data = dataset(RAMP, PixelSpacing=["0.5", "0.7"])
    raw = b"one hundred "
    data._dict[BaseTag(0x00180060)] = RawDataElement(BaseTag(0x00180060), "DS", len(raw), raw, 0, False, True)  # KVP
    columns = columns_of(save(tmp_path / "a.dcm", data))
    assert columns["KVP"] is None
    assert columns["PixelSpacing"] == "0.5\\0.7"
