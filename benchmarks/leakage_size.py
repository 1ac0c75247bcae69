"""Does the data-leakage check take 100,000 frames in under 10 minutes and 4 GB on 2 cores?

Question: how long, and with how much memory, does `steatosis leaks` run on a study of this size?
Command: python benchmarks/leakage_size.py ../shared/data WORK_DIR   (10 minutes idle, 5 GB)
Result: docs/data.md, "Near-duplicates".

Every frame is a file of its own with pixels of its own, 636 x 434 px, JPEG: two real frames of
different patients of the biopsy set, turned, scaled, averaged; the ten frames of a patient are
shifted by a pixel each. The first frame of every hundredth patient is also stored, in half the
size, under another patient on the other side of the split: the check has to find each of these,
and nobody else. A study that stands in WORK_DIR already is used again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.cohort.manifest import MANIFEST_COLUMNS, frame_id_of, pixels_sha256
from steatosis_tf.grades import GRADES
from steatosis_tf.sources.images import read_frame, to_grey

FRAMES_PER_PATIENT = 10
#: One patient in so many has a copy of one frame under another patient.
PLANTED_EVERY = 100
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 85]


def make_patient(sources: list[Path], work_dir: Path, number: int) -> list[str]:
    """Write the frames of one made-up patient; their manifest rows."""
    rng = np.random.default_rng(number)
    chosen = [to_grey(read_frame(sources[k])) for k in rng.choice(len(sources), 2, False)]
    height, width = chosen[0].shape
    spare = FRAMES_PER_PATIENT
    mixed = np.zeros((height + spare, width + spare), np.uint8)
    for frame in chosen:
        turn, scale = rng.uniform(-25, 25), rng.uniform(0.8, 1.3)
        place = cv2.getRotationMatrix2D((width / 2, height / 2), turn, scale)
        place[:, 2] += rng.uniform(-60, 60, 2)
        moved = cv2.warpAffine(frame, place, mixed.shape[::-1])
        mixed = cv2.addWeighted(mixed, 1, moved, 0.6, 0)
    frames = {
        f"{number:05d}_{k}": (mixed[k : k + height, k : k + width], number)
        for k in range(FRAMES_PER_PATIENT)
    }
    if number % PLANTED_EVERY == 0:
        small = cv2.resize(mixed[:height, :width], None, fx=0.5, fy=0.5)
        frames[f"{number:05d}_copy"] = (small, number + 9)  # number + 9 is a test patient
    return [_write(work_dir, name, *frame) for name, frame in frames.items()]


def _write(work_dir: Path, name: str, frame: np.ndarray, patient: int) -> str:
    path = f"images/{name}.jpg"
    (work_dir / path).write_bytes(cv2.imencode(".jpg", frame, _JPEG)[1].tobytes())
    stored = pixels_sha256(read_frame(work_dir / path))
    split = {8: "validation", 9: "test"}.get(patient % 10, "train")
    grade = GRADES[patient % len(GRADES)]
    return f"{frame_id_of(path)},{path},P{patient:05d},{grade},,{stored},{split}"


def make_study(data_dir: Path, work_dir: Path, num_patients: int) -> None:
    """Frames and a manifest with a split, as `steatosis manifest` and `split` write it."""
    (work_dir / "images").mkdir(parents=True)
    sources = sorted((data_dir / "byra2018" / "images").glob("*.png"))[::FRAMES_PER_PATIENT]
    with Pool(2) as pool:
        rows = pool.map(partial(make_patient, sources, work_dir), range(num_patients), 50)
    lines = [",".join((*MANIFEST_COLUMNS, "split")), *(row for patient in rows for row in patient)]
    (work_dir / "manifest.csv").write_text("\n".join(lines) + "\n")


def time_gate(work_dir: Path) -> dict[str, object]:
    """Run the check as a user does, in a process of its own."""
    report = work_dir / "leaks.json"
    verb = ["leaks", str(work_dir / "manifest.csv"), "--report", str(report)]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "steatosis_tf.cli", *verb],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    usage: resource.struct_rusage
    _, status, usage = os.wait4(process.pid, 0)
    findings = json.loads(report.read_text())["result"]["findings"]
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "found": sum(finding["kind"] == "near_duplicate" for finding in findings),
        "found_others": sum(finding["kind"] != "near_duplicate" for finding in findings),
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gb": round(usage.ru_maxrss / 1e6, 2),
        "load_average": [round(value, 1) for value in os.getloadavg()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("work_dir", type=Path, help="may be deleted afterwards")
    parser.add_argument("--frames", type=int, default=100_000)
    arguments = parser.parse_args()
    num_patients = arguments.frames // FRAMES_PER_PATIENT
    if not (arguments.work_dir / "manifest.csv").is_file():
        make_study(arguments.data_dir, arguments.work_dir, num_patients)
    num_frames = len((arguments.work_dir / "manifest.csv").read_text().splitlines()) - 1
    planted = -(-num_patients // PLANTED_EVERY)
    sizes = {"num_frames": num_frames, "planted": planted}
    print(json.dumps(sizes | time_gate(arguments.work_dir)))


if __name__ == "__main__":
    main()
