"""What does the shipped model answer to what it should not grade, through `predict` itself?

    python -m experiments.three_answers --data DATA_DIR --out runs/three_answers

Pictures of `experiments/novelty.py`, written as files and answered by `steatosis predict` with the
model that comes with the package: fans of byra2018 filled with photographs, one grey, noise; its
frames upside down and mirrored in depth; `aul`, livers of other scanners. pydicom's ultrasound
files are given as they are. (The 44 patients themselves, each answered by a model that had not seen
it, are counted by `experiments/ship_byra2018.py`.)

Time: 8 minutes of processor time. Result: docs/research/best.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.novelty import sets_of
from steatosis_tf.deploy.predict import predict
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.sources.images import read_frame, write_png

_DICOM = "other organs (pydicom)"


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
    parser.add_argument("--every", type=int, default=1, help="of aul, each n-th picture")
    arguments = parser.parse_args(argv)
    byra_dir = arguments.data / "byra2018"
    labels = pd.read_csv(byra_dir / "labels.csv")
    first = labels.loc[labels["frame_index"] == 0, "path"]
    frames = [read_frame(byra_dir / path) for path in first]
    lines = ["| | pictures | graded | score only | unable | why unable |", "|---" * 6 + "|"]
    for name, make in sets_of(frames, arguments.data / "aul").items():
        folder = arguments.out / name.replace(" ", "_")
        if name == _DICOM:
            answers, passed = answers_of(ultrasound_files(), folder)
            lines.append(row(f"{name}, studies", answers))
            for one in passed:
                lines.append(f"| {one['file']} | passed over | | | | {one['reason']} |")
            continue
        step = arguments.every if name == "aul" else 1
        for place, (_, picture) in enumerate(make()):
            if place % step == 0:
                write_png(picture, folder / "pictures" / f"{place:04}.png")
        lines.append(row(name, answers_of([folder / "pictures"], folder)[0]))
    text = "\n".join(lines) + "\n"
    with replacing(arguments.out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
