"""ROIs as thumbnails, for the nearest neighbour that every method has to beat."""

import cv2
import numpy as np

THUMBNAIL_PX = (40, 28)  # width, height


def thumbnails(rois: np.ndarray) -> np.ndarray:
    """ROIs shrunk by area to 40 x 28 px.

    Args:
        rois: `(n, height, width, 1)` uint8.

    Returns:
        `(n, 1120)` float32, 0 to 255.
    """
    small = [cv2.resize(roi[..., 0], THUMBNAIL_PX, interpolation=cv2.INTER_AREA) for roi in rois]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)
