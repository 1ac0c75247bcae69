"""Which part of the hepatorenal index goes wrong when it is found instead of placed by hand?

    python -m experiments.index_boxes --data DATA_DIR --out runs/index_boxes

DATA_DIR holds `byra2018/` (see docs/data.md). The index is computed from the operators' boxes with
the project's own level, then the liver part and the kidney part are swapped, one at a time, for
what is found without a person: cortex by weights that never saw the patient's boxes, and liver by
two rules: at the depth of the cortex, as the index is defined in the literature, and before the
kidney on its own beams, as operators place it and as `hepatorenal.py` does. Boxes are taken as
truth for the place alone; the rule was chosen by its distance from the operators' levels, of 36
windows, and not by fat.

Time: 1 minute of processor time on every fifth frame, and kidney finders once, 1 minute.
Result: table in docs/physics.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from experiments import byra
from experiments.fat_rules.measurements import CortexFinder
from steatosis_tf.files import replacing
from steatosis_tf.quantitative.display import Display, level_of
from steatosis_tf.quantitative.hepatorenal import measure_hepatorenal
from steatosis_tf.quantitative.measure import without_rim
from steatosis_tf.roi.anatomy.liver import liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame, to_grey

OPERATORS = ("A", "B", "C")
BOX_PX = 28
FRAME_STEP = 5
SAME_DEPTH, PATCHES = 0.03, 6


def box_at(x: float, y: float) -> Rectangle:
    return Rectangle(round(y), round(x), BOX_PX, BOX_PX)


def level_in(grey: np.ndarray, box: Rectangle) -> float:
    return level_of(grey[box.top : box.bottom, box.left : box.right])


def at_same_depth(
    grey: np.ndarray, core: np.ndarray, box: Rectangle, depth: np.ndarray, across: np.ndarray
) -> float:
    """Level of the liver at the depth of the cortex, on the nearest beams; depth in shares."""
    row, column = box.top + box.height // 2, box.left + box.width // 2
    near = np.flatnonzero(core & (np.abs(depth - depth[row, column]) <= SAME_DEPTH))
    side = np.abs(across.ravel()[near] - across[row, column])
    chosen = near[np.argsort(side, kind="stable")[: PATCHES * box.height * box.width]]
    return level_of(grey.ravel()[chosen]) if len(chosen) else float("nan")


def levels_of(
    frame: np.ndarray, boxes: pd.DataFrame, patient_id: str, find_cortex: CortexFinder
) -> dict[str, float]:
    """Grey levels of one frame's liver and kidney parts, by who or what placed them."""
    grey, sector = to_grey(frame), find_sector(frame)
    liver, fan = liver_mask(frame, sector), sector.fan
    extent = float(fan.far_px - fan.near_px)
    depth, across = fan.depth_px(grey.shape), fan.angle_deg(grey.shape)
    core = without_rim(liver & sector.mask, 0.02 * extent)
    levels: dict[str, float] = {}
    kidneys = {}
    for row in boxes.itertuples():
        kidneys[row.operator] = box_at(row.kidney_x, row.kidney_y)
        levels[f"liver {row.operator}"] = level_in(grey, box_at(row.liver_x, row.liver_y))
    found = find_cortex(patient_id, frame, sector, liver)
    if found:
        kidneys["found"] = found
    for name, box in kidneys.items():
        levels[f"kidney {name}"] = level_in(grey, box)
        levels[f"same depth {name}"] = at_same_depth(grey, core, box, depth / extent, across)
        index = measure_hepatorenal(grey, core, box, depth, across, extent, Display())
        levels[f"before {name}"] = index.liver_level if index else float("nan")
    return levels


def row_of(name: str, liver: pd.Series, kidney: pd.Series, fat: pd.Series) -> str:
    index = liver - kidney
    known = index.notna()
    auc = roc_auc_score(fat[known] >= 5, index[known])
    rank = stats.spearmanr(index[known], fat[known]).statistic
    return f"| {name} | {known.sum()} | {auc:.3f} | {rank:+.2f} |"


def report(levels: pd.DataFrame, fat: pd.Series) -> str:
    """Markdown: one line per pair of parts, then how far found levels lie from operators'."""
    lines = [
        "| Liver part, kidney part | patients | AUC, fat >= 5 % | Spearman |",
        "|---" * 4 + "|",
    ]
    for who in OPERATORS:
        liver, kidney = levels[f"liver {who}"], levels[f"kidney {who}"]
        lines += [
            row_of(f"operator {who}, operator {who}", liver, kidney, fat),
            row_of(f"operator {who}, found", liver, levels["kidney found"], fat),
            row_of(f"found at the same depth, operator {who}", levels[f"same depth {who}"], kidney,
                   fat),
            row_of(f"found before the kidney, operator {who}", levels[f"before {who}"], kidney,
                   fat),
        ]  # fmt: skip
    for rule in ("same depth", "before"):
        found = levels[f"{rule} found"]
        lines.append(row_of(f"found ({rule}), found", found, levels["kidney found"], fat))
    db = Display().db_per_grey
    for part, names in (("kidney", ("kidney",)), ("liver", ("same depth", "before"))):
        theirs = levels[[f"{part} {who}" for who in OPERATORS]].mean(axis=1)
        for name in names:
            gap = (levels[f"{name} found"] - theirs).dropna() * db
            trend = stats.spearmanr(gap, fat[gap.index]).statistic
            lines.append(
                f"\nfound {part} ({name}) less the operators' mean: {gap.mean():+.1f} dB, standard "
                f"deviation {gap.std():.1f} dB, Spearman with fat {trend:+.2f}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    byra_dir = arguments.data / "byra2018"
    labels = pd.read_csv(byra_dir / "labels.csv", dtype={"path": str, "patient_id": str})
    labels = labels[labels["frame_index"] % FRAME_STEP == 0]
    boxes = pd.read_csv(byra_dir / "operator_boxes_28px.csv", dtype={"path": str})
    boxes = boxes.dropna()
    cortex = byra.FoldedCortex(byra_dir, labels["patient_id"].tolist(), arguments.out)
    rows = [
        levels_of(
            read_frame(byra_dir / row.path),
            boxes[boxes["path"] == row.path],
            row.patient_id,
            cortex,
        )
        for row in tqdm(list(labels.itertuples()), "frames", file=sys.stderr)
    ]
    patients = labels["patient_id"].to_numpy()
    levels = pd.DataFrame(rows).groupby(patients).mean()
    fat = labels.groupby("patient_id")["fat_percent"].first().loc[levels.index]
    text = report(levels, fat)
    with replacing(arguments.out / "table.md") as temporary:
        temporary.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
