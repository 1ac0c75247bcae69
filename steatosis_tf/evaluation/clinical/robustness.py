"""How steady a grade is when its frames are disturbed at stated strengths.

A perturbation does to a ROI what another scanner, setting or hand does. Every one takes ROI frames
`(n, height, width, 1)` uint8 and returns new ones of the same shape; strength 0 returns the same
pixels. Pixels that are 0 lie outside the sector (or under the scanner's noise floor) and stay 0, so
that no perturbation draws where the model expects nothing; `roi_shift_*` and `depth_crop` move that
border with the picture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import ROI_COLUMNS, frame_path, pixels_sha256
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals
from steatosis_tf.evaluation.metrics.registry import shown_in
from steatosis_tf.evaluation.metrics.scores import patient_scores
from steatosis_tf.evaluation.metrics.weighted import expected_grades
from steatosis_tf.evaluation.report.run import RunRecord, read_run
from steatosis_tf.files import write_csv
from steatosis_tf.grades import GRADES, SCORE_COLUMNS
from steatosis_tf.roi.anatomy.overlays import paint_out
from steatosis_tf.roi.sector.find import SECTOR_COLUMN, sector_fan
from steatosis_tf.roi.views import (
    INPUT_SIZE_PX,
    VIEW_COLUMN,
    Rectangle,
    depth_length_px,
    input_shape,
    model_input,
)
from steatosis_tf.sources.images import read_frame

#: Grey levels of a B-mode picture span about this many decibels (usual display setting).
DYNAMIC_RANGE_DB = 60.0


def gain(rois: np.ndarray, strength_db: float, seed: int = 0) -> np.ndarray:
    """Overall gain: in a log-compressed picture, an offset of 255 / 60 grey levels per dB."""
    return _inside(rois, rois.astype(np.float32) + strength_db * 255.0 / DYNAMIC_RANGE_DB)


def contrast(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """Dynamic range: distances from mid-grey 128 grow (above 0) or shrink (below 0)."""
    factor = 1 + strength_percent / 100
    return _inside(rois, 128 + factor * (rois.astype(np.float32) - 128))


def speckle(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """Multiplicative noise of this standard deviation, one grain about 2 px wide.

    The noise of a frame depends on the seed and on the frame's own pixels, not on its place in
    the batch.
    """
    noisy = rois.astype(np.float32)
    for roi in noisy:
        key = int(roi.sum()) % (2**32)
        grain = np.random.default_rng([seed, key]).normal(size=roi.shape[:2]).astype(np.float32)
        grain = cv2.GaussianBlur(grain, (0, 0), 0.8)
        roi *= 1 + strength_percent / 100 * (grain / grain.std())[..., None]
    return _inside(rois, noisy)


def blur(rois: np.ndarray, strength_px: float, seed: int = 0) -> np.ndarray:
    """Poorer focus: Gaussian of this standard deviation in px of the ROI."""
    if strength_px == 0:
        return rois.copy()
    # Divided by the blurred mask, so that the black surround does not darken the border.
    mask = (rois > 0).astype(np.float32)
    frames = [cv2.GaussianBlur(roi.astype(np.float32), (0, 0), strength_px) for roi in rois]
    weights = [cv2.GaussianBlur(inside, (0, 0), strength_px) for inside in mask]
    mean = np.stack(frames) / np.maximum(np.stack(weights), 1e-3)
    return _inside(rois, mean.reshape(rois.shape))


def depth_crop(rois: np.ndarray, strength_percent: float, seed: int = 0) -> np.ndarray:
    """A box that ends higher: the deepest part is left out and the rest stretched over the ROI."""
    height, width = rois.shape[1:3]
    keep = height - round(height * strength_percent / 100)
    area = cv2.INTER_LINEAR  # stretching, so there is nothing to average
    return np.stack([cv2.resize(roi[:keep], (width, height), interpolation=area) for roi in rois])[
        ..., None
    ]


def jpeg(rois: np.ndarray, strength_loss: float, seed: int = 0) -> np.ndarray:
    """JPEG at quality 100 - strength; strength 0 leaves the pixels uncompressed."""
    if strength_loss == 0:
        return rois.copy()
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(100 - strength_loss)]
    stored = [cv2.imencode(".jpg", roi, quality)[1] for roi in rois]
    decoded = [np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)) for data in stored]
    return _inside(rois, np.stack(decoded)[..., None])


@dataclass(frozen=True)
class Perturbation:
    """A perturbation with the unit of its strength and the strengths that a report shows.

    `apply` changes ROIs by a strength and a seed; None where frames are cropped anew instead.
    """

    apply: Callable[[np.ndarray, float, int], np.ndarray] | None
    unit: str
    strengths: tuple[float, ...]


PERTURBATIONS = {
    "gain": Perturbation(gain, "dB", (-12, -6, -3, 3, 6, 12)),
    "contrast": Perturbation(contrast, "percent", (-40, -20, 20, 40)),
    "speckle": Perturbation(speckle, "percent", (5, 10, 20, 40)),
    "blur": Perturbation(blur, "px", (0.5, 1, 2, 4)),
    "depth_crop": Perturbation(depth_crop, "percent", (10, 20, 30)),
    "roi_shift_depth": Perturbation(None, "px", (-32, -16, 16, 32)),
    "roi_shift_lateral": Perturbation(None, "px", (-32, -16, 16, 32)),
    "jpeg": Perturbation(jpeg, "100 - quality", (10, 30, 50, 70, 90)),
}


def _inside(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rounded to uint8; what was inside (above 0) stays above 0, what was outside stays 0."""
    return np.where(before > 0, np.clip(np.rint(after), 1, 255), 0).astype(np.uint8)


