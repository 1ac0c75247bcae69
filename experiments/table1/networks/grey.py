"""What the networks trained from scratch read of a ROI."""

import keras

from steatosis_tf.model.backbone import at_one_level, roi_input
from steatosis_tf.roi.views import INPUT_SIZE_PX

# Grey levels per unit: about the spread inside a sector, so that pixels have about unit variance.
_SPREAD = 64.0


def grey_input(
    size_px: int = INPUT_SIZE_PX, channels: int = 3
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input `roi` and what a network trained from scratch reads of it.

    Args:
        size_px: 224, or a divisor of it for the mean over blocks of pixels (112: a quarter of the
            arithmetic).
        channels: copies of the grey channel; 3 for a network published for colour.

    Returns:
        `roi` `(batch, 224, 224, 1)` uint8, 0 to 255; and pixels `(batch, size_px, size_px,
        channels)` float32, mean 0 over the sector, 0 outside it, 1 unit = 64 grey levels.

    Raises:
        ValueError: if 224 is no multiple of the size.
    """
    roi, grey = roi_input()
    pixels = keras.layers.Rescaling(1 / _SPREAD, name="to_unit")(at_one_level(grey, level=0.0))
    pixels = smaller(pixels, size_px)
    if channels > 1:
        pixels = keras.layers.Concatenate(name="channels")([pixels] * channels)
    return roi, pixels


def smaller(pixels: keras.KerasTensor, size_px: int) -> keras.KerasTensor:
    """Means over squares, so that a side of 224 px becomes one of `size_px`.

    Raises:
        ValueError: if 224 is no multiple of the size.
    """
    if size_px < 1 or INPUT_SIZE_PX % size_px:
        raise ValueError(
            f"Expected size_px to divide {INPUT_SIZE_PX}. Received: size_px={size_px}."
        )
    if size_px == INPUT_SIZE_PX:
        return pixels
    return keras.layers.AveragePooling2D(INPUT_SIZE_PX // size_px, name="smaller")(pixels)
