"""What is known of a simulated patient: what was put in, and where to measure it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from steatosis_tf.sources.phantom.scanner import CORTEX, LIVER, Scanner
from steatosis_tf.sources.phantom.scene import Tissue

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
