"""DICOM files that tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medray.readers import Records
from medray.readers.dicom import Dicom


def dataset(pixels: np.ndarray[Any, Any], **elements: Any) -> Dataset:
    """An image of these pixels, (H, W), (F, H, W) or, with three samples, (H, W, 3); elements by keyword."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, "1.2.3", "CT"
    data.PatientID, data.PatientName, data.PatientBirthDate = "MRN1", "Doe^Jane", "19400101"
    colour = elements.get("SamplesPerPixel", 1) == 3
    shape = pixels.shape[:-1] if colour else pixels.shape
    data.Rows, data.Columns = shape[-2:]
    if len(shape) == 3:
        data.NumberOfFrames = shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        data.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.HighBit = elements.get("HighBit", data.BitsStored - 1)
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    return data


def save(path: Path, data: Dataset) -> Path:
    """The path, written."""
    data.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, *, assets: bool = True, **fields: Any) -> list[Records]:
    """All chunks of a file."""
    return list(Dicom(path="*", **fields).read(path, assets=assets))


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    """The only frame of a file."""
    (records,) = read(path)
    assert records.assets is not None
    (frame,) = records.assets
    return frame


def columns_of(path: Path, **fields: Any) -> dict[str, Any]:
    """The columns of the only record of a file."""
    (records,) = read(path, assets=False, **fields)
    (row,) = records.columns.to_pylist()
    return dict(row)
