"""How far readers agree, with intervals over patients."""

from dataclasses import dataclass

import numpy as np

from steatosis_tf.evaluation.metrics.weighted import kappas
from steatosis_tf.grades import GRADES


@dataclass(frozen=True)
class KappaInterval:
    """A kappa with its 95 % bootstrap interval; None where it is not defined."""

    estimate: float | None
    low: float | None
    high: float | None
    num_patients: int

    def __str__(self) -> str:
        if self.estimate is None:
            return f"not defined ({self.num_patients} patients, or one grade throughout)"
        return (
            f"{self.estimate:.3f} (95 % interval {self.low:.3f} to {self.high:.3f}, "
            f"{self.num_patients} patients)"
        )


def fleiss_kappa(labels: np.ndarray) -> float | None:
    """Agreement of several readers beyond chance (Fleiss 1971, doi 10.1037/h0031619).

    Args:
        labels: `(num_patients, num_readers)` int, 0 to 3; every reader graded every patient.

    Returns:
        kappa, at most 1; None with no patients, one reader, or a single grade throughout.
    """
    num_patients, num_readers = labels.shape
    if not num_patients or num_readers < 2:
        return None
    counts = (labels[:, :, None] == np.arange(len(GRADES))).sum(axis=1)
    observed = ((counts**2).sum(axis=1) - num_readers) / (num_readers * (num_readers - 1))
    expected = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (float(observed.mean()) - expected) / (1 - expected) if expected < 1 else None


def weighted_kappa(one: np.ndarray, other: np.ndarray, seed: int = 0) -> KappaInterval:
    """Quadratic-weighted kappa of two readers (Cohen 1968, doi 10.1037/h0026256).

    Args:
        one, other: `(num_patients,)` int, 0 to 3; one grade per patient and reader.
        seed: of the bootstrap, 2,000 draws of patients.
    """
    num = len(one)
    if not num:
        return KappaInterval(None, None, None, 0)
    cells = len(GRADES) ** 2
    table = np.bincount(one * len(GRADES) + other, minlength=cells)
    # Drawing patients with replacement is drawing cells of their joint table.
    draws = np.random.default_rng(seed).multinomial(num, table / num, size=2000)
    estimates = kappas(draws.reshape(-1, len(GRADES), len(GRADES)), 2)
    estimate = float(kappas(table.reshape(1, len(GRADES), len(GRADES)), 2)[0])
    if np.isnan(estimate):
        return KappaInterval(None, None, None, num)
    low, high = np.nanpercentile(estimates, [2.5, 97.5])
    return KappaInterval(estimate, float(low), float(high), num)
