"""The front of every network: a grey uint8 ROI made into float pixels, inside the graph."""

import keras

from steatosis_tf.roi.crop import INPUT_SIZE_PX

# Grey levels per unit: about the spread inside a sector, so that pixels have about unit variance.
_SPREAD = 64.0


def roi_input(
    shape: tuple[int, int] = (INPUT_SIZE_PX, INPUT_SIZE_PX),
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input `roi` `(batch, *shape, 1)` uint8, 0 to 255, and the same as float32."""
    roi = keras.Input((*shape, 1), dtype="uint8", name="roi")
    return roi, keras.layers.Rescaling(1.0, name="to_float")(roi)


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


def at_one_level(grey: keras.KerasTensor, level: float) -> keras.KerasTensor:
    """Shift the grey levels inside the sector to one mean; outside it stays 0.

    A display is log-compressed, so the sonographer's gain is added to every echo: taking the mean
    out takes the gain out, and leaves contrast and the fall with depth as they are.

    Args:
        grey: `(batch, height, width, 1)` float32, 0 to 255, 0 outside the sector.
        level: the mean inside the sector afterwards.
    """
    inside = keras.ops.cast(grey > 0, "float32")
    count = keras.ops.maximum(keras.ops.sum(inside, axis=(1, 2, 3), keepdims=True), 1.0)
    mean = keras.ops.sum(grey, axis=(1, 2, 3), keepdims=True) / count
    return (grey - mean + level) * inside


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
