"""One grade from several kinds of numbers: physics, picture, clinic.

Each part (`Part`) is a linear rule of its own. How much each counts is fitted to predictions
that such rules made for training patients they had not seen (stacking, Wolpert 1992, doi
10.1016/S0893-6080(05)80023-1; shares are not negative and sum to 1, Breiman 1996, doi
10.1007/BF00117832). The mixture is then read as four grades by one cumulative link.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize

from steatosis_tf.files import open_regular, write_json
from steatosis_tf.grades import grade_from_fat_percent, label_of
from steatosis_tf.model.baselines.cumulative_link import CumulativeLink, fit_cumulative_link
from steatosis_tf.model.baselines.fat_rule import FatRule, fit_fat_rule

# So heavy that shares sum to 1 to six digits.
_SUM_WEIGHT = 1e3


@dataclass(frozen=True)
class Part:
    """A kind of numbers.

    Attributes:
        name: short, for tables.
        columns: of the feature table.
        signs: for each column the only direction in which it may count, or None.
        flag_missing: also learn from whether a number is missing.
    """

    name: str
    columns: tuple[str, ...]
    signs: tuple[int, ...] | None = None
    flag_missing: bool = False


@dataclass(frozen=True)
class Fusion:
    """A fitted system.

    Attributes:
        parts: what it sees.
        rules: of each part.
        shares: how much each part counts; 0 to 1, sum 1.
        link: reads the mixture as grades.
    """

    parts: tuple[Part, ...]
    rules: tuple[FatRule, ...]
    shares: tuple[float, ...]
    link: CumulativeLink

    def sqrt_fat(self, features: pd.DataFrame) -> np.ndarray:
        """Predicted square root of fat percent `(n,)`, at least 0.

        Args:
            features: one row per frame or patient, the columns of every part; NaN where something
                was not measured.
        """
        return np.maximum(self._mixture(features), 0.0)

    def probabilities(self, features: pd.DataFrame) -> np.ndarray:
        """Probabilities of the four grades `(n, 4)`; rows sum to 1."""
        return self.link.probabilities(self._mixture(features))

    def _mixture(self, features: pd.DataFrame) -> np.ndarray:
        predicted = [
            rule.sqrt_fat(features[list(part.columns)].to_numpy(float))
            for part, rule in zip(self.parts, self.rules, strict=True)
        ]
        return np.asarray(self.shares) @ np.array(predicted)


def fit_fusion(features: pd.DataFrame, fat_percent: np.ndarray, parts: Sequence[Part]) -> Fusion:
    """Fit every part, the shares and the reading on training patients.

    Args:
        features: one row per patient, see `Fusion.sqrt_fat`.
        fat_percent: `(num_patients,)`, 0 to 100.
        parts: one or more.

    Raises:
        ValueError: if columns are missing, or a part cannot be fitted (see `fit_fat_rule`).
    """
    absent = {name for part in parts for name in part.columns} - set(features.columns)
    if absent or not parts:
        raise ValueError(
            f"Expected parts whose columns are in the feature table. Received: "
            f"parts={[part.name for part in parts]}, missing={sorted(absent)[:5]}."
        )
    fat = np.asarray(fat_percent, float)
    fits = [
        fit_fat_rule(
            features[list(part.columns)].to_numpy(float),
            fat,
            signs=part.signs,
            flag_missing=part.flag_missing,
        )
        for part in parts
    ]
    left_out = np.array([predicted for _, predicted in fits])
    shares = _shares(left_out, np.sqrt(fat))
    labels = np.array([label_of(grade_from_fat_percent(percent)) for percent in fat])
    link = fit_cumulative_link(shares @ left_out, labels)
    rules = tuple(rule for rule, _ in fits)
    return Fusion(tuple(parts), rules, tuple(float(share) for share in shares), link)


def save_fusion(fusion: Fusion, path: str | Path, notes: dict[str, str]) -> None:
    """Write the model as JSON: numbers and names that a person can read, nothing that can run.

    Args:
        fusion: the model.
        path: file to write.
        notes: what a reader should know, such as the study and the notice.
    """
    parts = [
        {
            "part": asdict(part),
            "rule": {
                name: value.tolist() if isinstance(value, np.ndarray) else value
                for name, value in vars(rule).items()
            },
        }
        for part, rule in zip(fusion.parts, fusion.rules, strict=True)
    ]
    link = asdict(fusion.link)
    content = {"notes": notes, "shares": fusion.shares, "link": link, "parts": parts}
    write_json(content, path)


def load_fusion(path: str | Path) -> Fusion:
    """Read a model written by `save_fusion`.

    Raises:
        ValueError: if the file is missing or not such a model.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
        parts = tuple(_part(entry["part"]) for entry in content["parts"])
        rules = tuple(_rule(entry["rule"]) for entry in content["parts"])
        link = content["link"]
        first, second, third = link["cuts"]
        reading = CumulativeLink(link["slope"], (first, second, third))
        return Fusion(parts, rules, tuple(content["shares"]), reading)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a fused model in JSON. Received: {Path(path).name} ({error!r}). Write one "
            "with `make byra`."
        ) from error


def _shares(left_out: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Shares `(num_parts,)` that bring the mixture closest to the target."""
    matrix = np.vstack([left_out.T, np.full(len(left_out), _SUM_WEIGHT)])
    shares, _ = optimize.nnls(matrix, np.append(target, _SUM_WEIGHT))
    return np.asarray(shares / shares.sum())


def _part(entry: dict) -> Part:
    signs = entry["signs"]
    return Part(
        entry["name"],
        tuple(entry["columns"]),
        None if signs is None else tuple(signs),
        entry["flag_missing"],
    )


def _rule(entry: dict) -> FatRule:
    arrays = {name: np.array(entry[name], float) for name in ("fill", "centre", "scale", "weights")}
    return FatRule(
        **arrays,
        indicators=tuple(entry["indicators"]),
        intercept=float(entry["intercept"]),
        penalty=float(entry["penalty"]),
    )
