"""Are two pictures on one screen told from one, by the pixels alone?

Question: how many split screens does `find_sector` refuse as such, and how many single frames?
Command: python benchmarks/split_screen.py ../shared/data   (about 3 minutes on 2 cores)
Result: docs/data_dicom.md, "What is rejected".

Single: the first frame of each patient of the biopsy set, and every image of the outlined set.
Split: two of them side by side, with up to 120 px of black on the left, so that the gap is not in
the middle; then the middle of two sectors, 0 and 4 px apart, as consoles in dual mode cut them.
"""

import argparse
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey
from steatosis_tf.sources.rejection import Rejection

_HEIGHT = 600


def side_by_side(one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Both frames fitted into panes of one width, `(600, ...)` uint8."""
    width = int(rng.integers(300, 420))
    panes = [np.zeros((_HEIGHT, int(rng.integers(0, 120))), np.uint8)]
    for frame in (one, other):
        scale = min(width / frame.shape[1], _HEIGHT / frame.shape[0])
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        pane = np.zeros((_HEIGHT, width), np.uint8)
        top = (_HEIGHT - small.shape[0]) // 2
        pane[top : top + small.shape[0], : small.shape[1]] = small[:, :width]
        panes.append(pane)
    return np.hstack(panes)


def without_gap(
    one: np.ndarray, other: np.ndarray, gap: int, rng: np.random.Generator
) -> np.ndarray:
    """The middle of both sectors, `gap` px apart, on a black page."""
    panes = []
    for frame in (one, other):
        mask = find_sector(frame).mask
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        part = np.where(mask, frame, 0)[top : top + height, left : left + width]
        middle, half = width // 2, int(width * rng.uniform(0.25, 0.38))
        part = part[:, middle - half : middle + half]
        scale = _HEIGHT / height
        panes.append(cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    page = np.hstack([panes[0], np.zeros((_HEIGHT, gap), np.uint8), panes[1]])
    rim = int(rng.integers(5, 40))
    return cv2.copyMakeBorder(page, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0)


def outcome(frame: np.ndarray) -> str:
    """`found`, `split` or `refused` for another reason."""
    try:
        find_sector(frame)
    except Rejection:
        return "split"
    except ValueError:
        return "refused"
    return "found"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--split", type=int, default=300, help="number of split screens made")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted((arguments.data_dir / "byra2018" / "images").glob("*_F00.png"))
    paths += sorted((arguments.data_dir / "aul" / "images").glob("*.jpg"))
    frames = [to_grey(read_frame(path)) for path in paths]
    print("single frames:", Counter(map(outcome, frames)))
    rng = np.random.default_rng(0)
    made: dict[str, Counter] = {"a gap": Counter(), "0 px": Counter(), "4 px": Counter()}
    for _ in range(arguments.split):
        one, other = (frames[number] for number in rng.choice(len(frames), 2, replace=False))
        made["a gap"][outcome(side_by_side(one, other, rng))] += 1
        for gap in (0, 4):
            made[f"{gap} px"][outcome(without_gap(one, other, gap, rng))] += 1
    for name, counts in made.items():
        print(f"split screens, {name} between:", counts)


if __name__ == "__main__":
    main()
