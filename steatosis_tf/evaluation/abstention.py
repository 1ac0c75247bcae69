"""Whom abstention would leave to a reader: the share of each group among the least certain."""

from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.evaluation.covariate_groups import group_order, group_patients
from steatosis_tf.evaluation.proportions import wilson_interval
from steatosis_tf.evaluation.scores import labels_and_probabilities


def abstention_by_group(
    patient_scores: pd.DataFrame,
    covariates: pd.DataFrame,
    column: str,
    *,
    share: float = 0.2,
    min_patients: int = 10,
) -> dict[str, Any]:
    """Share of each group that is left out when the least certain patients are.

    Args:
        patient_scores: patient score table; certainty is the probability of the predicted grade.
        covariates: one or more rows per patient: `patient_id` and `column`.
        column: covariate, see `covariate_groups.group_patients`.
        share: share of all patients to leave out, 0 to 1; patients who tie with the last one left
            out are left out too.
        min_patients: groups with fewer get their count only.

    Returns:
        `column`, `share` (reached), `groups`: each `value`, `num_patients`, `suppressed` (reason
        or None) and `left_out` {value, low, high} with Wilson's interval, or None.

    Raises:
        ValueError: if scores or covariates are not as above, or share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"Expected share between 0 and 1. Received: share={share}.")
    _, scores = labels_and_probabilities(patient_scores)
    certainty = scores.max(axis=1)
    last = np.sort(certainty)[max(0, int(np.ceil(share * len(certainty))) - 1)]
    left_out = certainty <= last
    ids = patient_scores["patient_id"].astype(str).to_numpy(str)
    group_of = group_patients(ids, covariates, column, None)
    value_of = group_of.loc[ids].to_numpy()
    groups = []
    for value in group_order(group_of):
        inside = value_of == value
        count, hits = int(inside.sum()), int(left_out[inside].sum())
        group: dict[str, Any] = {
            "value": value, "num_patients": count, "suppressed": None, "left_out": None,
        }  # fmt: skip
        if count < min_patients:
            group["suppressed"] = "suppressed"
        else:
            low, high = wilson_interval(hits, count)
            group["left_out"] = {"value": hits / count, "low": low, "high": high}
        groups.append(group)
    return {"column": column, "share": float(left_out.mean()), "groups": groups}
