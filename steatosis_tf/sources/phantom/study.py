"""Simulated B-mode frames of liver and right kidney, with the truth behind every frame.

For tests, the offline demo and for checking that a measured feature finds what was put in; never
evidence about patients. Every frame has SIMULATED burned in, every row `simulated` = True.

The chain is that of a scanner: complex Gaussian scatterers on a (depth x angle) grid, weighted by
the tissue's echogenicity; point-spread function, separable, lateral width growing away from the
focus; attenuation integrated along the beam; electronic noise; time gain compensation (TGC);
envelope; log compression; scan conversion to a convex sector. Scatterers are at baseband: a
scatterer's random phase stands for its place within a wavelength, so no carrier is sampled.

Fat (0 to 100 percent of hepatocytes) acts in three ways, each with scatter between patients: echo
of liver over renal cortex, attenuation, and blur of vessel walls and diaphragm. The trend of each
is qualitative, after the signs radiologists grade by; the numbers are this file's own. Gain is set
the way a sonographer does, until the picture looks well lit, so mean brightness says little."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.files import BEING_WRITTEN, clear_abandoned, write_bytes, write_csv
from steatosis_tf.parallel import map_in_threads
from steatosis_tf.sources.phantom.scene import (
    CORTEX,
    LIVER,
    OTHER,
    Scanner,
    Scene,
    Tissue,
    acquire,
    draw_marks,
    draw_scanner,
    draw_scene,
    draw_tissue,
    echoes_of,
    scan_conversion,
    usual_gain_db,
)

Box = tuple[int, int, int, int]

# (height, width) of truth boxes in mm, the most useful first: a slope gains most from depth.
KIDNEY_BOXES_MM = ((9, 24), (8, 22), (7, 20), (6, 18), (5, 16), (5, 12), (4, 9), (3, 6))
PAIR_BOXES_MM = ((12, 26), (10, 22), (8, 16), (7, 12), (5, 8))
LIVER_BOXES_MM = sorted(
    ((height, width) for height in range(85, 15, -5) for width in (45, 35, 25, 15)),
    key=lambda size: -(size[0] ** 3) * size[1],
)


@dataclass(frozen=True)
class PhantomTruth:
    """What was simulated; holds for every frame of the patient.

    Boxes are `(top, left, height, width)` in px of the frame and stay inside one tissue while the
    patient breathes: `liver_box` a deep one for the attenuation slope, `kidney_box` in the renal
    cortex, `pair_box` liver at the range of `kidney_box` for the hepatorenal index.
    """

    fat_percent: float
    hepatorenal_ratio: float  # amplitude of liver echo over renal cortex echo, no unit
    attenuation_db_per_cm: float  # liver, both ways, dB per cm of depth
    tgc_db_per_cm: float  # what the scanner gives back, dB per cm of depth
    attenuation_slope_db_per_cm: float  # the difference: loss per cm that the picture shows
    dynamic_range_db: float  # dB between grey 0 and grey 255; grey is linear in dB
    gain_db: float
    depth_mm: float
    px_per_cm: float
    apex_x_px: float  # centre of both arcs of the sector, may lie above the frame
    apex_y_px: float
    near_radius_px: float
    far_radius_px: float
    half_angle_deg: float
    liver_box: Box
    kidney_box: Box
    pair_box: Box

    def as_row(self) -> dict[str, float | int]:
        """Flat columns of `truth.csv`; a box becomes `liver_top`, `liver_left`, and so on."""
        row: dict[str, float | int] = {}
        for name, value in vars(self).items():
            if name.endswith("_box"):
                sides = ("top", "left", "height", "width")
                stem = name.removesuffix("box")
                row |= {stem + side: number for side, number in zip(sides, value, strict=True)}
            else:
                row[name] = round(value, 6)
        return row


def truth_of(
    tissue: Tissue, scanner: Scanner, gain_db: float, boxes: tuple[Box, Box, Box]
) -> PhantomTruth:
    far_mm = scanner.near_radius_mm + scanner.depth_mm
    return PhantomTruth(
        fat_percent=round(tissue.fat * 100, 6),
        hepatorenal_ratio=10 ** (tissue.hepatorenal_db / 20),
        attenuation_db_per_cm=tissue.attenuation_db_per_cm,
        tgc_db_per_cm=scanner.tgc_db_per_cm,
        attenuation_slope_db_per_cm=tissue.attenuation_db_per_cm - scanner.tgc_db_per_cm,
        dynamic_range_db=scanner.dynamic_range_db,
        gain_db=gain_db,
        depth_mm=scanner.depth_mm,
        px_per_cm=10 * scanner.px_per_mm,
        apex_x_px=scanner.apex_x_px,
        apex_y_px=scanner.apex_y_px,
        near_radius_px=scanner.near_radius_mm * scanner.px_per_mm,
        far_radius_px=far_mm * scanner.px_per_mm,
        half_angle_deg=math.degrees(scanner.half_angle),
        liver_box=boxes[0],
        kidney_box=boxes[1],
        pair_box=boxes[2],
    )


def find_boxes(labels: np.ndarray, scanner: Scanner) -> tuple[Box, Box, Box]:
    """Liver, kidney and pair box: the largest of a few sizes that lies in one tissue."""
    # Tissues are much larger than two pixels, and this is four times faster.
    thin = labels[::2, ::2]
    rows, columns = np.indices(thin.shape, np.float32) * 2
    x = (columns - scanner.apex_x_px) / scanner.px_per_mm
    ranges = np.hypot(x, (rows - scanner.apex_y_px) / scanner.px_per_mm)
    kidney = _find_box(thin == CORTEX, ranges, KIDNEY_BOXES_MM, scanner.px_per_mm / 2)
    middle = kidney[0] + kidney[2] // 2, kidney[1] + kidney[3] // 2
    aside = 8 * np.abs(ranges - ranges[middle]) + np.abs(x)
    pair = _find_box(thin == LIVER, aside, PAIR_BOXES_MM, scanner.px_per_mm / 2)
    liver = _find_box(thin == LIVER, np.abs(x), LIVER_BOXES_MM, scanner.px_per_mm / 2)
    top, left, height, width = np.transpose([liver, kidney, pair]) * 2
    found = np.stack([top, left, height, width], axis=1).tolist()
    return tuple(found[0]), tuple(found[1]), tuple(found[2])


def _find_box(
    mask: np.ndarray, cost: np.ndarray, sizes_mm: Sequence[tuple[int, int]], px_per_mm: float
) -> Box:
    """The first size that fits into the mask, there where the cost at its middle is least."""
    sums = cv2.integral(mask.astype(np.uint8))
    for size_mm in sizes_mm:
        height, width = (max(round(side * px_per_mm), 2) for side in size_mm)
        inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]
        full = inside + sums[:-height, :-width] == height * width
        if full.any():
            here = cost[height // 2 :, width // 2 :][: full.shape[0], : full.shape[1]]
            place = np.argmin(np.where(full, here, np.inf))
            top, left = np.unravel_index(place, full.shape)
            return int(top), int(left), height, width
    raise RuntimeError("simulated anatomy left no room for a truth box; please report the seed")


# Scanners compound: independent looks at the same tissue, averaged as power, soften the speckle.
NUM_LOOKS = 2

#: Proportion of patients per grade: like a referral clinic, but no grade so rare that a stratified
#: 80/10/10 split of 60 patients would lack it; and the whole percents each grade spans.
GRADE_MIX = (0.30, 0.34, 0.19, 0.17)
FAT_RANGES = ((0, 4), (5, 33), (34, 66), (67, 95))


def simulate_patient(
    fat_percent: float,
    *,
    num_frames: int,
    generator: np.random.Generator,
    size_px: tuple[int, int] = (434, 636),
    gain_offset_db: float = 0.0,
    tgc_offset_db_per_cm: float = 0.0,
    dynamic_range_factor: float = 1.0,
) -> tuple[np.ndarray, PhantomTruth]:
    """Simulate the frames of one patient.

    Frames share anatomy and, slightly moved and mixed with others, scatterers; electronic noise
    is new in each. The same generator state gives the same pixels.

    Args:
        fat_percent: proportion of hepatocytes with fat, 0 to 100 percent.
        num_frames: 1 or more.
        generator: source of all randomness; it is advanced.
        size_px: `(height, width)` of a frame, at least 160 x 200, so that every tissue has pixels.
        gain_offset_db: added to the gain; everything else stays as it is.
        tgc_offset_db_per_cm: added to the time gain compensation: another slope over depth.
        dynamic_range_factor: the display spans so many times the dB.

    Returns:
        Frames `(num_frames, height, width)` uint8, 0 to 255, black outside the sector but for
        burned-in marks, and the truth.

    """
    scanner = draw_scanner(generator, size_px)
    scanner = replace(
        scanner,
        tgc_db_per_cm=scanner.tgc_db_per_cm + tgc_offset_db_per_cm,
        dynamic_range_db=scanner.dynamic_range_db * dynamic_range_factor,
    )
    tissue = draw_tissue(generator, fat_percent, scanner)
    scene = draw_scene(generator, tissue, scanner)
    looks = _looks(generator, scene, scanner)
    gain_db = usual_gain_db(looks[0][0], scanner) + gain_offset_db
    frames = np.empty((num_frames, *size_px), np.uint8)
    _fill_frames(frames, generator, looks, scanner, gain_db)
    columns, rows, inside = scan_conversion(scanner, size_px)
    labels = cv2.remap(scene.labels, columns, rows, cv2.INTER_NEAREST)
    boxes = find_boxes(np.where(inside, labels, OTHER), scanner)
    return frames, truth_of(tissue, scanner, gain_db, boxes)


def write_phantoms(
    output_dir: str | Path, *, num_patients: int = 60, frames_per_patient: int = 2, seed: int = 0
) -> Path:
    """Write a simulated study: `images/`, `labels.csv`, `truth.csv`.

    The folder appears whole or not at all. A phantom folder of an earlier call is replaced; a
    folder that holds anything else is left alone. A bar on stderr shows progress.

    Args:
        output_dir: folder to create.
        num_patients: 4 or more; from 20 on every grade has at least 15 percent of them.
        frames_per_patient: 1 to 100.
        seed: the same seed gives the same tables and pixels.

    Returns:
        Path of `labels.csv`: `path, patient_id, fat_percent, simulated, frame_index, scanner,
        depth_mm`. `truth.csv` has `path, patient_id` and the columns of `PhantomTruth`.

    Raises:
        ValueError: if a count is out of range.
        FileExistsError: if output_dir exists and is not a phantom folder.
    """
    if num_patients < 4 or not 1 <= frames_per_patient <= 100:
        raise ValueError(
            "Expected at least 4 patients (one per grade) and 1 to 100 frames each. "
            f"Received: num_patients={num_patients} frames_per_patient={frames_per_patient}."
        )
    output_dir = Path(output_dir).resolve()
    _refuse_foreign_folder(output_dir)
    prefix = f"{BEING_WRITTEN}{output_dir.name[:40]}-"
    clear_abandoned(output_dir.parent, prefix)
    partial = output_dir.with_name(f"{prefix}{os.getpid()}")
    (partial / "images").mkdir(parents=True)
    try:
        _write_study(partial, num_patients, frames_per_patient, seed)
        _move_into_place(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir / "labels.csv"


def _looks(
    generator: np.random.Generator, scene: Scene, scanner: Scanner
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Echoes of the plane, and of other tissue that motion brings into it, for every look."""
    unmirrored = replace(scene, mirror=np.zeros_like(scene.mirror))
    return [
        (echoes_of(generator, scene, scanner), echoes_of(generator, unmirrored, scanner))
        for _ in range(NUM_LOOKS)
    ]


