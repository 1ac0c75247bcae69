"""Brightness and contrast of the sector in blocks of depth and angle, without any anatomy.

The picture is unrolled along its beams, so that a block means the same depth and the same beams in
every frame of every sector. Mean brightness follows gain; contrast (standard deviation over mean)
does so less.
"""

import cv2
import numpy as np

from steatosis_tf.roi.sector import Fan

#: Blocks along the beam and across it.
NUM_DEPTHS, NUM_BEAMS = 16, 8
#: Names of the numbers: block 00_00 is the nearest and leftmost.
POLAR_COLUMNS = tuple(
    f"polar_{kind}_{depth:02d}_{beam:02d}"
    for kind in ("mean", "contrast")
    for depth in range(NUM_DEPTHS)
    for beam in range(NUM_BEAMS)
)

_SIDE = 128
# Off the skin line, the far arc and the two side lines.
_NEAREST, _FARTHEST = 0.03, 0.97
_OFF_SIDES = 0.01
# Grey levels added to a mean, so that black blocks have a contrast near 0.
_BLACK = 5.0


def polar_blocks(grey: np.ndarray, fan: Fan) -> np.ndarray:
    """Mean brightness, then contrast, of 16 x 8 blocks.

    Args:
        grey: `(height, width)` uint8, 0 to 255.
        fan: geometry of the frame's sector.

    Returns:
        `(256,)` float64, in the order of `POLAR_COLUMNS`; grey levels, then no unit.
    """
    blocks = _unrolled(grey, fan).reshape(
        NUM_DEPTHS, _SIDE // NUM_DEPTHS, NUM_BEAMS, _SIDE // NUM_BEAMS
    )
    mean, spread = blocks.mean(axis=(1, 3)), blocks.std(axis=(1, 3))
    return np.concatenate([mean.ravel(), (spread / (mean + _BLACK)).ravel()]).astype(float)


def _unrolled(grey: np.ndarray, fan: Fan) -> np.ndarray:
    """The sector as `(128, 128)` float32: rows are depths, columns are beams."""
    depth = np.linspace(_NEAREST, _FARTHEST, _SIDE)[:, None]
    radius = fan.near_px + depth * (fan.far_px - fan.near_px)
    if fan.kind == "linear":
        sides = fan.outline()[:, 0]
        across = np.linspace(sides.min(), sides.max(), _SIDE)[None, :]
        x, y = np.broadcast_arrays(across, radius)
    else:
        off = _OFF_SIDES * (fan.right_deg - fan.left_deg)
        angle = np.radians(np.linspace(fan.left_deg + off, fan.right_deg - off, _SIDE))[None, :]
        x = fan.apex_x_px + radius * np.sin(angle)
        y = fan.apex_y_px + fan.row_stretch * radius * np.cos(angle)
    return np.asarray(
        cv2.remap(
            grey.astype(np.float32), x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR
        )
    )
