"""The simulated anatomy: liver, vessels, diaphragm, right kidney and near field."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.sources.phantom.scanner import (
    CORTEX,
    LIVER,
    NUM_DEPTHS,
    NUM_LINES,
    OTHER,
    VESSEL,
    Scanner,
    Scene,
    amplitude_of,
)


@dataclass(frozen=True)
class Tissue:
    """What fat does to one liver, its scatter between patients drawn."""

    fat: float  # 0 to 1
    hepatorenal_db: float
    attenuation_db_per_cm: float


def draw_tissue(generator: np.random.Generator, fat_percent: float, scanner: Scanner) -> Tissue:
    """Draw the tissue of a liver with so much fat (0 to 100 percent)."""
    fat = fat_percent / 100
    per_mhz = 0.53 + 0.34 * fat**0.8 + generator.normal(0, 0.02)  # dB / cm / MHz, one way
    return Tissue(
        fat=fat,
        hepatorenal_db=0.8 + 11 * fat**0.7 + generator.normal(0, 1),
        attenuation_db_per_cm=2 * per_mhz * scanner.frequency_mhz,
    )


def draw_scene(generator: np.random.Generator, tissue: Tissue, scanner: Scanner) -> Scene:
    """Draw the anatomy of one patient on the scanner's grid."""
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
    return Scene(
        amplitude=amplitude_of(echo),
        mirror=mirror,
        transfer=amplitude_of(contact - lost_db),
        labels=labels,
    )


_Maps = tuple[np.ndarray, np.ndarray, np.ndarray]


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


def _facing(distance: np.ndarray) -> np.ndarray:
    """How squarely a surface meets the beam, 0 to 1: a mirror seen from aside returns nothing."""
    along_beam = np.abs(np.diff(distance, axis=0, append=distance[-1:]))
    return (along_beam / max(float(along_beam.max()), 1e-6)) ** 3


def _add_vessels(
    generator: np.random.Generator, tissue: Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
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
    generator: np.random.Generator, tissue: Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
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


def _add_near_field(generator: np.random.Generator, scanner: Scanner, maps: _Maps) -> None:
    echo, mirror, labels = maps
    thickness = generator.uniform(16, 30) + 2 * _smooth_noise(generator, 1, 5)
    distance = scanner.depths_mm - thickness.astype(np.float32)
    level = generator.uniform(0, 4) + 3.5 * _smooth_noise(generator, 90, 5)
    echo += (level - echo) * _covered(distance, 3)
    mirror *= distance > 0
    mirror += generator.uniform(0.3, 1.5) * _line(distance, 0.6)
    mirror += 0.8 * _line(scanner.depths_mm, 1.0)
    labels[distance < 4] = OTHER
