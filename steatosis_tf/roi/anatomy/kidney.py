"""A patch of renal cortex in views that show the kidney beside the liver.

The hepatorenal index compares the liver's brightness with such a patch. One weight per feature of
the frozen liver network says where operators would put it, another whether what surrounds that
place is a kidney at all. The weights are fitted by `experiments/segmentation` (kidney_head.py
and kidney_in_view.py) to the operators' boxes of Byra et al. 2018; the liver network has
never seen those frames, and nothing in it is changed. `liver_unet_card.md` has the scores.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.roi.anatomy.liver import (
    INPUT_HEIGHT_PX,
    INPUT_WIDTH_PX,
    Placement,
    network_answers,
    network_input,
)
from steatosis_tf.roi.sector import Sector
from steatosis_tf.roi.views import Rectangle

#: Rows and columns of the grid on which cortex is looked for.
GRID = (40, 56)
_CELL_PX = INPUT_HEIGHT_PX // GRID[0]
#: Side of the patch per height of the sector's bounding box: the operators' 28 px of 370.
BOX_SHARE = 0.075
#: Above this quality one in twenty of the out-of-fold findings misses the operators' boxes.
MIN_QUALITY = 0.55
#: Seven in eight patches in views with a kidney are above it, out of fold, and none without.
MIN_LIKENESS = 0.75
# A patch that holds more liver than this is not cortex, whatever the features say.
_MAX_LIVER_SHARE = 0.2

_WHERE_PATH = Path(__file__).with_name("kidney_head.json")
_WHETHER_PATH = Path(__file__).with_name("kidney_in_view.json")
# Cells around the patch on each side that show whether it lies in a kidney: 36 px of the input.
_REACH = 4


@dataclass(frozen=True)
class KidneyFinding:
    """Where renal cortex is, or why none was found.

    Attributes:
        box: square patch of cortex, px of the full frame; None if none was found.
        quality: proportion of the belief that lies within one patch side of the patch, 0 to 1.
        reason: why there is no box; empty if there is one.
    """

    box: Rectangle | None
    quality: float
    reason: str


def find_kidney_cortex(frame: np.ndarray, sector: Sector, liver_mask: np.ndarray) -> KidneyFinding:
    """The patch of renal cortex that an operator would most likely choose.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector: the frame's sector.
        liver_mask: `(height, width)` bool, from `steatosis_tf.roi.anatomy.liver.liver_mask`.

    Returns:
        A finding with a box inside the sector and at most a fifth of it liver, or with a reason.

    Raises:
        ValueError: if the sector is empty, or sector or liver mask are not of the frame's size.
    """
    if liver_mask.shape != frame.shape[:2]:
        raise ValueError(
            "Expected a liver mask of the frame's size. "
            f"Received: liver_mask.shape={liver_mask.shape} frame.shape={frame.shape}."
        )
    crop, placement = network_input(frame, sector.mask)
    features = cortex_features(crop)
    liver = liver_in_input(liver_mask, placement)
    finding = best_patch(features @ _weights(_WHERE_PATH), crop[..., 1], liver, placement)
    if finding.box is None:
        return finding
    *weights, bias = _weights(_WHETHER_PATH)
    likeness = _logistic(surroundings(features, finding.box, placement) @ weights + bias)
    if likeness < MIN_LIKENESS:
        reason = f"no kidney seen (likeness {likeness:.2f}, at least {MIN_LIKENESS})"
        return KidneyFinding(None, finding.quality, reason)
    return finding


def cortex_features(crop: np.ndarray) -> np.ndarray:
    """What the liver network knows about every cell of a 40 x 56 grid, 4 px of its input each.

    Args:
        crop: `(160, 224, 2)` float32, from `network_input`.

    Returns:
        `(40, 56, 148)` float32, read-only: the decoder at three resolutions, the probability of
        liver, and how much liver lies around and before the cell.
    """
    return _cortex_features(crop.tobytes())


# Whoever finds cortex in a frame and whoever pools its features ask for the same crop in turn.
@lru_cache(maxsize=1)
def _cortex_features(crop_bytes: bytes) -> np.ndarray:
    crop = np.frombuffer(crop_bytes, np.float32).reshape(INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2)
    logit, *decoder = (answer[0] for answer in network_answers(crop))
    size = (GRID[1], GRID[0])
    levels = [cv2.resize(level, size, interpolation=cv2.INTER_LINEAR) for level in decoder]
    small = cv2.resize(logit[..., 0], size, interpolation=cv2.INTER_AREA)
    liver = _logistic(small)
    around = cv2.blur(liver, (9, 9), borderType=cv2.BORDER_CONSTANT)
    before = [np.roll(liver, cells, axis=0) for cells in (4, 8)]
    for cells, moved in zip((4, 8), before, strict=True):
        moved[:cells] = 0
    features = np.dstack([*levels, liver, around, *before])
    features.flags.writeable = False
    return features


def _logistic(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def surroundings(features: np.ndarray, box: Rectangle, placement: Placement) -> np.ndarray:
    """Mean features in and around a patch.

    Args:
        features: `(40, 56, num_features)` float32, from `cortex_features`.
        box: the patch, px of the full frame.
        placement: where the network's input lies in the frame.

    Returns:
        `(num_features,)` float32.
    """
    scale = placement.input_height / placement.height
    middle = np.array([box.top + box.height / 2, box.left + box.width / 2])
    inside = (middle - np.array([placement.top, placement.left])) * scale
    cell = (inside + np.array([placement.input_top, placement.input_left])) / _CELL_PX
    row, column = np.rint(cell - 0.5).astype(int)
    rows = slice(max(row - _REACH, 0), row + _REACH + 1)
    columns = slice(max(column - _REACH, 0), column + _REACH + 1)
    return np.asarray(features[rows, columns].mean(axis=(0, 1)))


def best_patch(
    logit: np.ndarray,
    sector: np.ndarray,
    liver: np.ndarray,
    placement: Placement,
    min_quality: float = MIN_QUALITY,
) -> KidneyFinding:
    """The patch of cortex that the logits point at.

    Args:
        logit: `(40, 56)` float32, features times weights; their softmax is where an operator
            would click.
        sector: `(160, 224)` float32, 0 or 1.
        liver: `(160, 224)` float32, proportion of liver.
        placement: where the network's input lies in the frame.
        min_quality: below it there is no finding.

    Returns:
        See `find_kidney_cortex`; whether there is a kidney at all is not asked here.
    """
    size = (INPUT_WIDTH_PX, INPUT_HEIGHT_PX)
    smooth = cv2.resize(logit, size, interpolation=cv2.INTER_LINEAR)
    belief = np.exp(smooth - smooth.max())
    belief /= belief.sum()
    side = max(round(BOX_SHARE * placement.input_height), 3)
    allowed = _share(sector, side) > 0.999
    allowed &= _share(liver, side) <= _MAX_LIVER_SHARE
    if not allowed.any():
        return KidneyFinding(None, 0.0, "no room for a patch of cortex outside the liver")
    near = cv2.boxFilter(belief, -1, (side, side), normalize=False)
    row, column = np.unravel_index(np.where(allowed, near, -1.0).argmax(), allowed.shape)
    around = cv2.boxFilter(belief, -1, (3 * side, 3 * side), normalize=False)
    quality = min(float(around[row, column]), 1.0)
    if quality < min_quality:
        reason = f"no kidney seen (quality {quality:.2f}, at least {min_quality})"
        return KidneyFinding(None, quality, reason)
    return KidneyFinding(_box(float(row), float(column), placement), quality, "")


@lru_cache(maxsize=2)
def _weights(path: Path) -> np.ndarray:
    return np.array(json.loads(path.read_text()), np.float32)


def _share(mask: np.ndarray, side: int) -> np.ndarray:
    """Proportion of a mask in the square patch around every pixel; nothing lies beyond the edge."""
    return cv2.boxFilter(mask, -1, (side, side), borderType=cv2.BORDER_CONSTANT)


def liver_in_input(mask: np.ndarray, placement: Placement) -> np.ndarray:
    """A mask of the full frame, scaled and placed as the network's input is.

    Args:
        mask: `(height, width)` bool.
        placement: from `steatosis_tf.roi.anatomy.liver.network_input`.

    Returns:
        `(160, 224)` float32, 0 to 1.
    """
    size = (placement.input_width, placement.input_height)
    inside = mask[placement.box].astype(np.float32)
    placed = np.zeros((INPUT_HEIGHT_PX, INPUT_WIDTH_PX), np.float32)
    placed[placement.input_box] = cv2.resize(inside, size, interpolation=cv2.INTER_AREA)
    return placed


def _box(row: float, column: float, placement: Placement) -> Rectangle:
    """The patch in the frame, kept inside the sector's bounding box."""
    scale = placement.height / placement.input_height
    side = max(min(round(BOX_SHARE * placement.height), placement.width), 1)
    down = round((row + 0.5 - placement.input_top) * scale - side / 2)
    right = round((column + 0.5 - placement.input_left) * scale - side / 2)
    return Rectangle(
        top=placement.top + min(max(down, 0), placement.height - side),
        left=placement.left + min(max(right, 0), placement.width - side),
        height=side,
        width=side,
    )
