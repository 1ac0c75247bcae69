"""What each stage costs per frame, and what that makes for a study of a hospital group.

    python benchmarks/scale_cost.py
    python benchmarks/scale_cost.py --frames 10000000 --cores 64 --views 4 --engine auto

Processor time of this process (all its threads), on simulated frames of 636 x 434 px; the second
of two rounds counts. Uncompressed DICOM clips of ten frames stand for the export. Hours are
processor time over cores: they leave out waiting for disks and the network, and are longer on a
shared machine, so the load is printed.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import pydicom
import tensorflow as tf
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset

from steatosis_tf.cohort.manifest import pixels_sha256
from steatosis_tf.cohort.near_duplicates import HASH_BYTES, perceptual_hash
from steatosis_tf.config import ModelConfig, RoiConfig
from steatosis_tf.model.backbone import build_backbone
from steatosis_tf.model.engines import BATCH, choose_engine
from steatosis_tf.records.builder import example_of, record_features
from steatosis_tf.roi.columns import cut_roi
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.sector.cell import sector_cell
from steatosis_tf.sources.dicom.ingest import ingest_dicom
from steatosis_tf.sources.images import read_frame
from steatosis_tf.sources.phantom.study import write_phantoms
from steatosis_tf.sources.pseudonym import create_key

NUM_PATIENTS, FRAMES_PER_PATIENT = 8, 10


def main(argv: list[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--views", type=int, default=4, help="augmented views beside the plain one")
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        stages, num_features = _stages(Path(name), arguments.engine)
    num_views = arguments.views + 1
    total = 0.0
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'stage':34}{'ms of a core':>13}{'frames/s/core':>14}{'core hours':>12}{'hours':>8}")
    for stage, (milliseconds, times) in stages.items():
        times = num_views if times else 1
        core_hours = arguments.frames * times * milliseconds / 3.6e6
        total += core_hours if "U-Net" not in stage else 0
        print(
            f"{stage:34}{milliseconds:13.2f}{1000 / milliseconds:14.0f}{core_hours:12.0f}"
            f"{core_hours / arguments.cores:8.1f}"
        )
    print(f"{'all, with the sector ROI':61}{total:12.0f}{total / arguments.cores:8.1f}")
    roi_bytes, feature_bytes = 224 * 224 + 200, 4 * num_features * num_views
    for what, size in (("records", roi_bytes), ("features", feature_bytes)):
        print(f"{what}: {size} bytes per frame, {size * arguments.frames / 1e12:.2f} TB")
    print(f"hashes of the check in memory: {HASH_BYTES * arguments.frames / 1e9:.2f} GB")


def _stages(folder: Path, engine_name: str) -> tuple[dict[str, tuple[float, bool]], int]:
    """Milliseconds of a core per frame, and whether the stage runs once per view; and how many
    numbers the features of a frame are."""
    write_phantoms(
        folder / "phantoms", num_patients=NUM_PATIENTS, frames_per_patient=FRAMES_PER_PATIENT
    )
    paths = sorted((folder / "phantoms" / "images").glob("*.png"))
    frames = [read_frame(path) for path in paths]
    sector, liver = RoiConfig(method="sector"), RoiConfig(method="liver")
    rows = [_row(path, sector) for path in paths]
    features = record_features()

    def record(row: dict[str, Any]) -> bytes:
        roi = cut_roi(row, folder / "manifest.csv")
        return features.serialize_example(example_of(row, roi))

    costs = {
        "DICOM ingest": (_ingest(folder, frames), False),
        "manifest (decode, hash)": (_cost(lambda p: pixels_sha256(read_frame(p)), paths), False),
        "data-leakage check (decode, two hashes)": (
            _cost(lambda p: (pixels_sha256(f := read_frame(p)), perceptual_hash(f)), paths),
            False,
        ),
        "ROI, sector": (_cost(lambda p: propose_roi(read_frame(p), sector), paths), False),
        "ROI, liver U-Net": (_cost(lambda p: _tried(p, liver), paths), False),
        "record": (_cost(record, rows), False),
    }
    backbone = build_backbone(ModelConfig(weights="random"))
    rois = np.stack([cut_roi(row, folder / "manifest.csv")[..., None] for row in rows[:BATCH]])
    engine = choose_engine(engine_name, backbone, rois, folder)
    batches = [rois] * 3
    cost = _cost(lambda batch: list(engine.forward([batch])), batches) / BATCH
    costs[f"features, a view ({engine.name} {engine.precision})"] = (cost, True)
    return costs, backbone.output_shape[-1]


def _cost(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Milliseconds of processor time per item, in the second round."""
    for _ in range(2):
        start = time.process_time()
        for item in items:
            work(item)
        seconds = time.process_time() - start
    return 1000 * seconds / len(items)


def _tried(path: Path, config: RoiConfig) -> None:
    with contextlib.suppress(ValueError):  # a frame without liver costs the same
        propose_roi(read_frame(path), config)


def _row(path: Path, config: RoiConfig) -> dict[str, Any]:
    frame = read_frame(path)
    roi, digest = propose_roi(frame, config), pixels_sha256(frame)
    box = roi.rectangle
    return {
        "path": path.relative_to(path.parents[2]).as_posix(), "frame_id": path.stem,
        "patient_id": path.stem[:6], "grade": "Mild", "fat_percent": 10.0, "roi_top": box.top,
        "roi_left": box.left, "roi_height": box.height, "roi_width": box.width,
        "pixels_sha256": digest, "roi_sector": sector_cell(roi.sector.fan, digest),
    }  # fmt: skip


def _ingest(folder: Path, frames: list[np.ndarray]) -> float:
    key_path = create_key(folder / "study.key")
    (folder / "export").mkdir()
    for number in range(NUM_PATIENTS):
        clip = np.stack(frames[number * FRAMES_PER_PATIENT :][:FRAMES_PER_PATIENT])
        _write_clip(folder / "export" / f"{number}.dcm", clip, number)
    start = time.process_time(), os.times()
    summary = ingest_dicom(folder / "export", folder / "cohort", key_path=key_path)
    children = sum(os.times()[2:4]) - sum(start[1][2:4])
    return 1000 * (time.process_time() - start[0] + children) / summary.num_frames


def _write_clip(path: Path, clip: np.ndarray, number: int) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": uid.generate_uid(), "SeriesInstanceUID": uid.generate_uid(),
        "Modality": "US", "PatientName": f"Made^{number}", "PatientID": f"MADE{number}",
        "StudyDate": "20200310", "ImageType": ["ORIGINAL", "PRIMARY"],
        "Rows": clip.shape[1], "Columns": clip.shape[2], "NumberOfFrames": len(clip),
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 8,
        "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = clip.tobytes()
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, dataset)


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    main()
