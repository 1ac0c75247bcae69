"""Does the model serve everybody? Metrics with intervals for every value of a covariate.

Small groups are suppressed rather than printed: three patients say nothing about a scanner, and
may be recognised. Gaps between groups are looked for after the fact, so their intervals are
widened for the number of pairs looked at (Bonferroni), and the text says how many that were.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from steatosis_tf.evaluation.covariate_groups import (
    SEVERAL,
    UNKNOWN,
    group_order,
    group_patients,
)
from steatosis_tf.evaluation.intervals import (
    MAX_UNDEFINED_SHARE,
    bootstrap_intervals,
    percentile_interval,
)
from steatosis_tf.evaluation.resampling import bootstrap_weights, code_patients
from steatosis_tf.grades import GRADES

#: Metrics shown per group, as named by `intervals.bootstrap_intervals`.
SHOWN_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "ordinal.quadratic_kappa",
    "ordinal.mean_absolute_error",
    "ordinal.auc_at_least_mild",
)

_LEAST_IN_TAIL = 5


def subgroup_metrics(
    patient_scores: pd.DataFrame,
    covariates: pd.DataFrame,
    column: str,
    min_patients: int = 10,
    *,
    bands: Sequence[float] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of each group of patients, and the gaps between groups.

    Args:
        patient_scores: patient score table, see `scores.py`.
        covariates: one or more rows per patient (a manifest will do): `patient_id` and `column`.
            A patient without a value goes to the group "unknown", one with several to the group
            "several values"; neither enters the gaps.
        column: covariate, for example sex, age, bmi, scanner, site.
        min_patients: groups with fewer get their count only.
        bands: lower edges that turn a column of numbers into bands; those of `BANDS` if None.
        num_resamples: bootstrap resamples of each group.
        seed: of the bootstrap.

    Returns:
        Ready for JSON: `column`, `min_patients`, `groups` (each `value`, `num_patients`,
        `patients_per_grade`, `suppressed` with the reason or None, `metrics` name -> `value, low,
        high, note`), `gaps` (each `metric`, groups `higher` and
        `lower`, `gap, low, high`), `num_compared`
        pairs, `statement` in plain words.

    Raises:
        ValueError: if the column or a scored patient is missing from `covariates`, if the scores
            cannot be evaluated, or if the column has over 12 values and no bands.
    """
    if min_patients < 2:
        raise ValueError(
            f"Expected min_patients of 2 or more. Received: min_patients={min_patients}."
        )
    coded = code_patients(patient_scores)  # refuses scores that cannot be evaluated
    group_of = group_patients(np.asarray(coded.patient_ids), covariates, column, bands)
    groups, tables = [], {}
    for value in group_order(group_of):
        members = group_of.index[group_of == value]
        rows = patient_scores[patient_scores["patient_id"].astype(str).isin(members)]
        group = _group(value, rows, min_patients, num_resamples, seed)
        groups.append(group)
        if group["suppressed"] is None and value not in (UNKNOWN, SEVERAL):
            tables[value] = rows
    gaps, num_compared = _gaps(groups, tables, num_resamples, seed)
    return {
        "column": column,
        "min_patients": min_patients,
        "groups": groups,
        "gaps": gaps,
        "num_compared": num_compared,
        "statement": _statement(column, groups, gaps, num_compared),
    }


def _group(
    value: str, rows: pd.DataFrame, min_patients: int, num_resamples: int, seed: int
) -> dict[str, Any]:
    num_patients = rows["patient_id"].nunique()
    grades = rows.drop_duplicates("patient_id")["grade"]
    group: dict[str, Any] = {
        "value": value,
        "num_patients": num_patients,
        "patients_per_grade": {grade: int((grades == grade).sum()) for grade in GRADES},
        "suppressed": None,
        "metrics": {},
    }
    if num_patients < min_patients:
        group["suppressed"] = (
            f"{num_patients} {'patient' if num_patients == 1 else 'patients'}, fewer than "
            f"{min_patients}: too few to state a result"
        )
        return group
    found = bootstrap_intervals(rows, num_resamples=num_resamples, seed=seed)
    group["metrics"] = {
        name: {key: found[name][key] for key in ("value", "low", "high", "note")}
        for name in SHOWN_METRICS
    }
    return group


def _gaps(
    groups: list[dict[str, Any]], tables: dict[str, pd.DataFrame], num_resamples: int, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """Largest difference between two groups for each metric, widened for all pairs looked at."""
    values = {group["value"]: group["metrics"] for group in groups}
    pairs = {
        name: [
            pair
            for pair in combinations(tables, 2)
            if all(values[group][name]["value"] is not None for group in pair)
        ]
        for name in SHOWN_METRICS
    }
    num_compared = sum(map(len, pairs.values()))
    replicates = {
        group: _replicates(rows, num_resamples, [seed, place])
        for place, (group, rows) in enumerate(tables.items())
        if num_compared
    }
    gaps = []
    for name, candidates in pairs.items():
        if not candidates:
            continue
        distance = {a_b: abs(values[a_b[0]][name]["value"] - values[a_b[1]][name]["value"])
                    for a_b in candidates}  # fmt: skip
        widest = max(distance, key=lambda pair: distance[pair])
        high, low = sorted(widest, key=lambda group: values[group][name]["value"], reverse=True)
        differences = replicates[high][name] - replicates[low][name]
        bounds = _bounds(distance[widest], differences, 0.05 / num_compared)
        gaps.append(
            {"metric": name, "higher": high, "lower": low, "gap": distance[widest]}
            | dict(zip(("low", "high"), bounds, strict=True))
        )
    return gaps, num_compared


def _bounds(gap: float, differences: np.ndarray, error_rate: float) -> list[float] | list[None]:
    """Interval of a difference; none where too many resamples lack the metric, as in intervals."""
    defined = differences[~np.isnan(differences)]
    if len(defined) < (1 - MAX_UNDEFINED_SHARE) * len(differences):
        return [None, None]
    if error_rate / 2 * len(defined) >= _LEAST_IN_TAIL:
        return percentile_interval(defined, 1 - error_rate)
    # So few resamples lie beyond so far a quantile that their spread is the better witness.
    half = float(ndtri(1 - error_rate / 2) * defined.std(ddof=1))
    return [gap - half, gap + half]


def _replicates(rows: pd.DataFrame, num_resamples: int, seed: list[int]) -> dict[str, np.ndarray]:
    table = code_patients(rows)
    rng = np.random.default_rng(seed)
    return table.metrics(bootstrap_weights(table.grade, num_resamples, rng))


def _statement(
    column: str, groups: list[dict[str, Any]], gaps: list[dict[str, Any]], num_compared: int
) -> str:
    shown = [group for group in groups if group["suppressed"] is None]
    hidden = len(groups) - len(shown)
    text = f"By {column}: {len(shown)} groups shown"
    text += f", {hidden} with too few patients suppressed. " if hidden else ". "
    if not num_compared:
        return text + "No two groups are large enough to be compared."
    clear = [gap for gap in gaps if gap["low"] is not None and gap["low"] > 0]
    text += (
        f"{num_compared} differences were looked at; one in twenty would stand out by chance, so "
        f"the intervals of the gaps are widened to {100 * (1 - 0.05 / num_compared):.2f} % each "
        "(Bonferroni), while those of single groups are not. "
    )
    if clear:
        names = ", ".join(f"{gap['metric']} ({gap['higher']} over {gap['lower']})" for gap in clear)
        return text + f"Gaps that exclude 0: {names}."
    return text + "No gap excludes 0; with groups this small that does not show there is none."