#: Frames disturbed and scored at once; 256 of 224 x 224 px are 13 MB.
_CHUNK = 256

#: Metrics of the curves, name in the table -> name in `METRICS`.
CURVES = {name.rpartition(".")[2]: name for name in shown_in("groups")}

# Down and right, per px of strength.
_SHIFTS = {"roi_shift_depth": (1, 0), "roi_shift_lateral": (0, 1)}


def robustness_curves(
    predict: Callable[[np.ndarray], np.ndarray],
    rois: np.ndarray,
    labels: np.ndarray,
    patient_ids: np.ndarray,
    *,
    shifted: Callable[[float, float], np.ndarray],
    perturbations: Mapping[str, Perturbation] = PERTURBATIONS,
    rule: str = "mean",
    num_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Patient-level metrics of a model against the strength of each perturbation.

    Args:
        predict: `(n, height, width, 1)` uint8 -> `(n, 4)` probabilities. Called on chunks of
            at most 256 frames, once per perturbation and strength and once undisturbed.
        rois: `(n, height, width, 1)` uint8 test frames, 0 outside the sector.
        labels: `(n,)` int 0 to 3.
        patient_ids: `(n,)`; frames of a patient are joined by `rule`, one of `answer.AGGREGATIONS`.
        shifted: ROI frames with their boxes moved by so many px of the ROI (down, right), cropped
            anew from the full frames.
        perturbations: name -> `Perturbation`.
        num_resamples: bootstrap resamples of each interval.
        seed: of both kinds of draws.

    Returns:
        Long table `perturbation, strength, unit, metric, value, low, high, num_patients, reason`;
        each perturbation also has a row of strength 0. Beside the metrics of `CURVES`, with their
        95 % intervals over patients, there are two that need no reference: `mean_shift`, the mean
        change of a patient's expected grade (in grades, above 0 is towards severe), and
        `changed_share`, the proportion of patients whose grade changes. An undefined value or
        interval is None, and `reason` says why.
    """
    ids = [f"{row:08d}" for row in range(len(rois))]
    frames = pd.DataFrame({"frame_id": ids, "patient_id": np.asarray(patient_ids).astype(str)})
    frames["grade"] = [GRADES[int(label)] for label in labels]
    undisturbed = _patients(frames, _scores(predict, rois), rule)
    baseline = _measured(undisturbed, undisturbed, num_resamples, seed)
    rows: list[dict[str, Any]] = []
    for name, perturbation in perturbations.items():
        for strength in sorted({0.0, *map(float, perturbation.strengths)}):
            measured = baseline
            if strength:
                if perturbation.apply is None:
                    down, right = _SHIFTS[name]
                    scores = _scores(predict, shifted(down * strength, right * strength))
                else:
                    scores = _scores(predict, rois, (perturbation.apply, strength, seed))
                patients = _patients(frames, scores, rule)
                measured = _measured(patients, undisturbed, num_resamples, seed)
            place = {"perturbation": name, "strength": strength, "unit": perturbation.unit}
            rows.extend(place | row for row in measured)
    return pd.DataFrame(rows)


def _scores(
    predict: Callable[[np.ndarray], np.ndarray],
    rois: np.ndarray,
    disturb: tuple[Callable[[np.ndarray, float, int], np.ndarray], float, int] | None = None,
) -> np.ndarray:
    parts = []
    for start in range(0, len(rois), _CHUNK):
        chunk = rois[start : start + _CHUNK]
        if disturb is not None:
            apply, strength, seed = disturb
            chunk = apply(chunk, strength, seed)
        parts.append(np.asarray(predict(chunk), np.float64))
    return np.concatenate(parts)


def _patients(frames: pd.DataFrame, scores: np.ndarray, rule: str) -> pd.DataFrame:
    return patient_scores(frames.assign(**dict(zip(SCORE_COLUMNS, scores.T, strict=True))), rule)


def _measured(
    patients: pd.DataFrame, undisturbed: pd.DataFrame, num_resamples: int, seed: int
) -> list[dict[str, Any]]:
    now, before = (
        expected_grades(table[list(SCORE_COLUMNS)].to_numpy()) for table in (patients, undisturbed)
    )
    changed = (patients["predicted"] != undisturbed["predicted"]).mean()
    rows: list[dict[str, Any]] = [
        {"metric": metric, "value": float(value), "low": None, "high": None, "reason": ""}
        for metric, value in (("mean_shift", (now - before).mean()), ("changed_share", changed))
    ]
    found = bootstrap_intervals(patients, num_resamples=num_resamples, seed=seed)
    for metric, name in CURVES.items():
        entry = {key: found[name][key] for key in ("value", "low", "high")}
        rows.append({"metric": metric, **entry, "reason": found[name]["note"] or ""})
    return [row | {"num_patients": len(patients)} for row in rows]


def write_robustness(
    run_dir: str | Path,
    predict: Callable[[np.ndarray], np.ndarray],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Disturb the test frames of a hold-out run, grade them, and write `robustness.csv`.

    Shifts of the ROI are real ones: the box, or the fan of beam space, is moved in the full frame
    and the ROI is cut again.

    Args:
        run_dir: run directory whose manifest still leads to the frames.
        predict: the run's model, `(n, height, width, 1)` uint8 -> `(n, 4)` probabilities.
        num_resamples: bootstrap resamples of each interval.
        seed: of the random perturbations and the bootstrap.

    Returns:
        path of `robustness.csv`, the table of `robustness.robustness_curves`.

    Raises:
        ValueError: if the run is cross-validated (its exported model has learned from every
            patient, so no frame of the run can test it), if a file of the run is absent, or if a
            frame cannot be read.
    """
    run = read_run(run_dir)
    rows = _test_rows(run)
    frames = [_Source(run.run_dir / "manifest.csv", row) for _, row in rows.iterrows()]

    def shifted(down_px: float, right_px: float) -> np.ndarray:
        return np.stack([frame.roi(down_px, right_px) for frame in frames])[..., None]

    table = robustness_curves(
        predict,
        shifted(0, 0),
        rows["grade"].map(GRADES.index).to_numpy(),
        rows["patient_id"].to_numpy(),
        shifted=shifted,
        rule=run.rule,
        num_resamples=num_resamples,
        seed=seed,
    )
    path = run.run_dir / "robustness.csv"
    write_csv(table, path)
    return path


def _test_rows(run: RunRecord) -> pd.DataFrame:
    if run.num_folds != 1:
        raise ValueError(
            f"Expected a hold-out run. Received: {run.num_folds} folds in split.csv. The exported "
            "model of a cross-validated run has learned from every patient; disturb the test "
            "frames of a hold-out run instead."
        )
    if run.manifest is None or run.frame_scores is None:
        raise ValueError(
            f"Expected manifest.csv and frame_scores.csv in the run. Received: "
            f"{'; '.join(run.faults) or 'one of them is absent'}."
        )
    scored = run.manifest["frame_id"].isin(run.frame_scores["frame_id"])
    rows = run.manifest[scored & run.manifest["roi_height"].notna()]
    if rows.empty:
        raise ValueError("Expected scored frames with a ROI in manifest.csv. Received: none.")
    return rows


class _Source:
    """One frame, kept grey and masked, from which its ROI is cut at any place."""

    def __init__(self, manifest_path: Path, row: pd.Series) -> None:
        frame = read_frame(frame_path(manifest_path, row["path"]))
        self._fan = sector_fan(frame, pixels_sha256(frame), row.get(SECTOR_COLUMN, ""))
        mask = self._fan.mask(frame.shape[:2])
        self._frame = paint_out(frame, mask) * mask
        self._box = Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
        self._view = row.get(VIEW_COLUMN, "")

    def roi(self, down_px: float, right_px: float) -> np.ndarray:
        """The ROI `(height, width)` moved by px of the ROI; a box is held inside the frame."""
        if self._view:
            # At half the depth a px of beam space is as long in both directions, or nearly so.
            px = depth_length_px(self._fan) / input_shape(self._view)[0]
            moved_fan = self._fan.moved(right_px * px, down_px * px)
            return model_input(self._frame, moved_fan, None, self._view)
        height, width = self._frame.shape
        down = round(down_px * self._box.height / INPUT_SIZE_PX)
        right = round(right_px * self._box.width / INPUT_SIZE_PX)
        top = min(max(self._box.top + down, 0), height - self._box.height)
        left = min(max(self._box.left + right, 0), width - self._box.width)
        moved = Rectangle(top, left, self._box.height, self._box.width)
        return model_input(self._frame, self._fan, moved)
