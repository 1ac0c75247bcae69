"""What the backbone makes of the frames of a study, once per view, kept on disk for `joint.py`.

The maps of both taps are kept as means across the beams, one row per step of depth, from which
every pooling of the table follows.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.files import replacing
from steatosis_tf.model.backbone import LEVEL, at_one_level, roi_input
from steatosis_tf.model.efficientnet_lite0 import lite0_taps
from steatosis_tf.model.rules import band_rows
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import Rectangle, beam_space, input_shape, model_input
from steatosis_tf.sources.images import read_frame

BEAMS = "beamspace 384 x 320"
#: Grey levels per dB where a display of 60 dB fills 0 to 255.
_GREY_PER_DB = 255 / 60
_BATCH = 8

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class View:
    """What the network is shown and how it is set.

    Attributes:
        name: of its file.
        view: as `roi.views` knows it; "" is the sector's bounding box at 224 px.
        weights: of the network.
        paint_out: whether text and lines inside the sector are painted out, as the pipeline does.
        normalize_gain: whether the mean grey level inside the sector is made the same.
        change: of beam space `(depth, beams)` float32 and where echo is, or None.
        frame_step: every n-th frame of a patient.
    """

    name: str
    view: str = BEAMS
    weights: str = "imagenet"
    paint_out: bool = True
    normalize_gain: bool = True
    change: Change | None = None
    frame_step: int = 1


def _gain(decibel: float, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return grey + decibel * _GREY_PER_DB


def _slope(decibel: float, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return grey + decibel * _GREY_PER_DB * np.linspace(-0.5, 0.5, len(grey))[:, None]


def _dynamic_range(decibel: float, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return 255 - (255 - grey) * 60 / decibel


#: What a person at the scanner may turn: name -> change of the picture.
SETTINGS: dict[str, Change] = {
    "gain -6 dB": partial(_gain, -6.0),
    "gain +6 dB": partial(_gain, 6.0),
    "time gain slope -6 dB": partial(_slope, -6.0),
    "time gain slope +6 dB": partial(_slope, 6.0),
    "dynamic range 50 dB": partial(_dynamic_range, 50.0),
    "dynamic range 70 dB": partial(_dynamic_range, 70.0),
}


def row_means(
    view: View, frames: pd.DataFrame, manifest_path: Path, store_dir: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Both taps of every frame, mean across the beams: `(num_frames, rows, channels)` float32."""
    path = store_dir / f"{view.name.replace(' ', '_')}.npz"
    if not path.is_file():
        pictures = (shown(read_frame(frame_path(manifest_path, one)), view) for one in frames.path)
        maps = taps_of(tqdm(pictures, view.name, len(frames), file=sys.stderr), view)
        store_dir.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, near=maps[0], far=maps[1])
    with np.load(path) as stored:
        return stored["near"], stored["far"]


def shown(frame: np.ndarray, view: View) -> np.ndarray:
    """The picture that the network sees of a frame, as the pipeline makes it."""
    sector = find_sector(frame)
    if not view.view:
        rows, columns = (np.flatnonzero(sector.mask.any(axis=axis)) for axis in (1, 0))
        box = Rectangle(int(rows[0]), int(columns[0]), len(rows), len(columns))
        return model_input(frame, sector.fan, box)
    if not view.paint_out:
        return beam_space(frame, sector.fan)
    picture = model_input(frame, sector.fan, view=view.view)
    if view.change is None:
        return picture
    inside = beam_space(np.full(frame.shape[:2], 255, np.uint8), sector.fan) > 0
    changed = np.round(view.change(picture.astype(np.float32), inside))
    return np.where(inside, np.clip(changed, 0, 255), 0).astype(np.uint8)


def taps_of(pictures: Sequence[np.ndarray], view: View) -> tuple[np.ndarray, np.ndarray]:
    """`row_means` of pictures as the network sees them."""
    model = taps_model(view)
    graph = tf.function(lambda batch: model(batch, training=False))
    found: list[list[np.ndarray]] = [[], []]
    batch: list[np.ndarray] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == _BATCH:
            _add(found, graph, batch)
            batch = []
    if batch:
        _add(found, graph, batch)
    near, far = (np.concatenate(maps) for maps in found)
    return near, far


def taps_model(view: View) -> keras.Model:
    """The backbone of `build_backbone` before its pooling."""
    roi, grey = roi_input(input_shape(view.view))
    if view.normalize_gain:
        grey = at_one_level(grey, LEVEL)
    return keras.Model(roi, lite0_taps(grey, view.weights, seed=0))


def pooled(
    maps: tuple[np.ndarray, np.ndarray], near_bands: int = 4, far: bool = True
) -> np.ndarray:
    """Feature vectors of row means: bands of the first tap (none if 0), then the second's mean."""
    near, coarse = maps
    parts = [coarse.mean(axis=1)] if far else []
    if near_bands:
        bands = band_rows(near.shape[1], near_bands)
        parts = [near[:, first:end].mean(axis=1) for first, end in bands] + parts
    return np.concatenate(parts, axis=1)


def _add(found: list[list[np.ndarray]], graph: Callable, batch: list[np.ndarray]) -> None:
    for kept, maps in zip(found, graph(tf.constant(np.array(batch)[..., None])), strict=True):
        kept.append(maps.numpy().mean(axis=2))
