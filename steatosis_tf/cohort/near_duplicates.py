"""Copies of a frame that no longer have its bytes: re-saved, resized, trimmed, brighter, mirrored.

Every frame gets two 256-bit hashes, one of the middle of the picture as it is, one of a window
laid out by where the echoes are, which finds a copy with other margins. A bit says whether a
point is brighter than its surroundings (difference of Gaussians on 64 x 64 px), so neither gain
nor burned-in text at the rim matters. How far apart copies and strangers lie,
the reason for `NEAR_DISTANCE`, stands in `docs/data.md`.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import frame_path, pixels_sha256
from steatosis_tf.files import write_csv
from steatosis_tf.parallel import map_in_threads, map_on_runner
from steatosis_tf.sources.images import read_frame, to_grey

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

#: Frames at most so many of 256 bits apart, in either hash, are one picture.
NEAR_DISTANCE = 32

HASH_BITS = 256
HASH_BYTES = 2 * HASH_BITS // 8

#: Column of the cache; another way to hash needs another name, so that old caches are not used.
HASH_NAME = "difference_of_gaussians_2x256_v1"

#: More pairs than this are no accident but a splash screen under every patient.
MAX_PAIRS = 2_000_000

_SIDE_PX = 64  # both hashes are taken on squares of this size
_POINTS = 16  # of each row and column of such a square give a bit
_BLOCK = 1024  # rows compared at a time: 4 MB of float32


#: Counts up whenever another hash may come of the same pixels.
HASH_VERSION = 1


def perceptual_hash(frame: np.ndarray) -> np.ndarray:
    """Hash a frame by what it shows.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8, 0 to 255.

    Returns:
        `(64,)` uint8: 256 bits of the middle, then 256 bits of the echo window; all zero for a
        picture without texture, which resembles nothing.
    """
    grey = to_grey(frame)
    return np.concatenate([_bits(_middle(grey)), _bits(_echo_window(grey))])


def hash_frames(
    frame_table: pd.DataFrame,
    manifest_path: str | Path,
    cache_path: str | Path | None = None,
    options: "PipelineOptions | None" = None,
) -> np.ndarray:
    """Hash every frame of a manifest.

    Args:
        frame_table: manifest.
        manifest_path: where the manifest lies; `path` is relative to its folder.
        cache_path: CSV that keeps hashes by `pixels_sha256`, so that the next call decodes only
            new frames. None keeps nothing.
        options: Beam runner whose workers hash, see `parallel.beam_options`; None hashes here.

    Returns:
        `(num_frames, 64)` uint8, rows as in `frame_table`.

    Raises:
        ValueError: if frames are unreadable or are no longer those the manifest was made from.
            The text lists all of them.
    """
    known = kept_hashes(cache_path)
    todo = frame_table.loc[~frame_table["pixels_sha256"].isin(list(known))]
    todo = todo.drop_duplicates("pixels_sha256")
    faults: list[str] = []
    folder = frame_path(manifest_path, "").resolve()
    items = [
        (os.path.join(folder, path), digest)
        for path, digest in zip(todo["path"], todo["pixels_sha256"], strict=True)
    ]
    for frame_id, (_, digest), (fault, found) in zip(
        todo["frame_id"], items, _hashed(items, Path(manifest_path), options), strict=True
    ):
        if fault:
            faults.append(f"  frame_id={frame_id}: {fault}")
        else:
            known[digest] = found
    if faults:
        raise ValueError(
            f"Expected every frame as the manifest has it. Received: {len(faults)} others. Put the "
            "files back or make the manifest again.\n" + "\n".join(faults)
        )
    if cache_path is not None and len(todo):
        keep_hashes(cache_path, known)
    hashes = bytearray()
    for digest in frame_table["pixels_sha256"]:
        hashes += bytes.fromhex(known[digest])
    return np.frombuffer(hashes, np.uint8).reshape(len(frame_table), HASH_BYTES)


def _hashed(
    items: list[tuple[str, str]], manifest_path: Path, options: "PipelineOptions | None"
) -> Iterator[tuple[str, str]]:
    """Fault and hash, as hex digits, of every frame."""
    if options is not None:
        text = "".join(f"{HASH_NAME} {digest}" for _, digest in items)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = manifest_path.with_name(f"{manifest_path.name}.hashes-{key}")
        yield from map_on_runner(_hash_of, items, folder, options, desc="hashes")
        shutil.rmtree(folder, ignore_errors=True)
        return
    yield from map_in_threads(_hash_of, items, "hashes")


def _hash_of(item: tuple[str, str]) -> tuple[str, str]:
    path, expected_sha256 = item
    try:
        frame = read_frame(path)
    except ValueError as error:
        return str(error), ""
    if pixels_sha256(frame) != expected_sha256:
        return "the pixels are not those the manifest was made from", ""
    return "", perceptual_hash(frame).tobytes().hex()


def near_pairs(
    hashes: np.ndarray, groups: np.ndarray, distance: int = NEAR_DISTANCE
) -> list[tuple[int, int, int]]:
    """Find all pairs of near-identical frames that belong to different groups.

    Exact: each pair is compared, as it is and mirrored left to right, as a matrix product of bits
    written -1 and +1, in blocks. 100,000 frames are five thousand million pairs.

    Args:
        hashes: `(num_frames, 64)` uint8, from `perceptual_hash`.
        groups: `(num_frames,)` of anything comparable, the patient of each frame.
        distance: largest number of differing bits, 0 to 255, in the nearest of the hashes.

    Returns:
        `(row, later row, bits apart)`, sorted.

    Raises:
        ValueError: if there are more than `MAX_PAIRS` of them.
    """
    codes = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int32)
    rows = np.flatnonzero(hashes.any(axis=1))
    codes = codes[rows]
    halves = np.split(hashes[rows], 2, axis=1)
    # bits apart = (256 - product) / 2
    least = HASH_BITS - 2 * distance
    found: list[tuple[int, int, int]] = []
    for top in range(0, len(rows), _BLOCK):
        above = [_signs(half[top : top + _BLOCK]) for half in halves]
        above += [_mirrored(half) for half in above]
        for left in range(top, len(rows), _BLOCK):
            beside = 2 * [_signs(half[left : left + _BLOCK]) for half in halves]
            product = above[0] @ beside[0].T
            for upper_half, half in zip(above[1:], beside[1:], strict=True):
                np.maximum(product, upper_half @ half.T, out=product)
            if product.max() < least:
                continue
            upper, lower = np.nonzero(product >= least)
            keep = (codes[top + upper] != codes[left + lower]) & (top + upper < left + lower)
            apart = (HASH_BITS - product[upper[keep], lower[keep]]) / 2
            found += zip(
                rows[top + upper[keep]].tolist(),
                rows[left + lower[keep]].tolist(),
                apart.astype(int).tolist(),
                strict=True,
            )
            if len(found) > MAX_PAIRS:
                raise ValueError(
                    f"Expected frames that differ between patients. Received: over {MAX_PAIRS} "
                    f"pairs that look alike, for example rows {found[-1][0]} and {found[-1][1]}. "
                    "Take splash screens and test images out of the label table."
                )
    return sorted(found)


def training_hashes(frame_table: pd.DataFrame, manifest_path: str | Path) -> dict[str, list[str]]:
    """What tells later whether a frame was among these: exact and perceptual hashes, sorted.

    The order says nothing of patients. Whoever holds a frame can still ask whether it took part.

    Args:
        frame_table: manifest of the frames that were learned from.
        manifest_path: where the manifest lies.

    Returns:
        `pixels_sha256` and `HASH_NAME`, hex digits, each sorted.

    Raises:
        ValueError: as of `hash_frames`.
    """
    hashes = hash_frames(frame_table, manifest_path)
    return {
        "pixels_sha256": sorted(set(frame_table["pixels_sha256"])),
        HASH_NAME: sorted({row.tobytes().hex() for row in hashes}),
    }


def find_training_frames(
    known: dict[str, list[str]], frame_table: pd.DataFrame, manifest_path: str | Path
) -> dict[str, list[str]]:
    """Frames of a manifest that a model has learned from.

    Args:
        known: of `training_hashes`.
        frame_table: manifest of frames that the model is tested on.
        manifest_path: where the manifest lies.

    Returns:
        `same_pixels` and `near_duplicate`: `frame_id` of each, in the order of the manifest.

    Raises:
        ValueError: as of `hash_frames`, or if the hashes were made another way.
    """
    if {"pixels_sha256", HASH_NAME} - known.keys():
        raise ValueError(
            f"Expected hashes of training frames under pixels_sha256 and {HASH_NAME}. Received: "
            f"{', '.join(sorted(known))}. Another version of steatosis_tf wrote them."
        )
    same = frame_table["pixels_sha256"].isin(known["pixels_sha256"]).to_numpy()
    digits = bytes.fromhex("".join(known[HASH_NAME]))
    learned = np.frombuffer(digits, np.uint8).reshape(-1, HASH_BYTES)
    hashes = np.concatenate([learned, hash_frames(frame_table, manifest_path)])
    side = np.repeat([0, 1], [len(learned), len(frame_table)])
    near = np.zeros(len(frame_table), bool)
    near[[later - len(learned) for _, later, _ in near_pairs(hashes, side)]] = True
    ids = frame_table["frame_id"]
    return {"same_pixels": ids[same].tolist(), "near_duplicate": ids[near & ~same].tolist()}


def _signs(packed: np.ndarray) -> np.ndarray:
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1


def _mirrored(signs: np.ndarray) -> np.ndarray:
    # Within 22 bits of the hash of the mirrored picture (44 biopsy frames), as the points lie
    # evenly; strangers are 44 bits away and more (1,892 and 344,568 pairs of two public sets).
    return signs.reshape(-1, _POINTS, _POINTS)[:, :, ::-1].reshape(-1, HASH_BITS)


def _middle(grey: np.ndarray) -> np.ndarray:
    # The middle 60 x 70 % lies inside the sector of every scanner seen; text stands at the rim.
    height, width = grey.shape
    middle = grey[int(0.15 * height) : int(0.85 * height), int(0.2 * width) : int(0.8 * width)]
    return cv2.resize(middle, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)


def _echo_window(grey: np.ndarray) -> np.ndarray:
    """The window that holds a fixed proportion of the echoes: shares move with the picture, not
    with its margins, and hardly with gain."""
    coarse = cv2.resize(grey, (160, 120), interpolation=cv2.INTER_AREA)
    background = int(np.bincount(coarse.ravel(), minlength=256).argmax())
    if background > 40:  # most of the frame is echoes
        background = 0
    echoes = np.sqrt(np.maximum(coarse.astype(np.float32) - background - 3, 0))
    if not echoes.any():
        return np.zeros((_SIDE_PX, _SIDE_PX), np.uint8)
    left, right = _shares(echoes.sum(axis=0), (0.10, 0.90)) * grey.shape[1] / 160
    top, bottom = _shares(echoes.sum(axis=1), (0.05, 0.85)) * grey.shape[0] / 120
    step_x, step_y = max(right - left, 1) / _SIDE_PX, max(bottom - top, 1) / _SIDE_PX
    smooth = cv2.blur(grey, (max(1, round(step_x)), max(1, round(step_y))))
    # warpAffine samples between pixels, so the window moves smoothly.
    place = np.array([[step_x, 0, left], [0, step_y, top]], np.float32)
    return cv2.warpAffine(
        smooth, place, (_SIDE_PX, _SIDE_PX), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )


def _shares(profile: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    cumulative = np.cumsum(profile, dtype=np.float64)
    return np.interp(shares, cumulative / cumulative[-1], np.arange(1, len(profile) + 1))


def _bits(square: np.ndarray) -> np.ndarray:
    values = square.astype(np.float32)
    detail = cv2.GaussianBlur(values, (0, 0), 1) - cv2.GaussianBlur(values, (0, 0), 4)
    if np.ptp(detail) < 2:  # grey levels; a flat picture would hash to rounding noise
        return np.zeros(HASH_BITS // 8, np.uint8)
    return np.packbits(detail[2::4, 2::4] > 0)


def kept_hashes(cache_path: str | Path | None) -> dict[str, str]:
    """Hashes, as hex digits, by `pixels_sha256`; none if there is no such file."""
    if cache_path is None or not Path(cache_path).is_file():
        return {}
    table = pd.read_csv(cache_path, dtype=str, keep_default_na=False)
    if list(table.columns) != ["pixels_sha256", HASH_NAME]:
        return {}  # of another version: hashed anew and replaced
    return dict(table.itertuples(index=False, name=None))


def keep_hashes(cache_path: str | Path, hashes: dict[str, str]) -> None:
    """Keep hashes, as hex digits by `pixels_sha256`, beside those that are kept already."""
    known = kept_hashes(cache_path) | hashes
    write_csv(pd.DataFrame(sorted(known.items()), columns=["pixels_sha256", HASH_NAME]), cache_path)
