"""Outline of the liver in one frame, by a small U-Net on onnxruntime.

The network is trained in `experiments/segmentation`; `liver_unet_card.md` beside this file says on
what and how well. It sees the sector's bounding box scaled to one size, so it knows neither
the scanner's frame size nor anything outside the sector.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from steatosis_tf.roi.sector import Sector
from steatosis_tf.sources.images import to_grey

#: A convex sector's bounding box is about 1.35 wide per 1 high.
INPUT_HEIGHT_PX = 160
INPUT_WIDTH_PX = 224
#: Liver where the probability is at least this.
LIVER_THRESHOLD = 0.5

_OUTPUTS = ("liver_logit", "features_40", "features_20", "features_10")

NETWORK_PATH = Path(__file__).with_name("liver_unet.onnx")
#: Grey is clipped at these multiples of the sector's own spread: calipers and text stay harmless.
GREY_CLIP = (-3.0, 5.0)


@dataclass(frozen=True)
class Placement:
    """Where the sector's bounding box lies in the frame and in the network's input.

    Attributes:
        top, left, height, width: bounding box, px of the full frame.
        input_top, input_left, input_height, input_width: the same box, px of the input.
    """

    top: int
    left: int
    height: int
    width: int
    input_top: int
    input_left: int
    input_height: int
    input_width: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box in the frame."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    @property
    def input_box(self) -> tuple[slice, slice]:
        """Rows and columns of the bounding box in the network's input."""
        return (
            slice(self.input_top, self.input_top + self.input_height),
            slice(self.input_left, self.input_left + self.input_width),
        )


def network_input(frame: np.ndarray, sector_mask: np.ndarray) -> tuple[np.ndarray, Placement]:
    """The sector's bounding box, scaled to fit 160 x 224 px without distortion, and centred.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector_mask: `(height, width)` bool.

    Returns:
        `(160, 224, 2)` float32: grey minus its mean over the sector, over its standard deviation,
        0 outside; and the sector, 0 or 1. Then the placement that leads back.

    Raises:
        ValueError: if the mask is empty or not of the frame's size.
    """
    placement = _placement(frame, sector_mask)
    box = placement.box
    size = (placement.input_width, placement.input_height)
    sector: np.ndarray = sector_mask[box].astype(np.uint8)
    # Blackened first, or area interpolation mixes what lies outside into the rim.
    grey = cv2.resize(to_grey(frame[box]) * sector, size, interpolation=cv2.INTER_AREA)
    sector = cv2.resize(sector, size, interpolation=cv2.INTER_NEAREST)
    crop = np.zeros((INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2), np.float32)
    crop[placement.input_box] = normalised(grey.astype(np.float32), sector > 0)
    return crop, placement


def normalised(grey: np.ndarray, sector_mask: np.ndarray) -> np.ndarray:
    """Grey on the sector's own scale, so that gain and dynamic range matter less.

    Args:
        grey: `(height, width)` float32, any linear scale.
        sector_mask: `(height, width)` bool.

    Returns:
        `(height, width, 2)` float32: standardised grey from -3 to 5, 0 outside; sector 0 or 1.
    """
    inside = grey[sector_mask]
    mean, spread = (inside.mean(), inside.std()) if inside.size else (0.0, 1.0)
    standard = np.clip((grey - mean) / max(float(spread), 1e-3), *GREY_CLIP)
    return np.stack([standard * sector_mask, sector_mask], axis=-1).astype(np.float32)


def liver_probability(frame: np.ndarray, sector: Sector) -> np.ndarray:
    """Probability of liver for every pixel.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector: the frame's sector.

    Returns:
        `(height, width)` float32, 0 to 1; 0 outside the sector.

    Raises:
        ValueError: if the sector is empty or not of the frame's size.
    """
    crop, placement = network_input(frame, sector.mask)
    return back_in_frame(_mean_logit(network_answers(crop)[0]), placement, sector.mask)


def network_answers(crop: np.ndarray) -> list[np.ndarray]:
    """All that the shipped network says of a picture and of its mirror image.

    It is run once for a picture: whoever outlines the liver and whoever looks for the kidney ask
    for the same one in turn.

    Args:
        crop: `(160, 224, 2)` float32, from `network_input`.

    Returns:
        `(2, height, width, channels)` float32 each: the logit of liver, then the decoder at
        40 x 56, 20 x 28 and 10 x 14.
    """
    return _network_answers(crop.tobytes())


@lru_cache(maxsize=1)
def _network_answers(crop_bytes: bytes) -> list[np.ndarray]:
    crop = np.frombuffer(crop_bytes, np.float32).reshape(INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 2)
    answers: list[np.ndarray] = liver_session().run(list(_OUTPUTS), {"crop": _both(crop)})
    return answers


