"""Intervals of every metric against a plain loop over resamples with scikit-learn.

    python benchmarks/intervals.py

10,000 simulated frames of 1,000 patients, 2,000 resamples of whole patients. The plain loop gathers
the frames of the drawn patients and calls scikit-learn for one metric alone, the AUC of Mild or
worse over frames; a few of its resamples are measured, in turn with ours, and carried on to 2,000.
"""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from steatosis_tf.evaluation.metrics.intervals import DEFAULT_RESAMPLES, bootstrap_intervals
from steatosis_tf.grades import GRADES, SCORE_COLUMNS

NUM_PATIENTS = 1000
FRAMES_PER_PATIENT = 10
PLAIN_RESAMPLES = 50
ROUNDS = 2


def main() -> None:
    """Print the table."""
    scores = _scores()
    ours, plain = [], []
    for _ in range(ROUNDS):
        plain.append(_seconds(lambda: _plain(scores)) / PLAIN_RESAMPLES * DEFAULT_RESAMPLES)
        ours.append(_seconds(lambda: bootstrap_intervals(scores)))
    num_numbers = len(bootstrap_intervals(scores, num_resamples=100))
    print("| | CPU-s | per number |", "|---|---|---|", sep="\n")
    print(f"| plain loop, 1 number | {np.median(plain):.0f} | {np.median(plain):.1f} |")
    print(f"| ours, {num_numbers} numbers, BCa | {np.median(ours):.0f} | "
          f"{np.median(ours) / num_numbers:.2f} |")  # fmt: skip


def _scores() -> pd.DataFrame:
    """A frame table; a patient's frames are alike."""
    generator = np.random.default_rng(0)
    patient = np.repeat(np.arange(NUM_PATIENTS), FRAMES_PER_PATIENT)
    grade = patient % len(GRADES)
    place = grade + generator.normal(0, 0.8, NUM_PATIENTS)[patient]
    place = place + generator.normal(0, 0.3, len(patient))
    shares = np.exp(-((np.arange(len(GRADES)) - place[:, None]) ** 2))
    table = pd.DataFrame(
        {
            "frame_id": [f"{row:06d}" for row in range(len(patient))],
            "patient_id": [f"P{number:04d}" for number in patient],
            "fold": 0,
            "grade": np.asarray(GRADES)[grade],
            "fat_percent": grade * 25.0 + patient % 5,
        }
    )
    table[list(SCORE_COLUMNS)] = shares / shares.sum(axis=1, keepdims=True)
    return table


def _plain(scores: pd.DataFrame) -> None:
    generator = np.random.default_rng(0)
    steatosis = (scores["grade"] != GRADES[0]).to_numpy()
    score = 1 - scores[SCORE_COLUMNS[0]].to_numpy()
    rows = np.arange(len(scores)).reshape(NUM_PATIENTS, FRAMES_PER_PATIENT)
    for _ in range(PLAIN_RESAMPLES):
        drawn = rows[generator.integers(0, NUM_PATIENTS, NUM_PATIENTS)].ravel()
        roc_auc_score(steatosis[drawn], score[drawn])


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
