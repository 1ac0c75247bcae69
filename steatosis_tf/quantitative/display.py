"""The scale of a displayed frame: how many dB a grey level is, how many px a centimetre, where
its beams run.

A scanner shows the logarithm of the echo's amplitude: `dynamic_range_db` dB are spread evenly over
grey 0 to 255. Gain then adds the same grey everywhere, so that differences of grey, and ratios of
linearised grey, do not know it. An exported picture rarely says how many dB it spans. Where that
is unknown, `ASSUMED_DYNAMIC_RANGE_DB` stands in: numbers in dB are then proportional to the true
ones as long as all frames share one setting, and ranks are right, but their size is not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

#: Usual abdominal presets lie between 55 and 75 dB.
ASSUMED_DYNAMIC_RANGE_DB = 60.0

_GREY_STEPS = 255.0
_TRIMMED_SHARE = 0.25  # at either end


@dataclass(frozen=True)
class Display:
    """Scale of a frame; what is unknown is None.

    Attributes:
        dynamic_range_db: dB between grey 0 and grey 255.
        px_per_cm: px of the frame per cm of tissue.

    Raises:
        ValueError: if a given number is not finite and positive.
    """

    dynamic_range_db: float | None = None
    px_per_cm: float | None = None

    def __post_init__(self) -> None:
        for name in ("dynamic_range_db", "px_per_cm"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(
                    f"Expected {name} above 0, or None where it is unknown. "
                    f"Received: {name}={value}."
                )

    @property
    def db_per_grey(self) -> float:
        """dB of one grey level, with the assumed dynamic range where it is unknown."""
        return (self.dynamic_range_db or ASSUMED_DYNAMIC_RANGE_DB) / _GREY_STEPS

    def amplitude(self, grey: ArrayLike) -> np.ndarray:
        """Echo amplitude behind a grey level, float64, 1 at grey 0; log compression undone."""
        return np.exp(np.asarray(grey, np.float64) * (self.db_per_grey * np.log(10) / 20))


@dataclass(frozen=True)
class Beams:
    """Where the pixels of a frame lie in its sector.

    Attributes:
        depth_px: `(height, width)` float32, px below the probe, as `Fan.depth_px`.
        across: `(height, width)` float32, place across the beams, any unit, as `Fan.angle_deg`.
        extent_px: depth of the whole sector, px.
    """

    depth_px: np.ndarray
    across: np.ndarray
    extent_px: float


def level_of(grey: np.ndarray) -> float:
    """Brightness of a region: the mean of the middle half of its grey values.

    As robust as the median against bright walls and dark vessels, but not tied to whole grey
    levels: one level is a quarter of a dB, or 3 % of amplitude.

    Args:
        grey: at least one grey value, any shape.
    """
    # scipy.stats.trim_mean, whose import costs predict 0.7 s of processor time.
    values = np.asarray(grey, np.float64).ravel()
    first = int(_TRIMMED_SHARE * len(values))
    return float(
        np.partition(values, (first, len(values) - first - 1))[first : len(values) - first].mean()
    )
