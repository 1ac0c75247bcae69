"""From one ultrasound file to blanked frames on disk."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.files import move_into_place
from steatosis_tf.sources.dicom.deidentify import blanked, region_mask, sector_mask
from steatosis_tf.sources.dicom.pixels import FrameReader, Layout
from steatosis_tf.sources.dicom.read import read_dataset
from steatosis_tf.sources.dicom.regions import Region
from steatosis_tf.sources.rejection import Rejection

#: Frames of a clip looked at to find its sector.
_NUM_SECTOR_FRAMES = 8
# Some systems state the whole screen, banner and all, as the region.
_MAX_REGION_SHARE = 0.9
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 4]
_CHOICE = re.compile(r"(every|evenly):([1-9]\d{0,5})")


@dataclass(frozen=True)
class ClipResult:
    """What became of the chosen frames of one file.

    Attributes:
        frames: `(frame index, SHA-256 of its PNG file)` of every frame written.
        rejected: `(frame index, reason)` of every other chosen frame; index -1 is the whole file.
        kept_by: "region" (stated in the file), "sector" (found) or "" if nothing was kept.
        kept_box: `(top, left, height, width)` px around the kept pixels, or empty.
        kept_percent: share of the pixels kept.
    """

    frames: tuple[tuple[int, str], ...]
    rejected: tuple[tuple[int, str], ...]
    kept_by: str = ""
    kept_box: tuple[int, ...] = ()
    kept_percent: float = 0.0


def check_frame_choice(choice: str) -> None:
    """Raises:
    ValueError: if the choice is not `all`, `every:N` or `evenly:N` with N of 1 or more.
    """
    if choice != "all" and _CHOICE.fullmatch(choice) is None:
        raise ValueError(
            "Expected frames as all, every:N (each N-th) or evenly:N (N spread over the clip). "
            f"Received: frame_choice={choice!r}."
        )


def chosen_frames(choice: str, num_frames: int) -> list[int]:
    """Indices of the frames taken from a clip.

    Args:
        choice: `all`; `every:N`, frames 0, N, 2N, ...; or `evenly:N`, the middle frames of N
            equal stretches (all frames of a shorter clip).
        num_frames: length of the clip, 1 or more.
    """
    match = _CHOICE.fullmatch(choice)
    if match is None:
        return list(range(num_frames))
    number = int(match.group(2))
    if match.group(1) == "every":
        return list(range(0, num_frames, number))
    number = min(number, num_frames)
    return [(2 * part + 1) * num_frames // (2 * number) for part in range(number)]


def frame_name(clip_id: str, index: int) -> str:
    """File name of a frame; holds nothing but a keyed hash and the frame number."""
    return f"{clip_id}_{index:05d}.png"


def write_clip(
    data: bytes,
    layout: Layout,
    region: Region | None,
    chosen: Sequence[int],
    images_dir: Path,
    clip_id: str,
) -> ClipResult:
    """Decode, blank and write the chosen frames of a file.

    Args:
        data: the file.
        layout: of its frames.
        region: its 2-D region; None lets the sector be found.
        chosen: frame indices.
        images_dir: where the PNG files go, each moved into place when it is whole.
        clip_id: first part of their names.

    Returns:
        Every chosen index is in `frames` or in `rejected`, or -1 is in `rejected`.
    """
    try:
        dataset = read_dataset(io.BytesIO(data), with_pixels=True)
        reader = FrameReader(dataset, layout)
        mask = _kept_pixels(reader, layout, region)
    except Rejection as rejection:
        return ClipResult((), ((-1, str(rejection)),))
    frames, rejected = [], []
    for index in chosen:
        try:
            frame = blanked(reader.read(index), mask)
        except Rejection as rejection:
            rejected.append((index, str(rejection)))
        else:
            frames.append((index, _write_png(images_dir / frame_name(clip_id, index), frame)))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return ClipResult(
        tuple(frames),
        tuple(rejected),
        "sector" if _says_nothing(region, layout) else "region",
        tuple(
            int(number) for number in (rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1)
        ),
        round(100 * float(mask.mean()), 2),
    )


def _kept_pixels(reader: FrameReader, layout: Layout, region: Region | None) -> np.ndarray:
    if region is not None and not _says_nothing(region, layout):
        return region_mask(region, layout.rows, layout.columns)
    # One mask for the clip, from frames all over it: what never moves is no echo. It does not
    # depend on the frames chosen, or every:2 and every:3 would blank one frame differently.
    frames: list[np.ndarray] = []
    first_rejection: Rejection | None = None
    for index in chosen_frames(f"evenly:{_NUM_SECTOR_FRAMES}", layout.num_frames):
        try:
            frames.append(reader.read(index))
        except Rejection as rejection:
            first_rejection = first_rejection or rejection
    if first_rejection is not None and not frames:
        raise first_rejection
    mask = sector_mask(np.stack(frames))
    return mask if region is None else mask & region_mask(region, layout.rows, layout.columns)


def _says_nothing(region: Region | None, layout: Layout) -> bool:
    """Whether the banner with the patient's name would stay inside the stated region."""
    if region is None:
        return True
    share = region.height * region.width / (layout.rows * layout.columns)
    return share > _MAX_REGION_SHARE


def _write_png(path: Path, frame: np.ndarray) -> str:
    picture = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", picture, _PNG_OPTIONS)
    data = encoded.tobytes()
    part = path.with_suffix(".part")
    part.write_bytes(data)
    move_into_place(part, path)
    return hashlib.sha256(data).hexdigest()
