"""What are the networks of liver_unet.py worth, with the true and the found sector?

    python -m experiments.segmentation.liver_unet_scores --data DATA_DIR --out runs/liver_unet

Writes `aul_scores.csv` and `byra_scores.csv` beside each network, unless they are there, and
prints, writes and logs to MLflow what they come to (`scores.json`). Images: Dice against the
`liver` polygon, out-of-fold for the five folds; the final network has seen every image. Frames of
byra2018, which no network saw: proportion of the operators' liver and kidney boxes inside the mask.
Where no sector is found the Dice counts as 0.

Time: about 6 minutes on 2 cores. Result: see steatosis_tf/roi/anatomy/liver_unet_card.md.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.segmentation.liver_unet import (
    CONFIG,
    all_outlined,
    dice,
    parts_of,
    ranked_groups,
)
from steatosis_tf import tracking
from steatosis_tf.files import replacing, write_json
from steatosis_tf.roi.anatomy.liver import (
    LIVER_THRESHOLD,
    back_in_frame,
    liver_logit,
    network_input,
    one_piece,
    single_threaded_session,
)
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame

if TYPE_CHECKING:
    import onnxruntime  # in earnest only after steatosis_tf, which keeps it silent

BOX_PX = 28
NUM_BOOTSTRAPS = 2000


def mask_of(
    session: "onnxruntime.InferenceSession", frame: np.ndarray, sector_mask: np.ndarray
) -> np.ndarray:
    crop, placement = network_input(frame, sector_mask)
    return one_piece(
        back_in_frame(liver_logit(session, crop), placement, sector_mask) >= LIVER_THRESHOLD
    )


def aul_rows(
    session: "onnxruntime.InferenceSession", aul_dir: Path, names: list[str], network: str
) -> list[dict[str, object]]:
    rows = []
    for image in all_outlined(aul_dir, names):
        drawn = image.liver > 0
        try:
            found = find_sector(image.grey).mask
        except ValueError:
            found = None
        row = {
            "name": image.name,
            "network": network,
            "dice_true_sector": dice(mask_of(session, image.grey, image.sector > 0), drawn),
            "dice_found_sector": 0.0,
        }
        if found is not None:
            row["dice_found_sector"] = dice(mask_of(session, image.grey, found), drawn)
        rows.append(row)
    return rows


def byra_rows(
    session: "onnxruntime.InferenceSession", byra_dir: Path, network: str
) -> list[dict[str, object]]:
    """One row per frame and operator, with the found sector."""
    boxes = pd.read_csv(byra_dir / "operator_boxes_28px.csv", dtype={"path": str}).dropna()
    patients = pd.read_csv(byra_dir / "labels.csv", dtype=str).set_index("path")["patient_id"]
    rows = []
    for path, of_frame in boxes.groupby("path"):
        frame = read_frame(byra_dir / str(path))
        mask = mask_of(session, frame, find_sector(frame).mask)
        for box in of_frame.itertuples():
            rows.append(
                {
                    "network": network,
                    "patient_id": patients[str(path)],
                    "path": path,
                    "operator": box.operator,
                    "liver_inside": share_inside(mask, box.liver_x, box.liver_y),
                    "kidney_inside": share_inside(mask, box.kidney_x, box.kidney_y),
                }
            )
    return rows


def share_inside(mask: np.ndarray, left: float, top: float) -> float:
    return float(mask[int(top) : int(top) + BOX_PX, int(left) : int(left) + BOX_PX].mean())


def dice_summary(table: pd.DataFrame) -> dict[str, object]:
    """Median, 10th percentile and mean, the first two with 95 % bootstrap intervals."""
    out: dict[str, object] = {"num_images": len(table)}
    drawn = np.random.default_rng(0).integers(0, len(table), (NUM_BOOTSTRAPS, len(table)))
    for sector in ("true_sector", "found_sector"):
        scores = table[f"dice_{sector}"].to_numpy()
        for name, quantile in (("median", 0.5), ("p10", 0.1)):
            again = np.quantile(scores[drawn], quantile, axis=1)
            out[f"{sector}_{name}"] = round(float(np.quantile(scores, quantile)), 4)
            out[f"{sector}_{name}_interval"] = np.quantile(again, (0.025, 0.975)).round(4).tolist()
        out[f"{sector}_mean"] = round(float(scores.mean()), 4)
    return out


def score(network_dir: Path, data_dir: Path, names: list[str]) -> None:
    """Write the scores of one network beside it, unless they are there."""
    session = single_threaded_session(network_dir / "liver_unet.onnx")
    for file, rows_of in (
        ("aul_scores.csv", lambda: aul_rows(session, data_dir / "aul", names, network_dir.name)),
        ("byra_scores.csv", lambda: byra_rows(session, data_dir / "byra2018", network_dir.name)),
    ):
        if not (network_dir / file).is_file() and (names or file == "byra_scores.csv"):
            with replacing(network_dir / file) as unfinished:
                pd.DataFrame(rows_of()).to_csv(unfinished, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds aul/ and byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    arguments = parser.parse_args()
    groups = ranked_groups(arguments.data / "aul")
    folds = {"final": None} | {f"fold_{i}": i for i in range(CONFIG.num_folds)}
    trained = [n for n in folds if (arguments.out / n / "liver_unet.onnx").is_file()]
    for name in trained:
        names = parts_of(groups, folds[name], CONFIG)["scored"]
        score(arguments.out / name, arguments.data, names)
    byra = pd.concat([pd.read_csv(arguments.out / name / "byra_scores.csv") for name in trained])
    inside = byra.groupby("network")[["liver_inside", "kidney_inside"]].mean()
    scores = {"networks": trained, "byra2018": inside.round(4).to_dict(orient="index")}
    aul = [
        pd.read_csv(arguments.out / name / "aul_scores.csv")
        for name in trained
        if folds[name] is not None
    ]
    if aul:
        scores["out_of_fold"] = dice_summary(pd.concat(aul))
    print(json.dumps(scores, indent=1))
    write_json(scores, arguments.out / "scores.json")
    with tracking.start_run("liver_unet", "five_fold_and_final"):
        tracking.log_metrics({key: scores[key] for key in scores if key != "networks"})
        tracking.log_artifacts(arguments.out / "scores.json")
        for name in trained:
            for path in sorted((arguments.out / name).glob("*_scores.csv")):
                tracking.log_artifacts(path, name)


if __name__ == "__main__":
    main()
