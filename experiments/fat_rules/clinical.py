"""Clinical covariates of a manifest as numbers: age, sex, BMI, liver enzymes, platelets, diabetes.

Every cell may be empty. What a cell means is fixed here, so that a column that a hospital filled
in another way is refused instead of read as something else.
"""

import numpy as np
import pandas as pd

#: Columns that are read, and their units.
CLINICAL_UNITS = {
    "age": "years",
    "sex": "M or F",
    "bmi": "kg/m2",
    "alt": "U/l",
    "ast": "U/l",
    "platelets": "10^9/l",
    "diabetes": "yes or no",
}
#: Names of the numbers: enzymes as logarithms, since they are skewed; sex 1 for male.
CLINICAL_COLUMNS = ("age", "sex_male", "bmi", "log_alt", "log_ast", "platelets", "diabetes")

_WORDS = {
    "sex": {"m": 1.0, "male": 1.0, "f": 0.0, "female": 0.0},
    "diabetes": {"yes": 1.0, "true": 1.0, "1": 1.0, "no": 0.0, "false": 0.0, "0": 0.0},
}
_LOGARITHMS = ("alt", "ast")


def clinical_numbers(manifest: pd.DataFrame) -> pd.DataFrame:
    """Covariates of every row; NaN where a cell is empty or the column is not there.

    Args:
        manifest: as `read_manifest` gives it.

    Returns:
        `CLINICAL_COLUMNS`, float64, with the index of the manifest.

    Raises:
        ValueError: if a cell is neither empty nor what its column holds.
    """
    columns = [_column(manifest, name) for name in CLINICAL_UNITS]
    table = pd.DataFrame(np.array(columns).T, index=manifest.index)
    return table.set_axis(list(CLINICAL_COLUMNS), axis=1)


def _column(manifest: pd.DataFrame, name: str) -> np.ndarray:
    if name not in manifest:
        return np.full(len(manifest), np.nan)
    cells = manifest[name].fillna("").astype(str).str.strip().str.lower()
    if name in _WORDS:
        numbers = cells.map(_WORDS[name])
    else:
        numbers = pd.to_numeric(cells, errors="coerce")
        numbers = numbers.where(numbers > 0)
    values = numbers.to_numpy(float)
    wrong = (cells != "").to_numpy() & ~np.isfinite(values)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"Expected {name} in {CLINICAL_UNITS[name]}, or an empty cell. Received: "
            f"{cells.iloc[first]!r} at row {first + 2}."
        )
    return np.log(values) if name in _LOGARITHMS else values
