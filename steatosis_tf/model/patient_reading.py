"""Frames of one patient in, numbers that a radiologist can read out, with a grade on request."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.grades import GRADES
from steatosis_tf.model.baselines.display import Display
from steatosis_tf.model.baselines.physics import UNITS, Physics, measure_frame
from steatosis_tf.model.fusion import Fusion
from steatosis_tf.sources.folder import read_frame


@dataclass(frozen=True)
class Graded:
    """What a model makes of a patient's numbers.

    Attributes:
        fat_percent: predicted, 0 to 100.
        probabilities: grade -> 0 to 1, sum 1.
        adds: number -> what it adds to the predicted square root of fat percent, against the
            average patient of the model's study; largest first.
    """

    fat_percent: float
    probabilities: dict[str, float]
    adds: dict[str, float]


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


def grade_patient(numbers: Physics, model: Fusion) -> Graded:
    """Predict fat and grade from a patient's numbers.

    Args:
        numbers: means over the patient's frames.
        model: sees physics only, as `make byra` writes it.

    Raises:
        ValueError: if the model asks for more than physics.
    """
    row = pd.DataFrame([asdict(numbers)])
    names = [name for part in model.parts for name in part.columns]
    more = [name for name in names if name not in row]
    if more:
        raise ValueError(
            f"Expected a model that sees physics alone. Received: one that asks for "
            f"{more[:3]}. Give the fat_model.json of `make byra`."
        )
    adds: dict[str, float] = dict.fromkeys(names, 0.0)
    for part, rule, share in zip(model.parts, model.rules, model.shares, strict=True):
        shares = rule.shares(row[list(part.columns)].to_numpy(float))[0]
        for name, value in zip(part.columns, shares, strict=False):
            adds[name] += share * float(value)
    ranked = dict(sorted(adds.items(), key=lambda item: -abs(item[1])))
    (chances,) = model.probabilities(row)
    fat = float(np.minimum(model.sqrt_fat(row)[0] ** 2, 100.0))
    return Graded(fat, dict(zip(GRADES, chances.tolist(), strict=True)), ranked)
