"""Fit a bundle to the scanner at hand by patients of that place, and say what that changes.

Ranks of a score often hold on another scanner; its level, the cut-offs between grades and what
counts as unlike the training data do not. Three things are fitted anew, nothing else: a line from
the old score to the new one (two numbers, never falling, so ranks stay), the cut-offs and
thresholds on left-out new scores, and the distance from the training data on the local frames.
No TensorFlow.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score
from tqdm import tqdm

from steatosis_tf.cohort.manifest import frame_path, read_manifest
from steatosis_tf.deploy.bundle import Bundle, check_bundle_folder, is_bundle, open_bundle
from steatosis_tf.deploy.bundle_write import seal_again
from steatosis_tf.files import file_sha256
from steatosis_tf.grades import GRADES, label_of
from steatosis_tf.model.joint import JointModel, decide
from steatosis_tf.model.joint_fit import calibrate
from steatosis_tf.model.rules import (
    CumulativeLink,
    Novelty,
    fit_cumulative_link,
    fit_novelty,
    grey_spread,
)
from steatosis_tf.sources.images import read_frame

#: Fewer patients are refused; fewer than the second are named as few.
MIN_PATIENTS, ENOUGH_PATIENTS = 10, 20

_NUM_RESAMPLES, _NUM_LINKS, _INTERVAL = 1000, 200, (2.5, 97.5)
# Below, the old score says nothing about the local patients.
_MIN_SLOPE = 1e-3


@dataclass(frozen=True)
class _Local:
    """Local patients whom the model can score: one row each, sorted by id."""

    scores: np.ndarray
    targets: np.ndarray  # NaN where only grades are known
    labels: np.ndarray
    kinds: dict[str, int]  # how the model answered them as it was
    features: np.ndarray  # network features, one row per frame
    frame_patients: np.ndarray
    grey_spreads: np.ndarray  # of the same frames
    num_left_out: int


def recalibrate(
    model: str | Path | None, manifest_path: str | Path, output_dir: str | Path
) -> dict[str, Any]:
    """Write a bundle fitted to local patients.

    Args:
        model: bundle, folder or zip, or a run with one; None is the model that comes with the
            package.
        manifest_path: local patients with `grade`, best with `fat_percent` too: then the score is
            fitted, else the cut-offs alone.
        output_dir: folder of the new bundle; a zip is written beside it.

    Returns:
        what stands in the new bundle under `recalibration`: counts, the line, cut-offs and error
        before and after (left-out patients), 95 % intervals over patients.

    Raises:
        ValueError: if under 10 local patients can be scored, all have one grade, the model was
            recalibrated already, or its score does not rise with their fat.
    """
    table = read_manifest(manifest_path)
    if model is not None and is_bundle(Path(model) / "bundle"):
        model = Path(model) / "bundle"
    bundle = open_bundle(model)
    check_bundle_folder(output_dir, model)
    if "recalibration" in bundle.about:
        raise ValueError(
            "Expected a bundle as it was trained. Received: one that was recalibrated already. "
            f"Start from {bundle.about['recalibration']['from']}, with all local patients."
        )
    local = _local_patients(bundle, table, Path(manifest_path))
    _check(local)
    joint, left_out, line = _fitted(bundle.joint, local)
    says = {
        "from": bundle.name,
        "from_sha256": bundle.sha256,
        "manifest_sha256": file_sha256(manifest_path),
        "num_patients": len(local.labels),
        "num_frames": len(local.features),
        "num_left_out": local.num_left_out,
        "is_few": len(local.labels) < ENOUGH_PATIENTS,
        "by_grade": {grade: int((local.labels == at).sum()) for at, grade in enumerate(GRADES)},
        "score": line,
        "cut_offs": _cut_offs(bundle.joint, local, line),
        "answers_before": local.kinds,
        **_errors(bundle.joint, local, left_out),
    }
    name = f"{bundle.about['name']}-local"
    seal_again(bundle, output_dir, joint=joint, name=name, recalibration=says)
    return says


def _local_patients(bundle: Bundle, table: pd.DataFrame, manifest_path: Path) -> _Local:
    """Look at every frame; score every patient whatever the novelty of its frames."""
    blind = replace(bundle, joint=replace(bundle.joint, novelty=None))
    table = table.loc[(table["grade"] != "") & (table["patient_id"] != "")]
    rows, features, owners, spreads = [], [], [], []
    kinds: Counter[str] = Counter()
    groups = table.groupby("patient_id", sort=True)
    for patient, frames in tqdm(groups, "recalibrate", unit="patient", disable=None):
        looks = [
            bundle.look(row.frame_id, _frame(manifest_path, row.path, row.frame_id))
            for row in frames.itertuples()
        ]
        kinds[bundle.answer(str(patient), looks).kind] += 1
        seen = [look.picture for look in looks if look.picture is not None]
        if not seen:
            continue
        found = bundle.run(np.stack(seen))["features"]
        answer = blind.answer(str(patient), looks)
        first = frames.iloc[0]
        inputs = {
            part.name: np.array([[answer.features[name] for name in part.columns]])
            if part.columns
            else found.mean(axis=0, keepdims=True)
            for part in bundle.joint.parts
        }
        score = float(bundle.joint.score(inputs)[0])
        rows.append((score, first["fat_percent"], first["grade"]))
        features.append(found)
        owners += [str(patient)] * len(found)
        spreads += [grey_spread(picture) for picture in seen]
    scores, fat, grades = zip(*rows, strict=True) if rows else ((), (), ())
    labels = np.array([label_of(grade) for grade in grades], int)
    percent = np.array(fat, float)
    targets = np.sqrt(percent) if bundle.joint.target == "sqrt_fat" else labels.astype(float)
    return _Local(
        np.array(scores), targets, labels, dict(kinds),
        np.concatenate(features) if features else np.empty((0, 0)), np.array(owners),
        np.array(spreads), len(groups) - len(rows),
    )  # fmt: skip


def _frame(manifest_path: Path, path: str, frame_id: str) -> np.ndarray:
    try:
        return read_frame(frame_path(manifest_path, path))
    except ValueError as error:
        raise ValueError(
            f"Expected every frame of {manifest_path.name}. Received: frame_id={frame_id}: "
            f"{error}. Put the file back, or make the manifest again."
        ) from error


def _check(local: _Local) -> None:
    if len(local.labels) < MIN_PATIENTS:
        raise ValueError(
            f"Expected at least {MIN_PATIENTS} local patients with a grade and a frame that can be "
            f"scored, better {ENOUGH_PATIENTS}. Received: {len(local.labels)}, and "
            f"{local.num_left_out} whose frames cannot be. Collect more."
        )
    if len(np.unique(local.labels)) < 2:
        raise ValueError(
            "Expected local patients of at least two grades. Received: one, from which no cut-off "
            "can be read."
        )


def _fitted(old: JointModel, local: _Local) -> tuple[JointModel, np.ndarray, dict[str, Any] | None]:
    """The new rule, new scores of left-out patients, and the line with its intervals."""
    scores, targets = local.scores, local.targets
    has_fat = bool(np.isfinite(targets).all())
    slope, offset = _line(scores, targets if has_fat else local.labels)
    if slope <= _MIN_SLOPE:
        raise ValueError(
            "Expected a score that rises with the local patients' fat. Received: a slope of "
            f"{slope:.3g} over {len(scores)} patients. The model says nothing here: check the "
            "labels and the view, or train another."
        )
    left_out, line = scores, None
    if not has_fat:
        slope, offset = 1.0, 0.0
    else:
        rest = [np.arange(len(scores)) != at for at in range(len(scores))]
        lines = [_line(scores[others], targets[others]) for others in rest]
        left_out = np.array([score * a + b for score, (a, b) in zip(scores, lines, strict=True)])
        drawn = np.array([_line(scores[rows], targets[rows]) for rows in _resamples(local)])
        line = {"slope": _interval(slope, drawn[:, 0]), "offset": _interval(offset, drawn[:, 1])}
    parts = tuple(
        replace(part, rule=replace(part.rule, weights=part.rule.weights * slope,
                                   intercept=part.rule.intercept * slope + offset))
        for part in old.parts
    )  # fmt: skip
    known_target = targets if line else left_out
    _, calibration = calibrate(
        np.array([f"{at}" for at in range(len(scores))]), left_out, known_target, local.labels
    )
    if line is None:  # nothing was learned of how far the score is off
        calibration = replace(calibration, half_width=old.calibration.half_width)
    novelty = old.novelty and _local_novelty(old.novelty, local)
    joint = replace(old, parts=parts, link=_link(left_out, local.labels, _cuts(old.link)),
                    calibration=calibration, novelty=novelty)  # fmt: skip
    return joint, left_out, line


def _cuts(link: CumulativeLink) -> np.ndarray:
    """Scores `(3,)` at which each grade or worse becomes as likely as not."""
    return np.array(link.cuts) / link.slope


def _link(scores: np.ndarray, labels: np.ndarray, known: np.ndarray) -> CumulativeLink:
    """Cut-offs of local patients; `known` ones where all of them lie on one side."""
    link = fit_cumulative_link(scores, labels)
    cuts = list(_cuts(link))
    for place in range(len(cuts)):
        if labels.max() <= place:
            cuts[place] = max(cuts[place - 1], known[place])
    for place in reversed(range(len(cuts))):
        if labels.min() > place:
            cuts[place] = min(cuts[place + 1], known[place])
    first, second, third = (float(link.slope * cut) for cut in cuts)
    return replace(link, cuts=(first, second, third))


def _local_novelty(old: Novelty, local: _Local) -> Novelty:
    """Distance from the local patients; what knows livers refuses none of their frames."""
    known_odds, livers = old.log_odds(local.features), old.livers
    if livers:
        farthest = float(livers.distance(local.features).max())
        livers = replace(livers, score_limit=max(livers.score_limit, farthest))
    return replace(
        fit_novelty(local.features, local.frame_patients.tolist(), local.grey_spreads),
        liver_weights=old.liver_weights,
        liver_intercept=old.liver_intercept + max(0.0, -float(known_odds.min())),
        livers=livers,
    )


def _line(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Slope, not below 0, and offset of the line that comes closest to the targets."""
    if np.ptp(scores) == 0:
        return 0.0, float(targets.mean())
    slope = max(float(np.polyfit(scores, targets, 1)[0]), 0.0)
    return slope, float(targets.mean() - slope * scores.mean())


