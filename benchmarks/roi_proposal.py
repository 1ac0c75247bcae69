"""How well the proposed rectangles lie.

    python benchmarks/roi_proposal.py ../shared/data

`aul`: the fixed test part of `experiments/segmentation/liver_unet.py` (85 images), against the
liver polygons; the shipped liver network was trained on them too.
`byra2018`: every frame, against the boxes of three operators; "gap" is from the proposal's nearest
edge to the nearest operator's liver box (0 where they overlap), "centres" from centre to centre.
`--true-outlines` proposes inside the polygons, without the network.
"""

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.roi.anatomy.liver import liver_probability
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.propose import Proposal, propose_rectangle
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import Rectangle
from steatosis_tf.sources.images import read_frame

NUM_RANKED = 88
# Of the first 88 names by SHA-256, those with a near copy among the images trained on.
COPIES = {"benign_021", "benign_158", "malignant_343"}
OPERATOR_BOX_PX = 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--true-outlines", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    _print_outlined(arguments.data_dir / "aul", arguments.true_outlines)
    if not arguments.true_outlines:
        _print_biopsy(arguments.data_dir / "byra2018")


def _print_outlined(folder: Path, true_outlines: bool) -> None:
    names = [path.stem for path in (folder / "polygons").glob("*.json")]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    inside, reasons, seconds = [], Counter(), []
    for name in [name for name in names[:NUM_RANKED] if name not in COPIES]:
        outline = json.loads((folder / "polygons" / f"{name}.json").read_text()).get("liver")
        if not outline:
            continue
        frame = read_frame(folder / "images" / f"{name}.jpg")
        liver = np.zeros(frame.shape[:2], np.uint8)
        cv2.fillPoly(liver, [np.round(outline).astype(np.int32)], 1)
        proposal = _proposal(frame, liver > 0 if true_outlines else None, seconds)
        reasons[proposal.reason] += 1
        if proposal.rectangle is not None:
            inside.append(_part(liver, proposal.rectangle).mean())
    _print_steps("aul, test part", seconds)
    mostly = np.mean(np.array(inside) >= 0.9)
    print(
        f"  proposed for {len(inside)} of {reasons.total()}; part of the rectangle inside the "
        f"liver: median {np.median(inside):.3f}, at least 0.90 in {mostly:.3f} of the images"
    )
    _print_reasons(reasons)


def _print_biopsy(folder: Path) -> None:
    boxes = dict(list(pd.read_csv(folder / "operator_boxes_28px.csv").groupby("path")))
    touches, gaps, centres, reasons, seconds = [], [], [], Counter(), []
    for path in pd.read_csv(folder / "labels.csv").path:
        proposal = _proposal(read_frame(folder / path), None, seconds)
        reasons[proposal.reason] += 1
        if proposal.rectangle is None or path not in boxes:
            continue
        kidney = list(_distances(proposal.rectangle, boxes[path], "kidney"))
        liver = list(_distances(proposal.rectangle, boxes[path], "liver"))
        touches.append(min(gap for gap, _ in kidney) == 0)
        gaps.append(min(gap for gap, _ in liver))
        centres.append(min(centre for _, centre in liver))
    _print_steps("byra2018", seconds)
    print(
        f"  proposed for {len(gaps)} of {reasons.total()}; "
        f"over a kidney box {np.mean(touches):.3f}; "
        f"gap to a liver box: median {np.median(gaps):.0f} px, 90th percentile "
        f"{np.percentile(gaps, 90):.0f} px; centres: median {np.median(centres):.0f} px; "
        f"over a liver box {np.mean(np.array(gaps) == 0):.3f}"
    )
    own = np.array([pair for placed in boxes.values() for pair in _among_operators(placed)])
    print(
        f"  operators among themselves: gap median {np.median(own[:, 0]):.0f} px, 90th percentile "
        f"{np.percentile(own[:, 0], 90):.0f} px; centres: median {np.median(own[:, 1]):.0f} px; "
        f"boxes that overlap {np.mean(own[:, 0] == 0):.3f}"
    )
    _print_reasons(reasons)


def _proposal(frame: np.ndarray, liver: np.ndarray | None, seconds: list[list[float]]) -> Proposal:
    times = [time.process_time()]
    sector = find_sector(frame)
    times.append(time.process_time())
    probability = liver_probability(frame, sector) if liver is None else liver
    times.append(time.process_time())
    overlays = find_overlays(frame, sector.mask)
    times.append(time.process_time())
    proposal = propose_rectangle(frame, sector, probability, overlays)
    times.append(time.process_time())
    seconds.append(list(np.diff(times)))
    return proposal


def _distances(box: Rectangle, placed: pd.DataFrame, organ: str) -> Iterator[tuple[float, float]]:
    """Gap and distance of centres, px, to each operator's box."""
    for x, y in zip(placed[f"{organ}_x"], placed[f"{organ}_y"], strict=True):
        across = max(x - box.right, box.left - (x + OPERATOR_BOX_PX), 0)
        down = max(y - box.bottom, box.top - (y + OPERATOR_BOX_PX), 0)
        middle = (x + OPERATOR_BOX_PX / 2, y + OPERATOR_BOX_PX / 2)
        centre = np.hypot(
            middle[0] - (box.left + box.right) / 2, middle[1] - (box.top + box.bottom) / 2
        )
        yield float(np.hypot(across, down)), float(centre)


def _among_operators(placed: pd.DataFrame) -> Iterator[tuple[float, float]]:
    """Gap and distance of centres, px, for every pair of operators' liver boxes on a frame."""
    whole = placed.dropna(subset=["liver_x", "liver_y"]).astype({"liver_x": int, "liver_y": int})
    for at, (x, y) in enumerate(zip(whole["liver_x"], whole["liver_y"], strict=True), 1):
        box = Rectangle(y, x, OPERATOR_BOX_PX, OPERATOR_BOX_PX)
        yield from _distances(box, whole[at:], "liver")


def _part(mask: np.ndarray, box: Rectangle) -> np.ndarray:
    return mask[box.top : box.bottom, box.left : box.right]


def _print_steps(title: str, seconds: list[list[float]]) -> None:
    steps = 1000 * np.median(seconds, axis=0)
    names = ("sector", "liver", "overlays", "proposal")
    parts = ", ".join(f"{name} {step:.1f}" for name, step in zip(names, steps, strict=True))
    print(f"{title}: processor time per frame, ms (median): {parts}; all {steps.sum():.1f}")


def _print_reasons(reasons: Counter) -> None:
    for reason, count in reasons.most_common():
        if reason:
            print(f"    {count} x {reason}")


if __name__ == "__main__":
    main()
