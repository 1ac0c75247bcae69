"""Sector and liver of every frame of a manifest, as mask files."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from steatosis_tf.atomic import replacing
from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.roi.liver import liver_mask
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.folder import read_frame


def write_masks(
    frame_table: pd.DataFrame, manifest_path: str | Path, masks_dir: str | Path
) -> None:
    """Write `<frame file stem>_sector.png` and `<stem>_liver.png` (0 or 255, full frame size).

    A frame without a sector has no masks; its `roi_reason` in the manifest says why.

    Args:
        frame_table: manifest rows.
        manifest_path: where the manifest lies.
        masks_dir: folder to write to.

    Raises:
        ValueError: if two frames have the same file stem, because their masks would collide.
    """
    stems = frame_table["path"].map(lambda path: PurePosixPath(path).stem)
    twice = stems[stems.duplicated()]
    if len(twice):
        raise ValueError(
            f"Expected every frame file to have a name of its own. Received: {len(twice)} "
            f"repeated, first stem={twice.iloc[0]!r}. Give them different names for the masks."
        )

    def work(path: str) -> None:
        try:
            frame = read_frame(frame_path(manifest_path, path))
            sector = find_sector(frame)
        except ValueError:
            return  # add_roi_columns has put the reason into the manifest
        masks = {"sector": sector.mask, "liver": liver_mask(frame, sector)}
        for name, mask in masks.items():
            target = Path(masks_dir) / f"{PurePosixPath(path).stem}_{name}.png"
            with replacing(target) as temporary:
                cv2.imwrite(str(temporary), mask.astype(np.uint8) * 255)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(tqdm(pool.map(work, frame_table["path"]), total=len(frame_table), desc="masks"))
