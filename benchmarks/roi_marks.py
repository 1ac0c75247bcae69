"""How many marks `find_overlays` sees where there are none, and how many typed words it misses.

    python benchmarks/roi_marks.py ../shared/data

Constants were chosen on the first frame of each `byra2018` patient; `aul` was looked at only here
(many of its frames hold real marks, so only words typed in are counted there). A word is "covered"
when nine tenths of its px are found, "legible" when its mean still differs from what lies around
it by more than half of the spread there after `paint_out`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.roi.anatomy.overlays import find_overlays, paint_out
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey

_WORDS = ("Severe", "S3", "fat 3", "Mild", "grade 2", "Normal", "LIVER", "RT KIDNEY", "D 5.1 cm")
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
# Grey level, px of the pen, and whether its edges are smoothed (OpenCV 5 always draws them so).
_STYLES = {
    "crisp 245": (245, 1, False),
    "crisp 200": (200, 1, False),
    "crisp 150": (150, 1, False),
    "crisp 0": (0, 1, False),
    "smooth 245": (245, 1, True),
    "smooth 200": (200, 1, True),
    "smooth 150": (150, 1, True),
    "bold 245": (245, 2, False),
}
# Patients with a trace or ruled lines inside the sector.
_MARKED = ("P12", "P48", "P50")
_LEGIBLE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    data_dir = parser.parse_args().data_dir
    cv2.setNumThreads(1)
    byra = sorted((data_dir / "byra2018" / "images").glob("*.png"))
    clean = [path for path in byra if not path.name.startswith(_MARKED)]
    _print_false_marks(clean)
    first = [path for path in clean if path.stem.endswith("F00")]
    _print_words("byra2018, first frames", first)
    _print_words("aul, every eighth image", sorted((data_dir / "aul").rglob("*.jpg"))[::8])


def _print_false_marks(paths: list[Path]) -> None:
    shares = []
    for path in paths:
        frame = read_frame(path)
        mask = find_sector(frame).mask
        shares.append(find_overlays(frame, mask)[mask].mean())
    marked = np.array(shares)[np.array(shares) > 0]
    print(f"byra2018 without {', '.join(_MARKED)}: {len(marked)} of {len(paths)} frames with marks")
    print(f"  largest proportion of the sector {100 * marked.max(initial=0):.2f} %")


def _print_words(title: str, paths: list[Path]) -> None:
    rng = np.random.default_rng(0)
    rows = [row for path in paths for row in _typed(path, rng)]
    table = pd.DataFrame(rows, columns=["style", "found", "covered", "legible", "legible before"])
    print(title)
    print(table.groupby("style", sort=False).mean().round(3).assign(
        words=table.groupby("style", sort=False).size()).to_string())  # fmt: skip


def _typed(path: Path, rng: np.random.Generator) -> Iterator[tuple[str, float, bool, bool, bool]]:
    frame = to_grey(read_frame(path))
    try:
        mask = find_sector(frame).mask
    except ValueError:
        return
    for style, (level, pen, is_smooth) in _STYLES.items():
        drawing = _word(mask, pen, rng)
        if drawing is None:
            continue
        alpha = drawing / 255 if is_smooth else (drawing > 110).astype(float)
        typed = np.round(frame * (1 - alpha) + level * alpha).astype(np.uint8)
        letters = alpha > 0.5
        found = find_overlays(typed, mask)[letters].mean()
        near = cv2.dilate(drawing, np.ones((3, 3), np.uint8)) > 0
        ring = (cv2.dilate(drawing, np.ones((7, 7), np.uint8)) > 0) & ~near
        yield (
            style,
            found,
            found > 0.9,
            _contrast(paint_out(typed, mask), letters, ring) > _LEGIBLE,
            _contrast(typed, letters, ring) > _LEGIBLE,
        )


def _word(mask: np.ndarray, pen: int, rng: np.random.Generator) -> np.ndarray | None:
    """A word somewhere wholly inside the sector, `(height, width)` uint8, 255 on letters."""
    text, font = str(rng.choice(_WORDS)), int(rng.choice(_FONTS))
    size = float(rng.uniform(0.4, 0.9))
    (width, height), _ = cv2.getTextSize(text, font, size, pen)
    rows, columns = np.nonzero(mask)
    for place in rng.integers(len(rows), size=200):
        y, x = int(rows[place]), int(columns[place])
        box = mask[max(0, y - height - 3) : y + 8, max(0, x - 3) : x + width + 4]
        if box.shape == (height + 11, width + 7) and box.all():
            drawing = np.zeros(mask.shape, np.uint8)
            cv2.putText(drawing, text, (x, y), font, size, 255, pen)
            return drawing
    return None


def _contrast(picture: np.ndarray, letters: np.ndarray, ring: np.ndarray) -> float:
    spread = max(1.0, float(picture[ring].std()))
    return abs(float(picture[letters].mean()) - float(picture[ring].mean())) / spread


if __name__ == "__main__":
    main()
