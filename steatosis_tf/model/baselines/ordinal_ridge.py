"""Ridge regression on the square root of fat percent, read as four ordered grades.

The reading is that of `fat_reading.py`; its width is the error on patients left out inside the
training part. Penalty and width are thus chosen without the patients the model is then asked about.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from steatosis_tf.model.fat_reading import MIN_SPREAD, grade_probabilities

#: Penalties among which the training part chooses, for standardised features.
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)

_INNER_FOLDS = 10
_MIN_PATIENTS = 10


@dataclass(frozen=True)
class OrdinalRidge:
    """A fitted model.

    Attributes:
        pipeline: median imputation, standardisation, ridge.
        penalty: the chosen one.
        spread: error on left-out training patients, square root of percent.
    """

    pipeline: Pipeline
    penalty: float
    spread: float

    def sqrt_fat(self, features: np.ndarray) -> np.ndarray:
        """Predicted square root of fat percent, `(n,)`, at least 0."""
        return np.maximum(self.pipeline.predict(features), 0.0)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Probabilities of the four grades, `(n, 4)`, each row sums to 1."""
        predicted = self.pipeline.predict(features)[:, np.newaxis]
        return np.asarray(grade_probabilities(predicted, self.spread, special.ndtr))

    def weights(self) -> np.ndarray:
        """Weight of each standardised feature, square root of percent per standard deviation."""
        return np.asarray(self.pipeline[-1].coef_)


def fit_ordinal_ridge(
    features: np.ndarray, fat_percent: np.ndarray, *, seed: int = 0
) -> OrdinalRidge:
    """Fit, with the penalty chosen by ten folds inside.

    Args:
        features: `(num_patients, num_features)`, one row per patient (the mean over frames), so
            that folds of rows are folds of patients; NaN where something was not measured.
        fat_percent: `(num_patients,)`, 0 to 100.
        seed: deals patients to the inner folds.

    Raises:
        ValueError: if shapes disagree, there are fewer than 10 patients, fat is out of range, or
            a feature was measured in no patient.
    """
    features, fat = np.asarray(features, float), np.asarray(fat_percent, float)
    _check(features, fat)
    target = np.sqrt(fat)
    folds = KFold(min(_INNER_FOLDS, len(fat)), shuffle=True, random_state=seed)
    search = GridSearchCV(
        make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), Ridge()
        ),
        {"ridge__alpha": PENALTIES},
        scoring="neg_mean_squared_error",
        cv=folds,
    ).fit(features, target)
    left_out = cross_val_predict(search.best_estimator_, features, target, cv=folds)
    spread = max(float(np.sqrt(np.mean((left_out - target) ** 2))), MIN_SPREAD)
    return OrdinalRidge(search.best_estimator_, float(search.best_params_["ridge__alpha"]), spread)


def _check(features: np.ndarray, fat: np.ndarray) -> None:
    if features.ndim != 2 or fat.shape != features.shape[:1] or len(fat) < _MIN_PATIENTS:
        raise ValueError(
            f"Expected features (num_patients, num_features) and fat_percent (num_patients,) of "
            f"at least {_MIN_PATIENTS} patients. Received: features.shape={features.shape} "
            f"fat_percent.shape={fat.shape}."
        )
    if not ((fat >= 0) & (fat <= 100)).all():
        raise ValueError(
            "Expected fat_percent from 0 to 100 for every patient. Received: a value outside, or "
            "none. Leave out patients without a biopsy."
        )
    if np.isnan(features).all(axis=0).any():
        empty = np.flatnonzero(np.isnan(features).all(axis=0)).tolist()
        raise ValueError(
            f"Expected every feature measured in at least one patient. Received: columns={empty} "
            "all NaN. Leave them out."
        )
