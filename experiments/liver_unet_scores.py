"""What are the networks of experiments/liver_unet.py worth, with the true and the found sector?

    python experiments/liver_unet_scores.py --data DATA_DIR --out runs/liver_unet

Prints and writes `scores.json`, `aul_scores.csv` and `byra_scores.csv` into the same folder, and
logs them to MLflow. Images: Dice against the `liver` polygon, out-of-fold for the five folds and
on the test part for the final network. Frames of byra2018, which no network saw: share of the
operators' liver and kidney boxes inside the mask. Where no sector is found the Dice counts as 0.

Time: about 6 minutes on 2 cores. Result: see steatosis_tf/roi/liver_unet_card.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from liver_unet import CONFIG, all_outlined, dice, parts_of, ranked_names

from steatosis_tf import tracking
from steatosis_tf.roi.liver import (
    LIVER_THRESHOLD,
    back_in_frame,
    liver_logit,
    network_input,
    one_piece,
    single_threaded_session,
)
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame

BOX_PX = 28


def mask_of(
    session: onnxruntime.InferenceSession, frame: np.ndarray, sector_mask: np.ndarray
) -> np.ndarray:
    crop, placement = network_input(frame, sector_mask)
    return one_piece(
        back_in_frame(liver_logit(session, crop), placement, sector_mask) >= LIVER_THRESHOLD
    )


def aul_rows(
    session: onnxruntime.InferenceSession, aul_dir: Path, names: list[str], network: str
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
    sessions: dict[str, onnxruntime.InferenceSession], byra_dir: Path
) -> list[dict[str, object]]:
    """One row per network, frame and operator, with the found sector."""
    boxes = pd.read_csv(byra_dir / "operator_boxes_28px.csv", dtype={"path": str}).dropna()
    patients = pd.read_csv(byra_dir / "labels.csv", dtype=str).set_index("path")["patient_id"]
    rows = []
    for path, of_frame in boxes.groupby("path"):
        frame = read_frame(byra_dir / str(path))
        sector = find_sector(frame).mask
        masks = {network: mask_of(session, frame, sector) for network, session in sessions.items()}
        for box in of_frame.itertuples():
            for network, mask in masks.items():
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


def dice_summary(table: pd.DataFrame) -> dict[str, float]:
    out: dict[str, float] = {"num_images": len(table)}
    for sector in ("true_sector", "found_sector"):
        scores = table[f"dice_{sector}"]
        out[f"{sector}_median"] = float(scores.median())
        out[f"{sector}_p10"] = float(scores.quantile(0.1))
        out[f"{sector}_mean"] = float(scores.mean())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds aul/ and byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    arguments = parser.parse_args()
    aul_dir = arguments.data / "aul"
    names = ranked_names(aul_dir)
    folds = {"final": None} | {f"fold_{i}": i for i in range(CONFIG.num_folds)}
    paths = {name: arguments.out / name / "liver_unet.onnx" for name in folds}
    sessions = {n: single_threaded_session(p) for n, p in paths.items() if p.is_file()}
    rows: list[dict[str, object]] = []
    for name, session in sessions.items():
        rows += aul_rows(session, aul_dir, parts_of(names, folds[name], CONFIG)["scored"], name)
    aul = pd.DataFrame(rows)
    byra = pd.DataFrame(byra_rows(sessions, arguments.data / "byra2018"))
    is_test = aul["network"] == "final"
    inside = byra.groupby("network")[["liver_inside", "kidney_inside"]].mean()
    scores = {
        "networks": list(sessions),
        "out_of_fold": dice_summary(aul[~is_test]),
        "test_part": dice_summary(aul[is_test]),
        "byra2018": inside.round(4).to_dict(orient="index"),
    }
    print(json.dumps(scores, indent=1))
    aul.to_csv(arguments.out / "aul_scores.csv", index=False)
    byra.to_csv(arguments.out / "byra_scores.csv", index=False)
    (arguments.out / "scores.json").write_text(json.dumps(scores, indent=1))
    with tracking.start_run("liver_unet", "five_fold_and_final"):
        tracking.log_metrics({key: scores[key] for key in ("out_of_fold", "test_part", "byra2018")})
        for file in ("aul_scores.csv", "byra_scores.csv", "scores.json", "config.json"):
            tracking.log_artifacts(arguments.out / file)


if __name__ == "__main__":
    main()
