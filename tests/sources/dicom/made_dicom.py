"""Ultrasound files made for the tests: a fan of speckle under a banner with a patient's name."""

import csv
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

HEIGHT, WIDTH = 120, 160
#: Inclusive corners of the 2-D region: x0, y0, x1, y1.
REGION = (20, 24, 139, 111)
UID_ROOT = "1.2.826.0.1.3680043.10.543"


def made_frame(seed: int = 0, text: str = "DOE^JOHN 1950") -> np.ndarray:
    """`(120, 160)` uint8: banner text on top, speckle in a fan, black elsewhere."""
    rng = np.random.default_rng(seed)
    fan = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(fan, (80, 18), (96, 90), 0, 50, 130, 255, -1)
    fan[: REGION[1]] = 0
    speckle = rng.integers(40, 200, (HEIGHT, WIDTH), dtype=np.uint8)
    frame = np.where(fan > 0, cv2.GaussianBlur(speckle, (3, 3), 0), np.uint8(0))
    cv2.putText(frame, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1)
    return frame


def region(
    corners: tuple[int, int, int, int] = REGION,
    *,
    spatial: int = 1,
    kind: int = 1,
    unit: int = 3,
    delta_cm: float = 0.02,
) -> Dataset:
    """An item of SequenceOfUltrasoundRegions."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial, kind, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = corners[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = corners[2:]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = unit
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta_cm, delta_cm * 1.5
    item.TransducerFrequency = 3500
    return item


def made_dataset(frames: np.ndarray | None = None, *, number: int = 1, **changes) -> FileDataset:
    """An uncompressed ultrasound file in memory.

    Args:
        frames: `(H, W)`, `(N, H, W)`, `(H, W, 3)` or `(N, H, W, 3)`; one grey frame if None.
        number: makes the SOPInstanceUID, and the pixels of the standard frame.
        changes: DICOM keywords to set; None removes the element.
    """
    frames = made_frame(number) if frames is None else frames
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = f"{UID_ROOT}.9.{number}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    colour = frames.shape[-1] == 3
    grid = frames.shape[-3:-1] if colour else frames.shape[-2:]
    values = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": f"{UID_ROOT}.1.1",
        "SeriesInstanceUID": f"{UID_ROOT}.2.1",
        "Modality": "US",
        "StudyDate": "20200310",
        "ContentDate": "20200310",
        "AccessionNumber": "ACC7788123",
        "InstitutionName": "Saint Elsewhere Hospital",
        "ReferringPhysicianName": "Welby^Marcus",
        "OperatorsName": "Ratched^Mildred",
        "DeviceSerialNumber": "SN4433221",
        "StationName": "ROOM7EAST",
        "Manufacturer": "GE Healthcare",
        "ManufacturerModelName": "LOGIQ E9",
        "PatientName": "Doe^John^Quincy",
        "PatientID": "MRN 0012345",
        "PatientBirthDate": "19500704",
        "PatientSex": "M",
        "PatientAge": "069Y",
        "PatientAddress": "12 Elm Street, Springfield",
        "ImageType": ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"],
        "Rows": grid[0],
        "Columns": grid[1],
        "NumberOfFrames": frames.shape[0] if frames.ndim - colour == 3 else None,
        "SamplesPerPixel": 3 if colour else 1,
        "PlanarConfiguration": 0 if colour else None,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": frames.itemsize * 8,
        "BitsStored": frames.itemsize * 8,
        "HighBit": frames.itemsize * 8 - 1,
        "PixelRepresentation": int(frames.dtype.kind == "i"),
        "SequenceOfUltrasoundRegions": Sequence([region()]),
    }
    for keyword, value in {**values, **changes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    data = frames.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if frames.itemsize == 2 else "OB"
    return dataset


def compress(dataset: FileDataset, frames: list[bytes], syntax: str, photometric: str) -> None:
    """Put encoded frames into a data set."""
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def encoded(frame: np.ndarray, kind: str, **options) -> bytes:
    """One frame as a JPEG or JPEG 2000 code stream by Pillow."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, kind, **options)
    return stream.getvalue()


def file_bytes(dataset: FileDataset) -> bytes:
    """The data set as the bytes of a file."""
    stream = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.save_as(
        stream,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )
    return stream.getvalue()


def write_made(path: Path, frames: np.ndarray | None = None, **changes) -> Path:
    """Write a made file; arguments as for `made_dataset`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(made_dataset(frames, **changes)))
    return path


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a table that was written."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
