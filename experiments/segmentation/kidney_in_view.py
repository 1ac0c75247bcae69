"""Can the kidney finder tell that no kidney is in view?

    python -m experiments.segmentation.kidney_in_view --data DATA_DIR --out runs/kidney_in_view

DATA_DIR holds `aul/` and `byra2018/` (see docs/data.md). Every frame of byra2018 shows a kidney,
and no label says which images of `aul` do. So the views without one are made: frames of byra2018
whose sector is cut off before the kidney, above it or beside it, with at least 35 % of the area
left. A logistic regression on the mean features around the patch that `kidney_head.py`
chooses tells the two apart, five folds by patient. The images of `aul`, other scanners and nearly
all without a kidney, take no part in it: the proportion of them that gets a box is the test.

27 variants were looked at (features of the patch and its surroundings, penalty, images of `aul` in
training) on 240 images of `aul`; the other 348 were first looked at when this was written down.

Time: 3 minutes on 2 cores. Result: see steatosis_tf/roi/anatomy/liver_unet_card.md.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from experiments.segmentation import kidney_head
from experiments.segmentation.kidney_head import (
    BOX_PX,
    NUM_FOLDS,
    Frame,
    fold_of,
    read_frames,
)
from steatosis_tf import tracking
from steatosis_tf.files import replacing, write_json
from steatosis_tf.roi.anatomy.kidney import (
    MIN_LIKENESS,
    MIN_QUALITY,
    best_patch,
    cortex_features,
    liver_in_input,
    surroundings,
)
from steatosis_tf.roi.anatomy.liver import liver_mask, network_input
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.sources.images import read_frame

# The kidney reaches further than the operators' boxes in it: half its width above, and beside it
# half its length.
ABOVE_PX, BESIDE_PX = 25, 90
MIN_AREA_LEFT = 0.35
# scikit-learn's C, the inverse of the penalty.
INVERSE_PENALTY = 0.03


@dataclass(frozen=True)
class Patch:
    """Where the finder points in one view, and what is there.

    Attributes:
        name, patient_id: of the frame.
        has_kidney: False where it is cut off.
        quality: of the place, 0 to 1.
        around: `(num_features,)` float32.
    """

    name: str
    patient_id: str
    has_kidney: bool
    quality: float
    around: np.ndarray


def view_without_boxes(name: str, patient_id: str, picture: np.ndarray, sector: Sector) -> Frame:
    crop, place = network_input(picture, sector.mask)
    liver = liver_in_input(liver_mask(picture, sector), place)
    nowhere = np.empty((0, 2))
    features = cortex_features(crop)[np.newaxis]
    return Frame(name, patient_id, nowhere, crop, place, liver, features, nowhere)


def cut_views(byra_dir: Path, frame: Frame) -> Iterator[Frame]:
    """The same frame with the sector cut off before the kidney, each way that leaves enough."""
    picture = read_frame(byra_dir / frame.path)
    sector = find_sector(picture)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    left, top = frame.centres.min(axis=0) - BOX_PX / 2
    right = frame.centres[:, 0].max() + BOX_PX / 2
    kept = (rows < top - ABOVE_PX, columns < left - BESIDE_PX, columns >= right + BESIDE_PX)
    for part in kept:
        rest = replace(sector, mask=sector.mask & part)
        if rest.mask.sum() >= MIN_AREA_LEFT * sector.mask.sum():
            yield view_without_boxes(frame.path, frame.patient_id, picture, rest)


def aul_views(aul_dir: Path) -> Iterator[Frame]:
    for path in sorted((aul_dir / "images").glob("*.jpg")):
        picture = read_frame(path)
        try:
            sector = find_sector(picture)
        except ValueError:
            continue
        yield view_without_boxes(path.stem, path.stem, picture, sector)


def patch_of(frame: Frame, weights: np.ndarray) -> Patch | None:
    logit = (frame.features[0] @ weights).astype(np.float32)
    place = frame.placement
    finding = best_patch(logit, frame.crop[..., 1], frame.liver, place, min_quality=0.0)
    if finding.box is None:
        return None
    around = surroundings(frame.features[0], finding.box, place)
    return Patch(frame.path, frame.patient_id, len(frame.centres) > 0, finding.quality, around)


def fitted(patches: list[Patch]) -> np.ndarray:
    """A weight per feature, and a bias last."""
    around = np.stack([patch.around for patch in patches])
    scaler = StandardScaler().fit(around)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=500, class_weight="balanced")
    model.fit(scaler.transform(around), [patch.has_kidney for patch in patches])
    weights = model.coef_[0] / scaler.scale_
    return np.append(weights, model.intercept_[0] - weights @ scaler.mean_)


def rows_of(patches: list[Patch], weights: np.ndarray) -> pd.DataFrame:
    around = np.stack([patch.around for patch in patches])
    return pd.DataFrame(
        {
            "name": [patch.name for patch in patches],
            "has_kidney": [patch.has_kidney for patch in patches],
            "quality": [patch.quality for patch in patches],
            "likeness": expit(around @ weights[:-1] + weights[-1]),
        }
    )


def out_of_fold(patches: list[Patch]) -> pd.DataFrame:
    folds = fold_of([patch.patient_id for patch in patches])
    parts = []
    for number in range(NUM_FOLDS):
        weights = fitted([p for p in patches if folds[p.patient_id] != number])
        parts.append(rows_of([p for p in patches if folds[p.patient_id] == number], weights))
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame) -> dict[str, float]:
    clear = table["quality"] >= MIN_QUALITY
    alike = table["likeness"] >= MIN_LIKENESS
    kidney = table["has_kidney"]
    return {
        "num_views_with_kidney": int(kidney.sum()),
        "num_views_without": int((~kidney).sum()),
        "auc_likeness": float(roc_auc_score(kidney, table["likeness"])),
        "kidney_passes_likeness": float(alike[kidney].mean()),
        "kidney_passes_quality": float(clear[kidney].mean()),
        "kidney_gets_box": float((clear & alike)[kidney].mean()),
        "none_passes_quality": float(clear[~kidney].mean()),
        "none_gets_box": float((clear & alike)[~kidney].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds aul/ and byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and scores")
    arguments = parser.parse_args()
    frames = read_frames(arguments.data / "byra2018")
    folds = fold_of([frame.patient_id for frame in frames])
    patches = []
    for number in range(NUM_FOLDS):
        where = kidney_head.fitted([f for f in frames if folds[f.patient_id] != number])
        for frame in frames:
            if folds[frame.patient_id] == number:
                views = [frame, *cut_views(arguments.data / "byra2018", frame)]
                patches += [patch for view in views if (patch := patch_of(view, where))]
    table = out_of_fold(patches)
    scores = summary(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    where, whether = kidney_head.fitted(frames), fitted(patches)
    write_json(
        [float(f"{w:.6g}") for w in whether], arguments.out / "kidney_in_view.json", indent=None
    )
    aul = rows_of(
        [p for view in aul_views(arguments.data / "aul") if (p := patch_of(view, where))], whether
    )
    clear = aul["quality"] >= MIN_QUALITY
    scores["num_aul"] = len(aul)
    scores["aul_passes_quality"] = float(clear.mean())
    scores["aul_gets_box"] = float((clear & (aul["likeness"] >= MIN_LIKENESS)).mean())
    print(json.dumps(scores, indent=1))
    with replacing(arguments.out / "out_of_fold.csv") as temporary:
        table.to_csv(temporary, index=False)
    with replacing(arguments.out / "aul.csv") as temporary:
        aul.to_csv(temporary, index=False)
    with tracking.start_run("kidney_in_view", "out_of_fold_by_patient", {"C": INVERSE_PENALTY}):
        tracking.log_metrics(scores)
        tracking.log_artifacts(arguments.out)


if __name__ == "__main__":
    main()
