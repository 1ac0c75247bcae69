"""A small study on disk: grey frames and a label table, all made up."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


def write_frame(path: Path, seed: int) -> Path:
    """Write a frame of smooth made-up texture, another one for every seed."""
    noise = np.random.default_rng(seed).normal(size=(60, 80)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    grey = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, grey)[1].tobytes())
    return path


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """`study(text, frames=[...])` writes frames and `labels.csv` and gives the table's path."""

    def make(text: str | bytes, frames: list[str]) -> Path:
        for seed, name in enumerate(frames):
            write_frame(tmp_path / "study" / name, seed)
        labels_path = tmp_path / "study" / "labels.csv"
        labels_path.parent.mkdir(exist_ok=True)
        labels_path.write_bytes(text.encode() if isinstance(text, str) else text)
        return labels_path

    return make
