"""What does the shipped model answer to what it should not grade, through `predict` itself?

    python -m experiments.three_answers --data DATA_DIR --out runs/three_answers

Pictures of `experiments/novelty.py`, written as files and answered by `steatosis predict` with the
model that comes with the package: fans of byra2018 filled with photographs, one grey, noise; its
frames upside down and mirrored in depth; `aul`, livers of other scanners, those that what knows
livers was not fitted to; both with white and black changed; simulated phantoms. pydicom's
ultrasound files are given as they are. (The 44 patients themselves, each answered by a model that
had not seen it, are counted by `experiments/ship_byra2018.py`.) Then every second patient's frame
with a setting turned inside the sector, before anything is found or measured: how often is it still
graded, and how far does the fat score move?

Time: 12 minutes of processor time. Result: docs/research/best.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from experiments.liver_views import is_held_out
from experiments.novelty import Pictures, sets_of
from steatosis_tf.deploy.bundle import open_bundle
from steatosis_tf.deploy.predict import predict
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey, write_png
from steatosis_tf.sources.phantom.study import simulate_patient

_DICOM = "other organs (pydicom)"
# Grey levels per dB where a display of 60 dB fills 0 to 255.
_GREY_PER_DB = 255 / 60
#: Of the echo's grey and its depth.
SETTINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "gain -6 dB": lambda grey, depth: grey - 6 * _GREY_PER_DB,
    "gain +6 dB": lambda grey, depth: grey + 6 * _GREY_PER_DB,
    "time gain slope -6 dB": lambda grey, depth: grey - 6 * _GREY_PER_DB * depth,
    "time gain slope +6 dB": lambda grey, depth: grey + 6 * _GREY_PER_DB * depth,
    "dynamic range 50 dB": lambda grey, depth: 255 - (255 - grey) * 60 / 50,
    "dynamic range 70 dB": lambda grey, depth: 255 - (255 - grey) * 60 / 70,
    "contrast 1.5": lambda grey, depth: 60 + 1.5 * (grey - 60),
    "blurred by 1.2 px": lambda grey, depth: cv2.GaussianBlur(grey, (0, 0), 1.2),
}


def answers_of(paths: Sequence[Path], folder: Path) -> tuple[list[dict], list[dict]]:
    """Patients and files passed over, as `predict` writes them."""
    predict(paths, output_dir=folder)
    summary = json.loads((folder / "predictions.json").read_text())
    return summary["patients"], summary["passed_over"]


def ultrasound_files() -> list[Path]:
    """The ultrasound files that pydicom brings."""
    import pydicom
    from pydicom.data import get_testdata_files

    found = []
    for path in sorted(get_testdata_files("*.dcm")):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, ValueError):
            continue
        if header.get("Modality") == "US":
            found.append(Path(path))
    return found


def turned(frame: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The frame with a change of its echo; `change` is given grey and depth, -0.5 to 0.5."""
    sector, grey = find_sector(frame), to_grey(frame)
    fan = sector.fan
    depth = fan.depth_px(grey.shape) / (fan.far_px - fan.near_px) - 0.5
    changed = np.clip(np.round(change(grey.astype(np.float32), depth)), 1, 255)
    return np.where(sector.mask & (grey > 0), changed, grey).astype(np.uint8)


def settings_table(frames: Sequence[np.ndarray]) -> str:
    """How answers to one frame each change with the settings of `SETTINGS`."""
    bundle = open_bundle()
    before = [bundle.answer("", [bundle.look("", frame)]).fat_percent for frame in frames]
    lines = ["| setting | frames | graded | score only | unable | fat moves by, median | at most |",
             "|---" * 7 + "|"]  # fmt: skip
    for name, change in SETTINGS.items():
        answers = [bundle.answer("", [bundle.look("", turned(frame, change))]) for frame in frames]
        kinds = Counter(answer.kind for answer in answers)
        moved = np.abs([answer.fat_percent for answer in answers] - np.array(before))
        counts = " | ".join(str(kinds[kind]) for kind in ("graded", "score_only", "unable"))
        lines.append(f"| {name} | {len(answers)} | {counts} | {np.nanmedian(moved):.1f} | "
                     f"{np.nanmax(moved):.1f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def phantoms() -> Pictures:
    """Frames of twelve simulated patients."""
    for place in range(12):
        random = np.random.default_rng(place)
        yield f"{place}", simulate_patient(8.0 * place, num_frames=1, generator=random)[0][0]


def inverted(frames: Sequence[np.ndarray]) -> Pictures:
    """White and black changed inside the sector."""
    for place, frame in enumerate(frames):
        yield f"{place}", np.where(find_sector(frame).mask, 255 - to_grey(frame), 0)


def row(name: str, answers: Sequence[dict]) -> str:
    kinds = Counter(answer["kind"] for answer in answers)
    codes = Counter(answer["reason_code"] for answer in answers if answer["kind"] == "unable")
    why = ", ".join(f"{code} {count}" for code, count in codes.most_common())
    counts = " | ".join(str(kinds[kind]) for kind in ("graded", "score_only", "unable"))
    return f"| {name} | {len(answers)} | {counts} | {why} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds byra2018/ and aul/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="of aul's half, each n-th picture")
    arguments = parser.parse_args(argv)
    byra_dir = arguments.data / "byra2018"
    labels = pd.read_csv(byra_dir / "labels.csv")
    first = labels.loc[labels["frame_index"] == 0, "path"]
    frames = [read_frame(byra_dir / path) for path in first]
    lines = ["| | pictures | graded | score only | unable | why unable |", "|---" * 6 + "|"]
    paths = [p for p in sorted((arguments.data / "aul").rglob("*.jpg")) if is_held_out(p.name)]
    others = [read_frame(path) for path in paths[:: arguments.every]]
    sets = sets_of(frames, arguments.data / "aul") | {
        "simulated phantoms": phantoms,
        "aul": lambda: ((str(place), one) for place, one in enumerate(others)),
        "inverted, byra2018": lambda: inverted(frames),
        "inverted, aul": lambda: inverted(others),
    }
    for name, make in sets.items():
        folder = arguments.out / name.replace(" ", "_")
        if name == _DICOM:
            answers, passed = answers_of(ultrasound_files(), folder)
            lines.append(row(f"{name}, studies", answers))
            for one in passed:
                lines.append(f"| {one['file']} | passed over | | | | {one['reason']} |")
            continue
        for place, (_, picture) in enumerate(make()):
            write_png(picture, folder / "pictures" / f"{place:04}.png")
        lines.append(row(name, answers_of([folder / "pictures"], folder)[0]))
    text = "\n".join(lines) + f"\n\n{settings_table(frames[::2])}"
    with replacing(arguments.out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
