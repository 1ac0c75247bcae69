"""How far apart are copies, neighbours and strangers?

Question: at how many differing bits is a frame a near-duplicate (`NEAR_DISTANCE`)?
Command: python benchmarks/near_duplicates.py ../shared/data   (about 3 minutes on 2 cores)
Result: docs/data.md, "Near-duplicates".

Distances are the smaller of the two hashes' distances, as the check takes them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.cohort.near_duplicates import HASH_BYTES, NEAR_DISTANCE, perceptual_hash
from steatosis_tf.sources.images import read_frame, to_grey


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(frame: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)

    return change


def scale(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda frame: cv2.resize(frame, None, fx=factor, fy=factor, interpolation=kind)


def gamma(power: float) -> Callable[[np.ndarray], np.ndarray]:
    table = (255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return lambda frame: cv2.LUT(frame, table)


def gain(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda frame: np.clip(frame * factor, 0, 255).astype(np.uint8)


def text(frame: np.ndarray) -> np.ndarray:
    marked = frame.copy()
    cv2.putText(marked, "LIVER 12:33 MI 1.2", (10, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    middle = (frame.shape[1] // 2, frame.shape[0] // 2)
    return cv2.putText(marked, "+ 3.2 cm", middle, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG quality 75": jpeg(75),
    "JPEG quality 40": jpeg(40),
    "scale 0.5": scale(0.5),
    "scale 1.5": scale(1.5),
    "gamma 0.8": gamma(0.8),
    "gamma 1.25": gamma(1.25),
    "gain 0.8": gain(0.8),
    "gain 1.2": gain(1.2),
    "8 px trimmed": lambda frame: frame[8:-8, 8:-8].copy(),
    "margins added": lambda frame: cv2.copyMakeBorder(frame, 40, 40, 80, 80, cv2.BORDER_CONSTANT),
    "text burned in": text,
    "margins and JPEG 75": lambda frame: jpeg(75)(
        cv2.copyMakeBorder(frame, 40, 40, 80, 80, cv2.BORDER_CONSTANT)
    ),
}


def bits_apart(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`(num, num_others)` differing bits in the nearer hash, counted bit by bit."""
    half = HASH_BYTES // 2
    parts = [
        np.stack([np.bitwise_count(row ^ others[:, part]).sum(axis=1) for row in hashes[:, part]])
        for part in (slice(0, half), slice(half, None))
    ]
    return np.minimum(*parts)


def describe(name: str, distances: np.ndarray) -> None:
    low, half, high = np.percentile(distances, [0, 50, 100]).astype(int)
    caught = (distances <= NEAR_DISTANCE).mean()
    print(f"{name:28s} {len(distances):8d} pairs  min {low:3d}  median {half:3d}  max {high:3d}"
          f"  within {NEAR_DISTANCE}: {caught:.4f}")  # fmt: skip


def measure_distances(data_dir: Path) -> None:
    labels = pd.read_csv(data_dir / "byra2018" / "labels.csv")
    frames = [to_grey(read_frame(data_dir / "byra2018" / path)) for path in labels["path"]]
    hashes = np.stack([perceptual_hash(frame) for frame in frames])
    patients = labels["patient_id"].to_numpy()
    apart = bits_apart(hashes, hashes)
    upper = np.triu_indices(len(frames), 1)
    same = (patients[:, None] == patients[None])[upper]
    print("biopsy set, 44 patients, one scanner")
    describe("  one patient, two frames", apart[upper][same])
    describe("  two patients", apart[upper][~same])
    for name, split in (
        ("every other frame", labels["frame_index"] % 2 == 0),
        ("first and second half", labels["frame_index"] < 5),
    ):
        caught = sum(
            (
                apart[np.ix_((patients == p) & split, (patients == p) & ~split)] <= NEAR_DISTANCE
            ).any()
            for p in np.unique(patients)
        )
        print(f"  one clip under two ids, {name}: {caught} of {len(np.unique(patients))} found")

    paths = sorted((data_dir / "aul" / "images").glob("*.jpg"))
    outlined = [to_grey(read_frame(path)) for path in paths]
    outlined_hashes = np.stack([perceptual_hash(frame) for frame in outlined])
    print("outlined set, 588 images, many scanners")
    describe("  against the biopsy set", bits_apart(hashes, outlined_hashes).ravel())
    among = bits_apart(outlined_hashes, outlined_hashes)
    upper = np.triu_indices(len(outlined), 1)
    describe("  image against image", among[upper])
    nearest = np.argsort(among[upper])[:20]
    for pair in nearest:
        one, other = upper[0][pair], upper[1][pair]
        print(f"    {among[one, other]:3d}  {paths[one].stem}  {paths[other].stem}")

    print("changed copies of 44 + 147 frames")
    sample = frames[::10] + outlined[::4]
    own = np.stack([perceptual_hash(frame) for frame in sample])
    for name, change in CHANGES.items():
        changed = np.stack([perceptual_hash(change(frame)) for frame in sample])
        describe(f"  {name}", np.diagonal(bits_apart(own, changed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    measure_distances(parser.parse_args().data_dir)


if __name__ == "__main__":
    main()
