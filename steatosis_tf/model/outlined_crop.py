"""What the liver network's training pictures are cut from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OutlinedCrop:
    """A sector with some margin and what a person outlined in it, all of one size.

    Attributes:
        grey: `(height, width)` uint8, 0 to 255.
        sector: `(height, width)` uint8, 0 or 1.
        liver: `(height, width)` uint8, 0 or 1.
        mass: `(height, width)` uint8, 0 or 1, inside the liver; all 0 where there is none.
    """

    grey: np.ndarray
    sector: np.ndarray
    liver: np.ndarray
    mass: np.ndarray