def _fill_frames(
    frames: np.ndarray,
    generator: np.random.Generator,
    looks: list[tuple[np.ndarray, np.ndarray]],
    scanner: Scanner,
    gain_db: float,
) -> None:
    size_px = frames.shape[1], frames.shape[2]
    columns, rows, inside = scan_conversion(scanner, size_px)
    marks = np.where(inside, 0, draw_marks(generator, scanner, size_px)).astype(np.uint8)
    for frame in frames:
        echo_db = acquire(generator, looks, scanner)
        grey = (echo_db + np.float32(gain_db)) * np.float32(255 / scanner.dynamic_range_db)
        picture = cv2.remap(np.clip(grey, 0, 255), columns, rows, cv2.INTER_LINEAR)
        np.maximum(np.where(inside, np.rint(picture), 0).astype(np.uint8), marks, out=frame)


def _write_study(folder: Path, num_patients: int, frames_per_patient: int, seed: int) -> None:
    study_seed, *patient_seeds = np.random.SeedSequence(seed).spawn(num_patients + 1)
    fat_percents = _draw_fat_percents(np.random.default_rng(study_seed), num_patients)
    digits = max(3, len(str(num_patients)))
    ids = [f"SIM{number:0{digits}d}" for number in range(1, num_patients + 1)]
    work = partial(_write_patient, folder, frames_per_patient)
    patients = list(zip(ids, fat_percents, patient_seeds, strict=True))
    written = list(map_in_threads(work, patients, "phantoms", unit="patient"))
    for column, name in enumerate(("labels", "truth")):
        rows = [row for tables in written for row in tables[column]]
        write_csv(pd.DataFrame(rows), folder / f"{name}.csv")


