"""Ranking metrics of one binary question, undefined where one side is empty."""

import numpy as np
from sklearn import metrics as sk


def number_or_none(value: float, name: str, reason: str, notes: list[str]) -> float | None:
    """The value as a plain float, or None and a note where it is NaN."""
    if np.isfinite(value):
        return float(value)
    notes.append(f"{name} is undefined: {reason}.")
    return None


def auc_or_none(
    positive: np.ndarray, score: np.ndarray, name: str, notes: list[str]
) -> float | None:
    if positive.all() or not positive.any():
        which = "negative" if positive.all() else "positive"
        notes.append(f"The AUC of {name} is undefined: no {which} row.")
        return None
    return float(sk.roc_auc_score(positive, score))


def average_precision_or_none(
    positive: np.ndarray, score: np.ndarray, name: str, notes: list[str]
) -> float | None:
    if positive.all() or not positive.any():
        reason = "1 for any model, as no row is negative" if positive.all() else "no positive row"
        notes.append(f"The average precision of {name} is undefined: {reason}.")
        return None
    return float(sk.average_precision_score(positive, score))
