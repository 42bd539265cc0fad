"""Synthetic chest films as DICOM, with all the identifiers that real ones carry."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medray.synthetic import Persona

DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1.1"
ROOT = "1.2.826.0.1.3680043.10.511"
CUT_EVERY = 200
WARDS = ("Oakfield", "Lindenhof", "Saint Vera")


def films(folder: Path, personas: Sequence[Persona], seed: int) -> None:
    """Explicit and implicit VRs, one in eight MONOCHROME1, one in sixteen JPEG-LS."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

    folder.mkdir(parents=True, exist_ok=True)
    for number, persona in enumerate(personas):
        if not persona.has_film:
            continue
        draw = random.Random(f"dicom {seed} {persona.mrn}")  # noqa: S311 - synthetic data, not a secret
        film = persona.film(seed=seed)
        inverted = draw.random() < 1 / 8
        data = _header(persona, number, draw)
        data.Rows, data.Columns = film.shape
        data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        syntax = draw.choice((ExplicitVRLittleEndian, ImplicitVRLittleEndian))
        data.file_meta.TransferSyntaxUID = syntax
        data["PixelData"] = _pixels((4095 - film if inverted else film).astype("<u2").tobytes())
        if draw.random() < 1 / 16:
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.compress(JPEGLSLossless, generate_instance_uid=False)
        path = folder / f"film_{number:04d}.dcm"
        data.save_as(path, enforce_file_format=True)
        if number % CUT_EVERY == CUT_EVERY - 1:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size * 2 // 3)


def _pixels(raw: bytes) -> Any:
    from pydicom.dataelem import DataElement

    return DataElement(0x7FE00010, "OW", raw)


def _header(persona: Persona, number: int, draw: random.Random) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    when = datetime.fromisoformat(persona.recorded_at)
    uid = f"{ROOT}.{draw.randrange(10**9)}.{number + 1}"
    ward = draw.choice(WARDS)
    data.file_meta = FileMetaDataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["DERIVED", "PRIMARY", ""]
    data.SOPClassUID, data.SOPInstanceUID = DIGITAL_X_RAY, f"{uid}.3"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = when.strftime("%Y%m%d")
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = when.strftime("%H%M%S")
    data.AccessionNumber, data.StudyID = f"A{draw.randrange(10**7):07d}", str(draw.randrange(10**5))
    data.Modality, data.PresentationIntentType = "DX", "FOR PRESENTATION"
    data.Manufacturer, data.ManufacturerModelName = "Invented Imaging", draw.choice(("Lumen 2", "Lumen 3"))
    data.DeviceSerialNumber = f"SN{draw.randrange(10**6):06d}"
    data.InstitutionName, data.InstitutionAddress = f"{ward} Hospital", f"{draw.randrange(1, 99)} Elm Road, {ward}"
    data.ReferringPhysicianName, data.OperatorsName = "Nowak^Ilse^^Dr", "Okafor^T"
    data.StudyDescription = f"Chest PA, {persona.name.split('^')[0]}"
    data.PatientName, data.PatientID = persona.name, persona.mrn
    data.PatientBirthDate, data.PatientSex = persona.birth_date.replace("-", ""), persona.sex
    data.PatientAge = f"{persona.age:03d}Y"
    data.OtherPatientIDs = f"NHS{draw.randrange(10**9):09d}"
    data.PatientAddress = f"{draw.randrange(1, 200)} Harbour Street, {ward}"
    data.PatientTelephoneNumbers = f"+44 20 7946 {draw.randrange(10**4):04d}"
    data.PatientComments = f"{persona.name.replace('^', ' ')} asked to be called."
    data.BodyPartExamined, data.ViewPosition, data.PatientOrientation = "CHEST", "PA", ["L", "F"]
    data.KVP, data.Exposure = "120", str(draw.randint(1, 4))
    data.ImagerPixelSpacing = ["1.8", "1.8"]
    data.SeriesNumber, data.InstanceNumber = "1", "1"
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 1, 16, 12, 11
    data.PixelRepresentation, data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = 0, "LOG", -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.PresentationLUTShape = "IDENTITY"
    private = data.private_block(0x0019, "INVENTED IMAGING 1.0", create=True)
    private.add_new(0x10, "LO", f"{persona.name} {persona.mrn}")
    private.add_new(0x11, "LT", f"called back on +44 20 7946 {draw.randrange(10**4):04d}")
    return data