def _write_patient(
    folder: Path, num_frames: int, patient: tuple[str, int, np.random.SeedSequence]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the frames of a patient; their rows of `labels.csv` and of `truth.csv`."""
    patient_id, fat_percent, seed = patient
    frames, truth = simulate_patient(
        fat_percent, num_frames=num_frames, generator=np.random.default_rng(seed)
    )
    label_rows, truth_rows = [], []
    for index, frame in enumerate(frames):
        path = f"images/{patient_id}_F{index:02d}.png"
        _, png = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        write_bytes(png.tobytes(), folder / path)
        label_rows.append(
            {
                "path": path,
                "patient_id": patient_id,
                "fat_percent": fat_percent,
                "simulated": True,
                "frame_index": index,
                "scanner": "phantom-convex",
                "depth_mm": round(truth.depth_mm),
            }
        )
        truth_rows.append({"path": path, "patient_id": patient_id, **truth.as_row()})
    return label_rows, truth_rows


def _draw_fat_percents(generator: np.random.Generator, num_patients: int) -> list[int]:
    """Whole percents, grades by `GRADE_MIX` (largest remainder), in an order that hides them."""
    wanted = np.array(GRADE_MIX) * num_patients
    counts = np.maximum(np.floor(wanted).astype(int), 1)
    while counts.sum() < num_patients:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > num_patients:
        counts[np.argmax(counts)] -= 1
    groups = [
        generator.integers(low, high, size=count, endpoint=True)
        for (low, high), count in zip(FAT_RANGES, counts, strict=True)
    ]
    return [int(percent) for percent in generator.permutation(np.concatenate(groups))]


def _refuse_foreign_folder(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    phantom_names = {"images", "labels.csv", "truth.csv"}
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != phantom_names:
        raise FileExistsError(
            "Expected a new folder, an empty one or one written by this command, which would be "
            f"replaced. Received: output_dir={folder.name!r}, which holds something else. Choose "
            "another name, or move what is there."
        )


def _move_into_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    former = partial.with_suffix(".former")
    folder.rename(former)
    partial.rename(folder)
    shutil.rmtree(former)