def _cut_offs(
    old: JointModel, local: _Local, line: dict[str, Any] | None
) -> list[dict[str, float]]:
    """Old scores at which each grade or worse becomes as likely as not, before and after."""
    known = _cuts(old.link)
    if line:  # they hold for new scores
        known = (known - line["offset"]["value"]) / line["slope"]["value"]
    drawn = np.array(
        [
            _cuts(_link(local.scores[rows], local.labels[rows], known))
            for rows in _resamples(local)[:_NUM_LINKS]
        ]
    )
    after = _cuts(_link(local.scores, local.labels, known))
    return [
        {"before": float(before), **_interval(value, drawn[:, at])}
        for at, (before, value) in enumerate(zip(_cuts(old.link), after, strict=True))
    ]


def _errors(old: JointModel, local: _Local, left_out: np.ndarray) -> dict[str, list[float]]:
    """Before and after; after, each patient is read by a line and cut-offs of the others."""
    rows, labels = np.arange(len(left_out)), local.labels
    known = _cuts(old.link)
    links = [_link(left_out[rows != at], labels[rows != at], known) for at in rows]
    after = [link.probabilities(left_out[[at]])[0] for at, link in enumerate(links)]
    chances = old.link.probabilities(local.scores), np.array(after)
    graded = [decide(one, old.decision_rule) for one in chances]
    grades = list(range(len(GRADES)))
    says = {
        "accuracy": [float((one == labels).mean()) for one in graded],
        "quadratic_kappa": [
            float(cohen_kappa_score(labels, one, labels=grades, weights="quadratic"))
            for one in graded
        ],
    }
    if np.isfinite(local.targets).all():
        pair = local.scores, left_out
        says["score_error"] = [float(np.abs(one - local.targets).mean()) for one in pair]
    return says


def _resamples(local: _Local) -> list[np.ndarray]:
    """Rows of patients drawn with replacement, two grades at least and scores that vary."""
    num = len(local.labels)
    drawn = np.random.default_rng(0).integers(0, num, (_NUM_RESAMPLES, num))
    scores, labels = local.scores, local.labels
    return [rows for rows in drawn if np.ptp(labels[rows]) > 0 and np.ptp(scores[rows]) > 0]


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(drawn, _INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}
