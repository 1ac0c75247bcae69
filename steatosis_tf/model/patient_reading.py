"""Frames of one patient in, numbers that a radiologist can read out. It grades nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from steatosis_tf.model.baselines.display import Display
from steatosis_tf.model.baselines.physics import UNITS, Physics, measure_frame
from steatosis_tf.sources.images import read_frame


def measure_patient(paths: Sequence[str | Path], display: Display) -> tuple[list[Physics], Physics]:
    """Measure a patient's frames.

    Args:
        paths: of one or more frames of one patient.
        display: scale of all of them.

    Returns:
        the numbers of each frame, and their means over the frames that show them.

    Raises:
        ValueError: if a frame cannot be read or shows no sector.
    """
    found = []
    for path in paths:
        try:
            found.append(measure_frame(read_frame(path), display))
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error
    table = pd.DataFrame([asdict(numbers) for numbers in found])
    means: dict[str, Any] = table[list(UNITS)].mean().to_dict()
    return found, Physics(**means, is_assumed_scale=display.dynamic_range_db is None)
