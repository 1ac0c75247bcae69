"""How well and how fast `find_sector` finds the echo sector of the outlined images.

    python benchmarks/roi_sector.py ../shared/data/aul

Constants of the fit were chosen on the images whose name has an even sha256 ("tuned on"); the
others ("held out") were looked at only here.  The same lines give a threshold with the largest
component and its hull, so that two numbers of one run can be compared.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame, to_grey


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("aul_dir", type=Path)
    parser.add_argument("--worst", type=int, default=0, help="also name the N worst images")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    names = sorted(path.stem for path in (arguments.aul_dir / "polygons").glob("*.json"))
    for title, find in (("threshold + hull", _hull_mask), ("find_sector", _sector_mask)):
        _print_scores(title, find, names, arguments.aul_dir, arguments.worst)


def is_held_out(name: str) -> bool:
    """Whether an image belongs to the part nothing was chosen on."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def _print_scores(
    title: str, find: Callable[[np.ndarray], np.ndarray], names: list[str], folder: Path, worst: int
) -> None:
    scores, seconds = {}, []
    for name in names:
        frame = read_frame(folder / "images" / f"{name}.jpg")
        outline = json.loads((folder / "polygons" / f"{name}.json").read_text())["outline"]
        truth = np.zeros(frame.shape[:2], np.uint8)
        cv2.fillPoly(truth, [np.round(outline).astype(np.int32)], 1)
        start = time.process_time()
        try:
            found = find(frame)
        except ValueError:
            found = np.zeros(frame.shape[:2], bool)
        seconds.append(time.process_time() - start)
        scores[name] = 2 * (found & (truth > 0)).sum() / (found.sum() + truth.sum())
    print(f"{title}: {1000 * np.median(seconds):.1f} ms of processor time per image (median)")
    for part, held_out in (("tuned on", False), ("held out", True)):
        dice = np.array([score for name, score in scores.items() if is_held_out(name) == held_out])
        print(
            f"  {part} ({len(dice)} images): Dice median {np.median(dice):.4f}, "
            f"5th percentile {np.percentile(dice, 5):.4f}, mean {dice.mean():.4f}, "
            f"rejected {np.count_nonzero(dice == 0)}"
        )
    for name in sorted(scores, key=lambda name: scores[name])[:worst]:
        print(f"    {scores[name]:.3f} {name}{' (held out)' if is_held_out(name) else ''}")


def _sector_mask(frame: np.ndarray) -> np.ndarray:
    return find_sector(frame).mask


def _hull_mask(frame: np.ndarray) -> np.ndarray:
    grey = cv2.blur(to_grey(frame), (5, 5))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))
    bright = cv2.morphologyEx((grey > 6).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
    largest = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    hull = cv2.convexHull(cv2.findNonZero(largest))
    return cv2.fillConvexPoly(np.zeros_like(largest), hull, 1) > 0


if __name__ == "__main__":
    main()
