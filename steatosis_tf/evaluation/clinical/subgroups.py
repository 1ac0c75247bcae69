"""Does the model serve everybody? Metrics with intervals for every value of a covariate.

Small groups are suppressed rather than printed: three patients say nothing about a scanner, and
may be recognised. Gaps between groups are looked for after the fact, so their intervals are
widened for the number of pairs looked at (Bonferroni), and the text says how many that were.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from steatosis_tf.evaluation.metrics.intervals import (
    MAX_UNDEFINED_SHARE,
    bootstrap_intervals,
    percentile_interval,
    proportion,
)
from steatosis_tf.evaluation.metrics.registry import shown_in
from steatosis_tf.evaluation.metrics.resampling import bootstrap_weights, code_patients
from steatosis_tf.evaluation.metrics.scores import labels_and_probabilities
from steatosis_tf.grades import GRADES

#: Metrics shown per group.
SHOWN_METRICS = tuple(shown_in("groups"))
#: A group with fewer patients gets its count only.
MIN_PATIENTS = 10

_LEAST_IN_TAIL = 5


def subgroup_metrics(
    patient_scores: pd.DataFrame,
    covariates: pd.DataFrame,
    column: str,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of each group of patients, and the gaps between groups.

    Args:
        patient_scores: patient score table, see `scores.py`.
        covariates: one or more rows per patient (a manifest will do): `patient_id` and `column`.
            A patient without a value goes to the group "unknown", one with several to the group
            "several values"; neither enters the gaps.
        column: covariate, for example sex, scanner, site; numbers of `BANDS` are put into bands.
            Groups with fewer than `MIN_PATIENTS` get their count only.
        num_resamples: bootstrap resamples of each group.
        seed: of the bootstrap.

    Returns:
        Ready for JSON: `column`, `min_patients`, `groups` (each `value`, `num_patients`,
        `patients_per_grade`, `suppressed` with the reason or None, `metrics` name -> `value, low,
        high, note`), `gaps` (each `metric`, groups `higher` and
        `lower`, `gap, low, high`), `num_compared`
        pairs, `statement` in plain words.

    Raises:
        ValueError: if a scored patient is missing from `covariates`, the scores cannot be
            evaluated, or the column has over 12 values.
    """
    coded = code_patients(patient_scores)  # refuses scores that cannot be evaluated
    group_of = group_patients(np.asarray(coded.patient_ids), covariates, column)
    groups, tables = [], {}
    for value in group_order(group_of):
        members = group_of.index[group_of == value]
        rows = patient_scores[patient_scores["patient_id"].astype(str).isin(members)]
        group = _group(value, rows, num_resamples, seed)
        groups.append(group)
        if group["suppressed"] is None and value not in (UNKNOWN, SEVERAL):
            tables[value] = rows
    gaps, num_compared = _gaps(groups, tables, num_resamples, seed)
    return {
        "column": column,
        "min_patients": MIN_PATIENTS,
        "groups": groups,
        "gaps": gaps,
        "num_compared": num_compared,
        "statement": _statement(column, groups, gaps, num_compared),
    }


