"""Who is left out, by hand."""

import numpy as np
import pandas as pd
import pytest

from steatosis_tf.evaluation.clinical.subgroups import abstention_by_group
from steatosis_tf.grades import GRADES, SCORE_COLUMNS


def _patients(certainty):
    rest = (1 - np.asarray(certainty)) / 3
    table = pd.DataFrame({"patient_id": [f"P{k:02d}" for k in range(len(rest))]})
    table[list(SCORE_COLUMNS)] = np.stack([certainty, rest, rest, rest], axis=1)
    return table.assign(fold=0, grade=GRADES[0])


def test_least_certain_fifth_by_site():
    patients = _patients(np.linspace(0.4, 0.99, 30))  # P00 .. P05 are the least certain fifth
    sites = pd.DataFrame({"patient_id": patients["patient_id"],
                          "site": ["A"] * 12 + ["B"] * 15 + ["C"] * 3})  # fmt: skip
    found = abstention_by_group(patients, sites, "site")
    assert found["share"] == pytest.approx(6 / 30)
    a, b, c = found["groups"]
    # Wilson, 6 of 12, by hand: 0.5 -+ 1.96 sqrt(0.25 / 12 + 1.96^2 / 576) / (1 + 1.96^2 / 12)
    assert a["left_out"] == pytest.approx({"value": 0.5, "low": 0.25378, "high": 0.74622}, abs=1e-5)
    assert b["left_out"]["value"] == 0
    assert (c["num_patients"], c["suppressed"], c["left_out"]) == (3, "suppressed", None)


def test_ties_are_left_out_together():
    patients = _patients([0.5] * 10 + [0.9] * 10)
    sites = pd.DataFrame({"patient_id": patients["patient_id"], "site": "A"})
    assert abstention_by_group(patients, sites, "site")["share"] == 0.5
