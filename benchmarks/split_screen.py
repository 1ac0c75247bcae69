"""Are two pictures on one screen told from one, by the pixels alone?

Question: how many split screens does `is_split_screen` find, and how many single frames does it
take for one?
Command: python benchmarks/split_screen.py ../shared/data   (about 2 minutes on 2 cores)
Result: docs/data_dicom.md, "What is rejected".

Single: the first frame of each patient of the biopsy set, and every image of the outlined set.
Split: two of them side by side, with up to 120 px of black on the left, so that the gap is not in
the middle.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.sources.dicom.deidentify import is_split_screen
from steatosis_tf.sources.images import read_frame, to_grey

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--split", type=int, default=300, help="number of split screens made")
    arguments = parser.parse_args()
    paths = sorted((arguments.data_dir / "byra2018" / "images").glob("*_F00.png"))
    paths += sorted((arguments.data_dir / "aul" / "images").glob("*.jpg"))
    frames = [to_grey(read_frame(path)) for path in paths]
    taken = [path.name for path, frame in zip(paths, frames, strict=True)
             if is_split_screen(frame[None])]  # fmt: skip
    print(f"single frames taken for a split screen: {len(taken)} of {len(frames)} {taken}")
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(arguments.split):
        one, other = rng.choice(len(frames), 2, replace=False)
        found += is_split_screen(side_by_side(frames[one], frames[other], rng)[None])
    print(f"split screens found: {found} of {arguments.split}")


if __name__ == "__main__":
    main()