def _group(value: str, rows: pd.DataFrame, num_resamples: int, seed: int) -> dict[str, Any]:
    num_patients = rows["patient_id"].nunique()
    grades = rows.drop_duplicates("patient_id")["grade"]
    group: dict[str, Any] = {
        "value": value,
        "num_patients": num_patients,
        "patients_per_grade": {grade: int((grades == grade).sum()) for grade in GRADES},
        "suppressed": None,
        "metrics": {},
    }
    if num_patients < MIN_PATIENTS:
        group["suppressed"] = (
            f"{num_patients} {'patient' if num_patients == 1 else 'patients'}, fewer than "
            f"{MIN_PATIENTS}: too few to state a result"
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
    text = f"By {column}: {len(shown)} group{'s' * (len(shown) != 1)} shown"
    text += f", {hidden} with too few patients suppressed. " if hidden else ". "
    if not num_compared:
        return text + "No two groups are large enough to be compared."
    clear = [gap for gap in gaps if gap["low"] is not None and gap["low"] > 0]
    compared = {gap[side] for gap in gaps for side in ("higher", "lower")}
    lacking = [group["value"] for group in shown if 0 in group["patients_per_grade"].values()]
    partial = [value for value in lacking if value in compared]
    if partial:
        text += (
            f"Without patients of every grade: {', '.join(partial)}; a gap to others may be of the "
            "grades, not of the model. "
        )
    text += (
        f"{num_compared} differences were looked at; one in twenty would stand out by chance, so "
        f"the intervals of the gaps are widened to {100 * (1 - 0.05 / num_compared):.2f} % each "
        "(Bonferroni), while those of single groups are not. "
    )
    if clear:
        names = ", ".join(f"{gap['metric']} ({gap['higher']} over {gap['lower']})" for gap in clear)
        return text + f"Gaps that exclude 0: {names}."
    return text + "No gap excludes 0; with groups this small that does not show there is none."


#: Lower edges of the second and further bands of columns that are numbers: age in decades of
#: adults, body-mass index by WHO class.
BANDS: dict[str, tuple[float, ...]] = {"age": (40, 50, 60, 70), "bmi": (18.5, 25, 30, 35)}

UNKNOWN = "unknown"
SEVERAL = "several values"

#: A covariate with more values than this is a measurement, not a grouping.
_MAX_GROUPS = 12
# Proportion of the patients, the least certain, of whom it is asked which group they are from.
_LEFT_OUT = 0.2


def group_patients(patient_ids: np.ndarray, covariates: pd.DataFrame, column: str) -> pd.Series:
    """The group of each patient.

    Args:
        patient_ids: ids of the scored patients.
        covariates: one or more rows per patient: `patient_id` and `column`.
        column: covariate to group by.

    Returns:
        Group names, indexed by patient_id: `UNKNOWN` without a value, `SEVERAL` with more than one.

    Raises:
        ValueError: if a patient is missing, a banded column holds a text, or there are over 12
            groups.
    """
    known = covariates.assign(patient_id=covariates["patient_id"].astype(str))
    absent = sorted(set(patient_ids.tolist()) - set(known["patient_id"]))
    if absent:
        raise ValueError(
            f"Expected every scored patient in the covariates. Received: {len(absent)} missing, "
            f"first patient_id={absent[0]}. Use the manifest the run was made from."
        )
    values = _grouped_values(known[column], column)
    table = pd.DataFrame({"patient_id": known["patient_id"], "value": values})
    table = table[table["patient_id"].isin(patient_ids)].drop_duplicates()
    several = table["patient_id"].duplicated(keep=False)
    return (
        table.assign(value=table["value"].mask(several, SEVERAL))
        .drop_duplicates()
        .set_index("patient_id")["value"]
    )


def _grouped_values(values: pd.Series, column: str) -> pd.Series:
    text = values.astype("object").where(values.notna(), "").astype(str).str.strip()
    if column in BANDS:
        return _banded(text, column, BANDS[column])
    groups = text.mask(text == "", UNKNOWN)
    if groups.nunique() > _MAX_GROUPS:
        raise ValueError(
            f"Expected {column} to have at most {_MAX_GROUPS} values. Received: "
            f"{groups.nunique()}. It may be a number: only {' and '.join(BANDS)} have bands."
        )
    return groups


def _banded(text: pd.Series, column: str, edges: Sequence[float]) -> pd.Series:
    numbers = pd.to_numeric(text.mask(text == ""), errors="coerce").to_numpy(np.float64)
    wrong = np.isnan(numbers) & (text != "").to_numpy()
    if wrong.any():
        raise ValueError(
            f"Expected numbers in {column}. Received: {wrong.sum()} cells that are not, first "
            f"{text[wrong].iloc[0]!r}."
        )
    between = [f"{low:g} to under {high:g}" for low, high in pairwise(edges)]
    bands = [UNKNOWN, f"under {edges[0]:g}", *between, f"{edges[-1]:g} and over"]
    place = np.where(np.isnan(numbers), 0, 1 + np.digitize(numbers, edges))
    return pd.Series(np.array(bands, dtype=object)[place], index=text.index)


def group_order(group_of: pd.Series) -> list[str]:
    """Group names: bands by their number, others by name, the two leftover groups last."""

    def key(value: str) -> tuple[int, float, str]:
        numbers = [word for word in value.split() if word.replace(".", "", 1).isdigit()]
        leftover = value in (UNKNOWN, SEVERAL)
        first = float(numbers[0]) - 0.5 * value.startswith("under") if numbers else 0.0
        return int(leftover), first, value

    return sorted(set(group_of), key=key)


def abstention_by_group(
    patient_scores: pd.DataFrame, covariates: pd.DataFrame, column: str
) -> dict[str, Any]:
    """Proportion of each group that is left out when the least certain fifth of the patients is.

    Patients who tie with the last one left out are left out too. Groups of fewer than
    `MIN_PATIENTS` get their count only.

    Args:
        patient_scores: patient score table; certainty is the highest probability.
        covariates: one or more rows per patient: `patient_id` and `column`.
        column: covariate, see `group_patients`.

    Returns:
        `column`, `share` (reached), `groups`: each `value`, `num_patients`, `suppressed` (reason
        or None) and `left_out` {value, low, high} with Wilson's interval, or None.

    Raises:
        ValueError: if scores or covariates are not as above.
    """
    _, scores = labels_and_probabilities(patient_scores)
    certainty = scores.max(axis=1)
    last = np.sort(certainty)[max(0, int(np.ceil(_LEFT_OUT * len(certainty))) - 1)]
    left_out = certainty <= last
    ids = patient_scores["patient_id"].astype(str).to_numpy(str)
    group_of = group_patients(ids, covariates, column)
    value_of = group_of.loc[ids].to_numpy()
    groups = []
    for value in group_order(group_of):
        inside = value_of == value
        count, hits = int(inside.sum()), int(left_out[inside].sum())
        group: dict[str, Any] = {
            "value": value, "num_patients": count, "suppressed": None, "left_out": None,
        }  # fmt: skip
        if count < MIN_PATIENTS:
            group["suppressed"] = "suppressed"
        else:
            group["left_out"] = proportion(hits, count)
        groups.append(group)
    return {"column": column, "share": float(left_out.mean()), "groups": groups}