def liver_logit(session: onnxruntime.InferenceSession, crop: np.ndarray) -> np.ndarray:
    """The network's answer, as the mean over the picture and its mirror image.

    Left and right mean nothing to it, so the mean only takes away chance: half a point of Dice for
    twice the time of the forward pass.

    Args:
        session: the shipped network, or another of the same making.
        crop: `(160, 224, 2)` float32, from `network_input`.

    Returns:
        `(80, 112)` float32.
    """
    (logits,) = session.run([_OUTPUTS[0]], {"crop": _both(crop)})
    return _mean_logit(logits)


def _both(crop: np.ndarray) -> np.ndarray:
    return np.stack([crop, crop[:, ::-1]])


def _mean_logit(logits: np.ndarray) -> np.ndarray:
    mean: np.ndarray = (logits[0, :, :, 0] + logits[1, :, ::-1, 0]) / 2
    return mean


def liver_mask(
    frame: np.ndarray, sector: Sector, *, threshold: float = LIVER_THRESHOLD
) -> np.ndarray:
    """The liver as one piece without holes.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.
        sector: the frame's sector.
        threshold: probability from which a pixel counts as liver, above 0 and below 1.

    Returns:
        `(height, width)` bool; all False where no pixel reaches the threshold.

    Raises:
        ValueError: if the sector is empty or not of the frame's size, or the threshold is none.
    """
    if not 0 < threshold < 1:
        raise ValueError(
            f"Expected threshold above 0 and below 1. Received: threshold={threshold}."
        )
    return one_piece(liver_probability(frame, sector) >= threshold)


def one_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected component of a mask, with its holes filled.

    Args:
        mask: `(height, width)` bool.

    Returns:
        `(height, width)` bool; all False if the mask is.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled.astype(bool)


@lru_cache(maxsize=1)
def liver_session() -> onnxruntime.InferenceSession:
    """The shipped network, loaded once per process."""
    return single_threaded_session(NETWORK_PATH)


def single_threaded_session(path: Path) -> onnxruntime.InferenceSession:
    """A shipped network on one thread, because folders are worked through one process per core.

    Raises:
        ValueError: if the file is missing from the installation.
    """
    if not path.is_file():
        raise ValueError(
            "Expected the package's own network file. "
            f"Received: no {path.name} in steatosis_tf/roi/anatomy. Install the package again."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _placement(frame: np.ndarray, sector_mask: np.ndarray) -> Placement:
    if sector_mask.shape != frame.shape[:2]:
        raise ValueError(
            "Expected a sector of the frame's size. "
            f"Received: sector.mask.shape={sector_mask.shape} frame.shape={frame.shape}. "
            "Find the sector on the same frame, before any scaling."
        )
    left, top, width, height = cv2.boundingRect(sector_mask.astype(np.uint8))
    if not width:
        raise ValueError(
            "Expected a sector with at least one pixel. Received: an empty sector.mask. "
            "Find it with steatosis_tf.roi.sector.find_sector."
        )
    scale = min(INPUT_HEIGHT_PX / height, INPUT_WIDTH_PX / width)
    input_height = min(max(round(height * scale), 1), INPUT_HEIGHT_PX)
    input_width = min(max(round(width * scale), 1), INPUT_WIDTH_PX)
    return Placement(
        top,
        left,
        height,
        width,
        (INPUT_HEIGHT_PX - input_height) // 2,
        (INPUT_WIDTH_PX - input_width) // 2,
        input_height,
        input_width,
    )


def back_in_frame(logit: np.ndarray, placement: Placement, sector_mask: np.ndarray) -> np.ndarray:
    """Probability over the full frame from the network's answer.

    Args:
        logit: `(80, 112)` float32.
        placement: from `network_input`.
        sector_mask: `(height, width)` bool.

    Returns:
        `(height, width)` float32, 0 to 1; 0 outside the sector.
    """
    size = (INPUT_WIDTH_PX, INPUT_HEIGHT_PX)
    # Exponentials are slow: taken here, on 36 thousand pixels instead of the frame's million.
    small = 1.0 / (1.0 + np.exp(-cv2.resize(logit, size, interpolation=cv2.INTER_LINEAR)))
    boxed = cv2.resize(
        small[placement.input_box],
        (placement.width, placement.height),
        interpolation=cv2.INTER_LINEAR,
    )
    probability = np.zeros(sector_mask.shape, np.float32)
    probability[placement.box] = boxed * sector_mask[placement.box]
    return probability
