"""How well and how fast `find_sector` finds the echo sector of the outlined images.

    python benchmarks/roi_sector.py ../shared/data/aul
    python benchmarks/roi_sector.py ../shared/data/aul --screens first --sheet found.png

Constants of the fit were chosen on the images whose name has an even sha256 ("tuned on"); the
others ("held out") were looked at only here.  The same lines give a threshold with the largest
component and its hull, so that two numbers of one run can be compared.

With `--screens` each image stands on one full screen: of `screens.py` or of `screens_second.py`,
whose author has not seen the finder (the finder was not tuned on it), layouts in turn; or of
`screens_third.py` or `screens_fourth.py`, a layout of its own for each. Screens with two sectors
are refused, and count as not found. A wrong answer is one with a Dice under 0.8.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import screens
import screens_fourth
import screens_third
from screens_second import second_screens

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import to_grey

_SECOND_SEED = 0
_FOUND, _WRONG = 0.9, 0.8  # Dice from which a sector counts as found, and under which as wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("aul_dir", type=Path)
    parser.add_argument(
        "--screens", choices=["first", "second", "third", "fourth"], help="compose full screens"
    )
    parser.add_argument("--worst", type=int, default=0, help="also name the N worst images")
    parser.add_argument("--sheet", type=Path, help="PNG with the outlines of some found sectors")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    names = sorted(path.stem for path in (arguments.aul_dir / "polygons").glob("*.json"))
    for title, find in (("threshold + hull", _hull_mask), ("find_sector", _sector_mask)):
        cases = _cases(arguments.aul_dir, names, arguments.screens)
        scores, shown = _scores(title, find, cases)
        _print_scores(scores, arguments.worst)
    if arguments.sheet is not None:
        cv2.imwrite(str(arguments.sheet), screens.sheet(shown, 8)[..., ::-1])
    without = {"first": screens.no_sectors, "fourth": screens_fourth.no_sectors}
    if arguments.screens in without:
        refused = [_is_refused(frame) for _, frame in without[arguments.screens]()]
        print(f"screens without a sector refused: {sum(refused)} of {len(refused)}")


def is_held_out(name: str) -> bool:
    """Whether an image belongs to the part nothing was chosen on."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def _cases(
    folder: Path, names: list[str], kind: str | None
) -> Iterator[tuple[str, str, np.ndarray, list[np.ndarray]]]:
    """Name, layout, frame and true masks of each image."""
    if kind == "second":
        for name, frame, outline, layout in second_screens(folder, _SECOND_SEED, len(names)):
            yield name, layout, frame, [_filled(outline, frame)]
        return
    for number, name in enumerate(names):
        frame, outline = screens.read_outlined(folder, name)
        if kind is None:
            yield name, "as it is", frame, [_filled(outline, frame)]
        elif kind in ("third", "fourth"):
            of_its_own = {"third": screens_third.compose, "fourth": screens_fourth.compose}
            screen = of_its_own[kind](name, frame, outline)
            yield name, "a layout of its own", screen.frame, screen.truths
        else:
            layout = [*screens.LAYOUTS][number % len(screens.LAYOUTS)]
            screen = screens.compose(name, frame, outline, layout)
            yield name, layout, screen.frame, screen.truths


def _filled(outline: np.ndarray, frame: np.ndarray) -> np.ndarray:
    canvas = np.zeros(frame.shape[:2], np.uint8)
    return cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], 1) > 0


def _scores(
    title: str,
    find: Callable[[np.ndarray], np.ndarray],
    cases: Iterator[tuple[str, str, np.ndarray, list[np.ndarray]]],
) -> tuple[dict[tuple[str, str], float], list[np.ndarray]]:
    """Dice of each image by name and layout, 0 where it was refused, and pictures of some."""
    scores, seconds, shown = {}, [], []
    for name, layout, frame, truths in cases:
        start = time.process_time()
        try:
            found = find(frame)
        except ValueError:
            found = np.zeros(frame.shape[:2], bool)
        seconds.append(time.process_time() - start)
        scores[name, layout] = max(
            2 * (found & truth).sum() / (found.sum() + truth.sum()) for truth in truths
        )
        if len(scores) % 7 == 0:
            shown.append(_with_outline(frame, found))
    print(f"{title}: {1000 * np.median(seconds):.1f} ms of processor time per image (median)")
    return scores, shown


def _print_scores(scores: dict[tuple[str, str], float], worst: int) -> None:
    for part, held_out in (("tuned on", False), ("held out", True)):
        dice = np.array([one for (name, _), one in scores.items() if is_held_out(name) == held_out])
        print(
            f"  {part} ({len(dice)} images): Dice median {np.median(dice):.4f}, "
            f"10th percentile {np.percentile(dice, 10):.4f}, "
            f"5th percentile {np.percentile(dice, 5):.4f}, mean {dice.mean():.4f}, "
            f"rejected {np.count_nonzero(dice == 0)}, "
            f"wrong {np.count_nonzero((dice > 0) & (dice < _WRONG))}, "
            f"Dice >= {_FOUND}: {100 * (dice >= _FOUND).mean():.1f} %"
        )
    layouts = list(dict.fromkeys(layout for _, layout in scores))
    for layout in layouts if len(layouts) > 1 else []:
        dice = np.array([one for (_, of), one in scores.items() if of == layout])
        print(
            f"    {layout} ({len(dice)}): median {np.median(dice):.3f}, "
            f"10th percentile {np.percentile(dice, 10):.3f}, rejected {np.count_nonzero(dice == 0)}"
        )
    for name, layout in sorted(scores, key=lambda key: scores[key])[:worst]:
        part = " (held out)" if is_held_out(name) else ""
        print(f"    {scores[name, layout]:.3f} {name}, {layout}{part}")


def _with_outline(frame: np.ndarray, found: np.ndarray) -> np.ndarray:
    drawn = frame.copy()
    borders, _ = cv2.findContours(found.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, borders, -1, (255, 255, 0), 1 + max(frame.shape) // 400)


def _is_refused(frame: np.ndarray) -> bool:
    try:
        find_sector(frame)
    except ValueError:
        return True
    return False


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
