"""Which group a patient belongs to by a covariate: sex, age band, BMI band, scanner, site."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

#: Lower edges of the second and further bands of columns that are numbers: age in decades of
#: adults, body-mass index by WHO class.
BANDS: dict[str, tuple[float, ...]] = {
    "age": (40, 50, 60, 70),
    "bmi": (18.5, 25, 30, 35),
}

UNKNOWN = "unknown"
SEVERAL = "several values"

#: A covariate with more values than this is a measurement, not a grouping.
_MAX_GROUPS = 12


def group_patients(
    patient_ids: np.ndarray,
    covariates: pd.DataFrame,
    column: str,
    bands: Sequence[float] | None,
) -> pd.Series:
    """The group of each patient.

    Args:
        patient_ids: ids of the scored patients.
        covariates: one or more rows per patient: `patient_id` and `column`.
        column: covariate to group by.
        bands: lower edges that turn a column of numbers into bands; those of `BANDS` if None.

    Returns:
        Group names, indexed by patient_id: `UNKNOWN` without a value, `SEVERAL` with more than one.

    Raises:
        ValueError: if the column or a patient is missing, if a banded column holds a text, or if
            there are over 12 groups and no bands.
    """
    lacking = [name for name in ("patient_id", column) if name not in covariates.columns]
    if lacking:
        raise ValueError(
            f"Expected covariates with patient_id and {column}. Received: "
            f"columns={list(covariates.columns)}."
        )
    known = covariates.assign(patient_id=covariates["patient_id"].astype(str))
    absent = sorted(set(patient_ids.tolist()) - set(known["patient_id"]))
    if absent:
        raise ValueError(
            f"Expected every scored patient in the covariates. Received: {len(absent)} missing, "
            f"first patient_id={absent[0]}. Use the manifest the run was made from."
        )
    values = _grouped_values(known[column], column, bands)
    table = pd.DataFrame({"patient_id": known["patient_id"], "value": values})
    table = table[table["patient_id"].isin(patient_ids)].drop_duplicates()
    several = table["patient_id"].duplicated(keep=False)
    return (
        table.assign(value=table["value"].mask(several, SEVERAL))
        .drop_duplicates()
        .set_index("patient_id")["value"]
    )


def _grouped_values(values: pd.Series, column: str, bands: Sequence[float] | None) -> pd.Series:
    text = values.astype("object").where(values.notna(), "").astype(str).str.strip()
    edges = BANDS.get(column) if bands is None else tuple(bands)
    if edges is not None:
        return _banded(text, column, edges)
    groups = text.mask(text == "", UNKNOWN)
    if groups.nunique() > _MAX_GROUPS:
        raise ValueError(
            f"Expected {column} to have at most {_MAX_GROUPS} values. Received: "
            f"{groups.nunique()}. Give bands=(...) if it is a number."
        )
    return groups


def _banded(text: pd.Series, column: str, edges: Sequence[float]) -> pd.Series:
    if list(edges) != sorted(set(edges)) or not len(edges):
        raise ValueError(f"Expected rising bands for {column}. Received: bands={tuple(edges)}.")
    numbers = pd.to_numeric(text.mask(text == ""), errors="coerce").to_numpy(np.float64)
    wrong = np.isnan(numbers) & (text != "").to_numpy()
    if wrong.any():
        raise ValueError(
            f"Expected numbers in {column}. Received: {wrong.sum()} cells that are not, first "
            f"{text[wrong].iloc[0]!r}."
        )
    names = np.array([UNKNOWN, *_band_names(edges)], dtype=object)
    place = np.where(np.isnan(numbers), 0, 1 + np.digitize(numbers, edges))
    return pd.Series(names[place], index=text.index)


def _band_names(edges: Sequence[float]) -> list[str]:
    between = [f"{low:g} to under {high:g}" for low, high in pairwise(edges)]
    return [f"under {edges[0]:g}", *between, f"{edges[-1]:g} and over"]


def group_order(group_of: pd.Series) -> list[str]:
    """Group names: bands by their number, others by name, the two leftover groups last."""

    def key(value: str) -> tuple[int, float, str]:
        numbers = [word for word in value.split() if word.replace(".", "", 1).isdigit()]
        leftover = value in (UNKNOWN, SEVERAL)
        first = float(numbers[0]) - 0.5 * value.startswith("under") if numbers else 0.0
        return int(leftover), first, value

    return sorted(set(group_of), key=key)
