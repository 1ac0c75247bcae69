"""Simulated B-mode frames of liver and right kidney, with the truth behind every frame.

For tests, the offline demo and for checking that a physics feature finds what was put in; never
evidence about patients. Every frame has SIMULATED burned in, every row `simulated` = True.

The chain is that of a scanner: complex Gaussian scatterers on a (depth x angle) grid, weighted by
the tissue's echogenicity; point-spread function, separable, lateral width growing away from the
focus; attenuation integrated along the beam; electronic noise; time gain compensation (TGC);
envelope; log compression; scan conversion to a convex sector. Scatterers are at baseband: a
scatterer's random phase stands for its place within a wavelength, so no carrier is sampled.

Fat (0 to 100 percent of hepatocytes) acts in three ways, each with scatter between patients: echo
of liver over renal cortex, attenuation, and blur of vessel walls and diaphragm. The trend of each
is qualitative, after the signs radiologists grade by; the numbers are this file's own. Gain is set
the way a sonographer does, until the picture looks well lit, so mean brightness says little.
"""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy import fft
from tqdm import tqdm

NUM_DEPTHS = 384
NUM_LINES = 192
# Scanners compound: independent looks at the same tissue, averaged as power, soften the speckle.
NUM_LOOKS = 2
# The grid is this much wider than the sector: the lateral filter is circular, and what it wraps
# from one edge to the other must stay outside the picture.
LINE_MARGIN = 1.08
MIN_SIZE_PX = (160, 200)

#: Share of patients per grade: like a referral clinic, but no grade so rare that a stratified
#: 80/10/10 split of 60 patients would lack it; and the whole percents each grade spans.
GRADE_MIX = (0.30, 0.34, 0.19, 0.17)
FAT_RANGES = ((0, 4), (5, 33), (34, 66), (67, 95))

LIVER, VESSEL, CORTEX, OTHER = 1, 2, 3, 0
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


def simulate_patient(
    fat_percent: float,
    *,
    num_frames: int,
    generator: np.random.Generator,
    size_px: tuple[int, int] = (434, 636),
    gain_offset_db: float = 0.0,
) -> tuple[np.ndarray, PhantomTruth]:
    """Simulate the frames of one patient.

    Frames share anatomy and, slightly moved and mixed with others, scatterers; electronic noise
    is new in each. The same generator state gives the same pixels.

    Args:
        fat_percent: share of hepatocytes with fat, 0 to 100 percent.
        num_frames: 1 or more.
        generator: source of all randomness; it is advanced.
        size_px: `(height, width)` of a frame.
        gain_offset_db: added to the gain; everything else stays as it is.

    Returns:
        Frames `(num_frames, height, width)` uint8, 0 to 255, black outside the sector but for
        burned-in marks, and the truth.

    Raises:
        ValueError: if fat_percent, num_frames or size_px is out of range.
    """
    if not 0 <= fat_percent <= 100:  # also catches NaN
        raise ValueError(
            f"Expected fat_percent from 0 to 100. Received: fat_percent={fat_percent}. "
            "Give percent of hepatocytes, not a fraction."
        )
    if num_frames < 1:
        raise ValueError(f"Expected num_frames of at least 1. Received: num_frames={num_frames}.")
    if size_px[0] < MIN_SIZE_PX[0] or size_px[1] < MIN_SIZE_PX[1]:
        raise ValueError(
            f"Expected size_px (height, width) of at least {MIN_SIZE_PX}, so that every tissue "
            f"has pixels. Received: size_px={tuple(size_px)}."
        )
    scanner = _draw_scanner(generator, size_px)
    tissue = _draw_tissue(generator, fat_percent, scanner)
    scene = _draw_scene(generator, tissue, scanner)
    unmirrored = replace(scene, mirror=np.zeros_like(scene.mirror))
    looks = [
        (_echoes(generator, scene, scanner), _echoes(generator, unmirrored, scanner))
        for _ in range(NUM_LOOKS)
    ]
    columns, rows, inside = _scan_conversion(scanner, size_px)
    gain_db = _gain(looks[0][0], scanner) + gain_offset_db
    marks = np.where(inside, 0, _marks(generator, scanner, size_px)).astype(np.uint8)
    frames = np.empty((num_frames, *size_px), np.uint8)
    for frame in frames:
        echo_db = _acquire(generator, looks, scanner)
        grey = (echo_db + np.float32(gain_db)) * np.float32(255 / scanner.dynamic_range_db)
        picture = cv2.remap(np.clip(grey, 0, 255), columns, rows, cv2.INTER_LINEAR)
        np.maximum(np.where(inside, np.rint(picture), 0).astype(np.uint8), marks, out=frame)
    labels = cv2.remap(scene.labels, columns, rows, cv2.INTER_NEAREST)
    boxes = _boxes(np.where(inside, labels, OTHER), scanner)
    return frames, _truth(tissue, scanner, gain_db, boxes)


def write_phantoms(
    output_dir: str | Path,
    *,
    num_patients: int = 60,
    frames_per_patient: int = 2,
    seed: int = 0,
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
    partial = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.partial")
    (partial / "images").mkdir(parents=True)
    try:
        _write_study(partial, num_patients, frames_per_patient, seed)
        _move_into_place(partial, output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir / "labels.csv"


def _write_study(folder: Path, num_patients: int, frames_per_patient: int, seed: int) -> None:
    study_seed, *patient_seeds = np.random.SeedSequence(seed).spawn(num_patients + 1)
    fat_percents = _draw_fat_percents(np.random.default_rng(study_seed), num_patients)
    label_rows, truth_rows = [], []
    patients = zip(fat_percents, patient_seeds, strict=True)
    progress = tqdm(patients, "phantoms", num_patients, file=sys.stderr, unit="patient")
    for number, (fat_percent, patient_seed) in enumerate(progress, start=1):
        patient_id = f"SIM{number:0{max(3, len(str(num_patients)))}d}"
        frames, truth = simulate_patient(
            fat_percent,
            num_frames=frames_per_patient,
            generator=np.random.default_rng(patient_seed),
        )
        for index, frame in enumerate(frames):
            path = f"images/{patient_id}_F{index:02d}.png"
            _, png = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            (folder / path).write_bytes(png.tobytes())
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
    pd.DataFrame(truth_rows).to_csv(folder / "truth.csv", index=False)
    pd.DataFrame(label_rows).to_csv(folder / "labels.csv", index=False)


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


@dataclass(frozen=True)
class _Scanner:
    """Probe, settings and sector of one patient; grid vectors are float32."""

    near_radius_mm: float
    half_angle: float  # rad
    depth_mm: float
    px_per_mm: float
    apex_x_px: float
    apex_y_px: float
    frequency_mhz: float
    focus_mm: float
    beam_width_mm: float  # standard deviation of the lateral beam profile at the focus
    pulse_samples: float  # standard deviation of the axial pulse
    tgc_db_per_cm: float
    noise_db: float
    dynamic_range_db: float
    mean_grey: float

    @property
    def depths_mm(self) -> np.ndarray:
        """Depth below the probe of each grid row, `(NUM_DEPTHS, 1)` float32."""
        return np.linspace(0, self.depth_mm, NUM_DEPTHS, dtype=np.float32)[:, None]

    @property
    def angles(self) -> np.ndarray:
        """Beam angle of each grid column, `(1, NUM_LINES)` float32, rad, 0 straight down."""
        edge = self.half_angle * LINE_MARGIN
        return np.linspace(-edge, edge, NUM_LINES, dtype=np.float32)[None, :]


@dataclass(frozen=True)
class _Tissue:
    fat: float  # 0 to 1
    hepatorenal_db: float
    attenuation_db_per_cm: float


@dataclass(frozen=True)
class _Scene:
    """Maps on the (depth x angle) grid, `(NUM_DEPTHS, NUM_LINES)`."""

    amplitude: np.ndarray  # float32, scatterer amplitude, renal cortex = 1
    mirror: np.ndarray  # float32, coherent echo of walls and diaphragm
    transfer: np.ndarray  # float32, amplitude left after attenuation, before TGC
    labels: np.ndarray  # uint8, LIVER, VESSEL, CORTEX or OTHER


def _draw_scanner(generator: np.random.Generator, size_px: tuple[int, int]) -> _Scanner:
    draw = generator.uniform
    near, half_angle, depth = draw(8, 55), math.radians(draw(37, 52)), draw(145, 178)
    height_mm = near + depth - near * math.cos(half_angle)
    width_mm = 2 * (near + depth) * math.sin(half_angle)
    height, width = size_px
    scale = min(0.86 * height / height_mm, 0.92 * width / width_mm) * draw(0.93, 1.0)
    frequency = draw(2.6, 3.4)
    return _Scanner(
        near_radius_mm=near,
        half_angle=half_angle,
        depth_mm=depth,
        px_per_mm=scale,
        apex_x_px=width * draw(0.49, 0.51),
        apex_y_px=height * draw(0.02, 0.04) - near * math.cos(half_angle) * scale,
        frequency_mhz=frequency,
        focus_mm=draw(60, 100),
        beam_width_mm=draw(1.0, 1.4),
        pulse_samples=draw(1.2, 1.6),
        tgc_db_per_cm=2 * 0.39 * frequency + generator.normal(0, 0.08),
        noise_db=draw(-74, -68),
        dynamic_range_db=draw(64, 82),
        mean_grey=draw(54, 96),
    )


def _draw_tissue(generator: np.random.Generator, fat_percent: float, scanner: _Scanner) -> _Tissue:
    fat = fat_percent / 100
    per_mhz = 0.53 + 0.34 * fat**0.8 + generator.normal(0, 0.02)  # dB / cm / MHz, one way
    return _Tissue(
        fat=fat,
        hepatorenal_db=0.8 + 11 * fat**0.7 + generator.normal(0, 1),
        attenuation_db_per_cm=2 * per_mhz * scanner.frequency_mhz,
    )


def _smooth_noise(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Noise of standard deviation about 1 with `rows` x `columns` bumps over the grid."""
    coarse = generator.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (NUM_LINES, NUM_DEPTHS), interpolation=cv2.INTER_CUBIC)


def _ellipse_distance(
    x: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    tilt: float,
) -> np.ndarray:
    """About the distance in mm to an ellipse, negative inside; exact on the border."""
    cosine, sine = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    dx, dz = x - np.float32(centre[0]), z - np.float32(centre[1])
    along = (dx * cosine + dz * sine) / np.float32(axes[0])
    across = (dz * cosine - dx * sine) / np.float32(axes[1])
    return (cv2.magnitude(along, across) - 1) * np.float32(min(axes))


def _covered(distance: np.ndarray, blur_mm: float) -> np.ndarray:
    """1 inside (negative distance), 0 outside, a ramp of `blur_mm` between."""
    return np.clip(0.5 - distance / np.float32(blur_mm), 0, 1)


def _line(distance: np.ndarray, width_mm: float) -> np.ndarray:
    return np.exp(-np.square(distance / np.float32(width_mm)))


def _draw_scene(generator: np.random.Generator, tissue: _Tissue, scanner: _Scanner) -> _Scene:
    ranges = scanner.depths_mm + np.float32(scanner.near_radius_mm)
    x = ranges * np.sin(scanner.angles)
    z = ranges * np.cos(scanner.angles) - np.float32(scanner.near_radius_mm)
    echo = np.float32(tissue.hepatorenal_db) + np.float32(0.3) * _smooth_noise(generator, 14, 9)
    mirror = np.zeros_like(echo)
    labels = np.full(echo.shape, LIVER, np.uint8)
    maps = (echo, mirror, labels)
    loss = np.full_like(echo, tissue.attenuation_db_per_cm)
    _add_vessels(generator, tissue, x, z, maps)
    _add_diaphragm(generator, tissue, x, z, maps)
    beyond = labels == OTHER
    kidney = _add_kidney(generator, x, z, maps)
    _add_near_field(generator, scanner, maps)
    loss[kidney | beyond] = 2 * 0.65 * scanner.frequency_mhz
    step_cm = scanner.depth_mm / 10 / (NUM_DEPTHS - 1)
    lost_db = np.cumsum(loss, axis=0) * np.float32(step_cm)
    # No truth box behind the kidney, whose loss differs, nor in the dim edges.
    labels[np.logical_or.accumulate(kidney) & (labels == LIVER)] = OTHER
    # Uneven contact of the probe: fine in the middle, poor at the edges.
    edge = np.clip(np.abs(scanner.angles) / np.float32(scanner.half_angle) - 0.78, 0, None)
    contact = 0.15 * _smooth_noise(generator, 1, 9) - edge * generator.uniform(5, 60, 2)[
        (scanner.angles > 0).astype(int)
    ].astype(np.float32)
    labels[:, edge[0] > 0] = OTHER
    return _Scene(
        amplitude=_amplitude(echo),
        mirror=mirror,
        transfer=_amplitude(contact - lost_db),
        labels=labels,
    )


def _amplitude(level_db: np.ndarray | float) -> np.ndarray:
    return np.exp(np.asarray(level_db, np.float32) * np.float32(math.log(10) / 20))


_Maps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _facing(distance: np.ndarray) -> np.ndarray:
    """How squarely a surface meets the beam, 0 to 1: a mirror seen from aside returns nothing."""
    along_beam = np.abs(np.diff(distance, axis=0, append=distance[-1:]))
    return (along_beam / max(float(along_beam.max()), 1e-6)) ** 3


def _add_vessels(
    generator: np.random.Generator, tissue: _Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> None:
    echo, mirror, labels = maps
    wall = 0.5 * 10 ** (tissue.hepatorenal_db / 20) * (1 - 0.9 * tissue.fat)
    # A strip beside the kidney stays free of vessels, so that a deep truth box always fits.
    strip = (np.abs(x - np.float32(generator.uniform(22, 28))) < 15) & (z < 110)
    for has_wall in generator.random(generator.integers(8, 15)) < 0.5:
        side = (-45, 8) if generator.random() < 0.6 else (42, 75)
        centre = generator.uniform(*side), generator.uniform(30, 115)
        axes = generator.uniform(3, 20), generator.uniform(1.8, 3.8)
        distance = _ellipse_distance(x, z, centre, axes, generator.uniform(-1.2, 1.2))
        if (strip & (distance < 4)).any():
            continue
        echo -= (22 - 9 * tissue.fat) * _covered(distance, 1 + 5 * tissue.fat)
        if has_wall:
            mirror += wall * _facing(distance) * _line(distance, 0.8 + 1.5 * tissue.fat)
        labels[distance < 4] = VESSEL


def _add_diaphragm(
    generator: np.random.Generator, tissue: _Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> None:
    echo, mirror, labels = maps
    dome_x, dome_z = generator.uniform(-15, 10), generator.uniform(130, 150)
    aside = x - np.float32(dome_x)
    radius = np.where(aside > 0, np.float32(generator.uniform(75, 110)), np.float32(300))
    distance = z - np.float32(dome_z) + np.square(aside) / (2 * radius)
    level = generator.uniform(-6, 0) + 2 * _smooth_noise(generator, 14, 8)
    level += generator.uniform(2, 7) * np.clip(-aside / 30, 0, 1)  # fat and muscle behind kidney
    distance += 0.7 * _smooth_noise(generator, 1, 18)
    covered = _covered(-distance, 1.5 + 6 * tissue.fat)
    echo += (level - echo) * covered
    strength = generator.uniform(4, 7) * (1 - 0.85 * tissue.fat)
    streaks = np.clip(1 + 0.5 * _smooth_noise(generator, 2, 20), 0, None)
    mirror += strength * _facing(distance) * streaks * _line(distance, 1.3 + 3 * tissue.fat)
    labels[distance > -4] = OTHER


def _add_kidney(
    generator: np.random.Generator, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> np.ndarray:
    """Draw the kidney; returns where it lies, bool."""
    echo, mirror, labels = maps
    centre = generator.uniform(-38, -22), generator.uniform(86, 102)
    axes, tilt = (
        (generator.uniform(48, 56), generator.uniform(24, 28)),
        generator.uniform(0.1, 0.45),
    )
    border = _ellipse_distance(x, z, centre, axes, tilt)
    medulla = border + 0.46 * min(axes)
    sinus_axes = axes[0] * generator.uniform(0.5, 0.6), axes[1] * generator.uniform(0.32, 0.42)
    sinus = _ellipse_distance(x, z, centre, sinus_axes, tilt)
    blotches = _smooth_noise(generator, 36, 18)
    layers = (
        (border - 2.5, 3 + 2 * blotches),  # perirenal fat
        (border, np.float32(0)),
        (medulla, -1.5 + 1.5 * blotches),
        (sinus + 2 * blotches, 8 + 3 * blotches),
    )
    for distance, level in layers:
        echo += (level - echo) * _covered(distance, 1.2)
    mirror *= 1 - _covered(border, 1.2)
    streaks = np.clip(1 + 0.6 * _smooth_noise(generator, 2, 14), 0, None)
    mirror += generator.uniform(0.8, 2.5) * _facing(border) * streaks * _line(border, 0.8)
    labels[border < 4.5] = OTHER
    # Only the near side counts: the far one lies behind the whole kidney.
    near_side = z < centre[1] + math.tan(tilt) * (x - centre[0])
    labels[(border < -2) & (medulla > 0.8) & near_side] = CORTEX
    return border < 0


def _add_near_field(generator: np.random.Generator, scanner: _Scanner, maps: _Maps) -> None:
    echo, mirror, labels = maps
    thickness = generator.uniform(16, 30) + 2 * _smooth_noise(generator, 1, 5)
    distance = scanner.depths_mm - thickness.astype(np.float32)
    level = generator.uniform(0, 4) + 3.5 * _smooth_noise(generator, 90, 5)
    echo += (level - echo) * _covered(distance, 3)
    mirror *= distance > 0
    mirror += generator.uniform(0.3, 1.5) * _line(distance, 0.6)
    mirror += 0.8 * _line(scanner.depths_mm, 1.0)
    labels[distance < 4] = OTHER


def _axial_filter(field: np.ndarray, scanner: _Scanner) -> np.ndarray:
    """Convolve with the pulse along depth; white noise keeps its power."""
    kernel = cv2.getGaussianKernel(11, scanner.pulse_samples, cv2.CV_32F)
    pairs = field.view(np.float32).reshape(NUM_DEPTHS, NUM_LINES, 2)
    one = np.ones((1, 1), np.float32)
    filtered = cv2.sepFilter2D(pairs, -1, one, kernel / np.linalg.norm(kernel))
    return filtered.reshape(NUM_DEPTHS, -1).view(np.complex64)


def _white_noise(generator: np.random.Generator) -> np.ndarray:
    """Circular complex Gaussian noise of power 1 on the grid, complex64."""
    pairs = generator.standard_normal((NUM_DEPTHS, 2 * NUM_LINES), np.float32)
    return (pairs * np.float32(math.sqrt(0.5))).view(np.complex64)


def _echoes(generator: np.random.Generator, scene: _Scene, scanner: _Scanner) -> np.ndarray:
    """Scatterers and mirrors through the point-spread function, then attenuated; complex64.

    The lateral filter is applied per row in the frequency domain, because the beam is narrowest
    at the focus; speckle power is the same at every depth.
    """
    depths = scanner.depths_mm
    spread = np.sqrt(1 + np.square((depths - scanner.focus_mm) / 65))
    line_mm = (depths + scanner.near_radius_mm) * (2 * scanner.half_angle * LINE_MARGIN / NUM_LINES)
    width_lines = np.clip(scanner.beam_width_mm * spread / line_mm, 0.9, 16)
    frequencies = fft.fftfreq(NUM_LINES).astype(np.float32)
    response = np.exp(-2 * np.square(np.float32(math.pi) * width_lines * frequencies))
    response /= np.sqrt(np.mean(np.square(response), axis=1, keepdims=True))
    field = _white_noise(generator) * scene.amplitude + scene.mirror
    blurred = fft.ifft(fft.fft(field, axis=1) * response.astype(np.float32), axis=1)
    return scene.transfer * _axial_filter(np.ascontiguousarray(blurred), scanner)


def _tgc(scanner: _Scanner) -> np.ndarray:
    return _amplitude(scanner.depths_mm * np.float32(scanner.tgc_db_per_cm / 10))


def _decibel(amplitude: np.ndarray) -> np.ndarray:
    return np.float32(20) * np.log10(np.maximum(amplitude, np.float32(1e-6)))


def _gain(still: np.ndarray, scanner: _Scanner) -> float:
    """Gain in dB that brings the sector to the mean grey this sonographer likes."""
    noise = _amplitude(scanner.noise_db)
    level_db = _decibel(np.maximum(np.abs(still), noise) * _tgc(scanner))
    area = scanner.depths_mm[:, 0] + scanner.near_radius_mm
    wanted_db = scanner.mean_grey * scanner.dynamic_range_db / 255
    return wanted_db - float(np.average(level_db.mean(axis=1), weights=area))


def _acquire(
    generator: np.random.Generator, looks: list[tuple[np.ndarray, np.ndarray]], scanner: _Scanner
) -> np.ndarray:
    """One frame on the grid, dB before gain, float32: tissue has moved, noise is new.

    Args:
        generator: source of motion and noise.
        looks: echoes of the scatterers in the plane, and of others that enter it by motion.
        scanner: settings.
    """
    lines, samples = generator.normal(0, 0.8, 2)
    motion = np.array([[1, 0, lines], [0, 1, samples]])
    turn = math.radians(abs(generator.normal(0, 14)))
    noise = _axial_filter(_white_noise(generator), scanner) * _amplitude(scanner.noise_db)
    power = np.zeros(noise.shape, np.float32)
    for still, other in looks:
        tissue = np.float32(math.cos(turn)) * still + np.float32(math.sin(turn)) * other
        pairs = tissue.view(np.float32).reshape(NUM_DEPTHS, NUM_LINES, 2)
        moved = cv2.warpAffine(
            pairs, motion, (NUM_LINES, NUM_DEPTHS), None, cv2.INTER_CUBIC, cv2.BORDER_REFLECT
        )
        received = moved.reshape(NUM_DEPTHS, -1).view(np.complex64) + noise
        power += np.square(received.real) + np.square(received.imag)
        # Moved by half the grid, the noise is as good as new and cheaper.
        noise = np.roll(noise, NUM_LINES // 2, axis=1)
    return _decibel(np.sqrt(power / NUM_LOOKS) * _tgc(scanner))


def _scan_conversion(
    scanner: _Scanner, size_px: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid column and row of each pixel (float32, for cv2.remap) and the sector (bool)."""
    height, width = size_px
    scale = np.float32(1 / scanner.px_per_mm)
    x = (np.arange(width, dtype=np.float32) - np.float32(scanner.apex_x_px)) * scale
    y = (np.arange(height, dtype=np.float32) - np.float32(scanner.apex_y_px)) * scale
    angles = np.arctan2(x[None, :], y[:, None])
    depths = np.hypot(x[None, :], y[:, None]) - np.float32(scanner.near_radius_mm)
    inside = (np.abs(angles) <= scanner.half_angle) & (depths >= 0) & (depths <= scanner.depth_mm)
    edge = scanner.half_angle * LINE_MARGIN
    columns = (angles + np.float32(edge)) * np.float32((NUM_LINES - 1) / (2 * edge))
    rows = depths * np.float32((NUM_DEPTHS - 1) / scanner.depth_mm)
    return columns, rows, inside


def _marks(
    generator: np.random.Generator, scanner: _Scanner, size_px: tuple[int, int]
) -> np.ndarray:
    """What a scanner burns in: SIMULATED, a grey bar, depth ticks each cm, a frame number."""
    height, width = size_px
    canvas = np.zeros(size_px, np.uint8)
    unit = height / 434

    def write(text: str, x: float, y: float, scale: float) -> None:
        place = round(x), round(y)
        size = max(scale * unit, 0.3)
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, 200, 1, cv2.LINE_AA)

    write("SIMULATED", 8 * unit, 20 * unit, 0.5)
    write(f"{generator.integers(50, 95)} FR", width - 62 * unit, height - 8 * unit, 0.4)
    bar_height, bar_width = round(100 * unit), round(18 * unit)
    top, left = round(26 * unit), width - round(26 * unit)
    bar = np.linspace(210, 10, bar_height).astype(np.uint8)
    canvas[top : top + bar_height, left : left + bar_width] = bar[:, None]
    sine, cosine = math.sin(scanner.half_angle), math.cos(scanner.half_angle)
    for centimetre in range(1, int(scanner.depth_mm / 10) + 1):
        radius = (scanner.near_radius_mm + 10 * centimetre) * scanner.px_per_mm
        x, y = scanner.apex_x_px - radius * sine, scanner.apex_y_px + radius * cosine
        long = 8 if centimetre % 5 == 0 else 3
        start = round(x - 4 * cosine), round(y - 4 * sine)
        end = round(x - (4 + long) * cosine), round(y - (4 + long) * sine)
        cv2.line(canvas, start, end, 180, 1, cv2.LINE_AA)
        if centimetre % 5 == 0:
            write(str(centimetre), x - 34 * unit * cosine, y - 14 * unit * sine, 0.35)
    return canvas


def _boxes(labels: np.ndarray, scanner: _Scanner) -> tuple[Box, Box, Box]:
    """Liver, kidney and pair box: the largest of a few sizes that lies in one tissue."""
    thin = labels[
        ::2, ::2
    ]  # tissues are much larger than two pixels, and this is four times faster
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


def _truth(
    tissue: _Tissue, scanner: _Scanner, gain_db: float, boxes: tuple[Box, Box, Box]
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
