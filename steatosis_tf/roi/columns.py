"""The ROI columns of a manifest: the automatic proposal of every frame, a person's box kept."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steatosis_tf import __version__
from steatosis_tf.cohort.decisions import manifest_lock
from steatosis_tf.cohort.duplicates import keep_hashes, kept_hashes, perceptual_hash
from steatosis_tf.cohort.manifest import (
    ROI_COLUMNS,
    frame_path,
    pixels_sha256,
    read_manifest,
    write_manifest,
)
from steatosis_tf.config import RoiConfig
from steatosis_tf.parallel import map_on_cores, map_on_runner
from steatosis_tf.roi.crop import Rectangle, central_rectangle
from steatosis_tf.roi.liver import liver_probability
from steatosis_tf.roi.overlays import find_overlays
from steatosis_tf.roi.proposal import propose_rectangle
from steatosis_tf.roi.roi_cells import keep_persons_boxes
from steatosis_tf.roi.sector import Sector, find_sector
from steatosis_tf.roi.sector_cell import SECTOR_COLUMN, sector_cell
from steatosis_tf.roi.useless_boxes import empty_useless_boxes
from steatosis_tf.sources.folder import read_frame

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_ANSWER_COLUMNS = [*ROI_COLUMNS, "roi_quality", "roi_reason", SECTOR_COLUMN]

# A killed run loses at most this many proposals, or a twentieth of a large study, because the
# whole manifest is written each time.
_CHECKPOINT_ROWS = 500


@dataclass(frozen=True)
class Roi:
    """What the model would see of a frame.

    Attributes:
        sector: of the frame.
        rectangle: in px of the frame.
        quality: of the liver proposal, 0 to 1; 0 for the sector's rectangle.
        reason: why the sector's rectangle had to do, if it had.
    """

    sector: Sector
    rectangle: Rectangle
    quality: float = 0.0
    reason: str = ""


def propose_roi(frame: np.ndarray, config: RoiConfig) -> Roi:
    """The ROI of a frame, for training and for prediction alike.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        config: `method` "liver" looks for parenchyma, "sector" takes the sector's middle.

    Raises:
        ValueError: if no ROI can be proposed; the text is the reason.
    """
    sector = find_sector(frame)
    if config.method == "sector":
        return Roi(sector, central_rectangle(sector))
    overlays = find_overlays(frame, sector)
    proposal = propose_rectangle(frame, sector, liver_probability(frame, sector), overlays)
    if proposal.rectangle is not None:
        return Roi(sector, proposal.rectangle, proposal.quality)
    if not config.sector_fallback:
        raise ValueError(proposal.reason)
    return Roi(sector, central_rectangle(sector), proposal.quality, proposal.reason)


def fill_manifest(
    manifest_path: str | Path,
    config: RoiConfig,
    *,
    again: bool = False,
    options: "PipelineOptions | None" = None,
) -> pd.DataFrame:
    """Propose a ROI for every frame of a manifest that has none, and write them into it.

    Written in steps, so that a killed run goes on where it stopped. On a runner the steps are
    files beside the manifest until all are there.

    Args:
        manifest_path: manifest to complete in place.
        config: how to propose.
        again: propose anew where an earlier proposal stands. A person's box is never touched.
        options: Beam runner whose workers propose, see `parallel.beam_options`; None proposes on
            the cores of this machine. The proposals are the same.

    Returns:
        the completed table.

    Raises:
        ValueError: if the manifest cannot be used.
        RuntimeError: if the runner gave up; what is done stays for the next call.
    """
    table = with_roi_columns(read_manifest(manifest_path))
    automatic = table["roi_source"] != "person"
    if again:
        table.loc[automatic, list(ROI_COLUMNS)] = pd.NA
        table.loc[automatic, "roi_source"] = ""
        table[SECTOR_COLUMN] = ""
    for _ in _propose(table, manifest_path, config, options):
        write_automatic_boxes(manifest_path, table)
    return read_manifest(manifest_path)  # with what reviewers have decided meanwhile


def add_roi_columns(
    frame_table: pd.DataFrame,
    manifest_path: str | Path,
    config: RoiConfig,
    options: "PipelineOptions | None" = None,
    hashes_path: str | Path | None = None,
) -> pd.DataFrame:
    """Propose a ROI for every frame of a table that has none, leaving the manifest alone.

    Args:
        frame_table: manifest rows. Rows with a ROI, a person's above all, stay as they are, unless
            nothing of the person's box is in a sector: the model could see nothing of it, so it
            is taken out of this table, with the reason.
        manifest_path: where the manifest lies; frame paths are relative to it.
        config: how to propose.
        options: Beam runner whose workers propose; None proposes on the cores of this machine.
        hashes_path: file that keeps the leak gate's hashes. Those of frames looked at here are
            added, so that the gate need not decode them again.

    Returns:
        the table with `roi_top, roi_left, roi_height, roi_width` (px of the full frame, empty
        where there is no proposal), `roi_source`, `roi_quality`, `roi_reason` and `roi_sector`.
    """
    table = with_roi_columns(frame_table)
    for _ in _propose(table, manifest_path, config, options, hashes_path):
        pass
    empty_useless_boxes(table, manifest_path)
    return table


def write_automatic_boxes(manifest_path: str | Path, new_table: pd.DataFrame) -> None:
    """Store the ROI columns of an automatic run; a person's boxes and decisions stay as they are.

    Decisions taken while the run was computing count, too.

    Args:
        manifest_path: the manifest the run has read.
        new_table: all its rows, with new ROI columns.

    Raises:
        ValueError: if the manifest or the store of decisions cannot be read.
        OSError: if the manifest cannot be written.
    """
    with manifest_lock(manifest_path):
        write_manifest(keep_persons_boxes(read_manifest(manifest_path), new_table), manifest_path)


def with_roi_columns(frame_table: pd.DataFrame) -> pd.DataFrame:
    """A copy of the table with all ROI columns; `roi_source` is "" where nobody has looked."""
    table = frame_table.copy()
    for name in ROI_COLUMNS:
        if name not in table.columns:
            table[name] = pd.array([pd.NA] * len(table), dtype="Int64")
    if "roi_source" not in table.columns:
        table["roi_source"] = np.where(table["roi_height"].notna(), "person", "")
    if "roi_quality" not in table.columns:
        table["roi_quality"] = np.nan
    for name in ("roi_reason", SECTOR_COLUMN):
        if name not in table.columns:
            table[name] = ""
    return table


def _propose(
    table: pd.DataFrame,
    manifest_path: str | Path,
    config: RoiConfig,
    options: "PipelineOptions | None" = None,
    hashes_path: str | Path | None = None,
) -> Iterator[None]:
    """Fill the rows nobody has looked at, in place; yields after each step, so that the caller can
    store it. A runner's answers lie in files until then, and are one step."""
    wanted = table.index[table["roi_source"] == ""]
    folder_path = frame_path(manifest_path, "").resolve()
    paths = [os.path.join(folder_path, path) for path in table.loc[wanted, "path"]]
    known = kept_hashes(hashes_path)
    fresh: dict[str, str] = {}
    items = [
        (path, hashes_path is not None and digest not in known)
        for path, digest in zip(paths, table.loc[wanted, "pixels_sha256"], strict=True)
    ]
    work = partial(_answer, config)
    folder = None
    if options is None:
        found = map_on_cores(work, items, "ROI")
        step = max(_CHECKPOINT_ROWS, len(table) // 20)
    else:
        folder = _work_folder(Path(manifest_path), table.loc[wanted, "pixels_sha256"], config)
        found = map_on_runner(work, items, folder, options, desc="ROI")
        step = len(table)
    start = 0
    while block := list(islice(found, step)):
        rows = wanted[start : start + len(block)]
        cells = [cells for cells, _, _ in block]
        fresh |= {digest: found_hash for _, digest, found_hash in block if found_hash}
        columns = pd.DataFrame(cells, columns=_ANSWER_COLUMNS, index=rows)
        for name in _ANSWER_COLUMNS:
            table.loc[rows, name] = columns[name].astype(table[name].dtype)
        table.loc[rows, "roi_source"] = "auto"
        start += len(block)
        yield
    if hashes_path is not None and fresh:
        keep_hashes(hashes_path, fresh)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _answer(config: RoiConfig, item: tuple[str, bool]) -> tuple[list[Any], str, str]:
    """The columns of one frame, the hash of its pixels, and the leak gate's hash if it is wanted.

    Without the sector's mask, to travel light between processes.
    """
    path, is_hashed = item
    try:
        frame = read_frame(path)
        roi = propose_roi(frame, config)
    except ValueError as error:
        return [None, None, None, None, np.nan, str(error), ""], "", ""
    box, digest = roi.rectangle, pixels_sha256(frame)
    cell = sector_cell(roi.sector.fan, digest)
    cells = [box.top, box.left, box.height, box.width, roi.quality, roi.reason, cell]
    return cells, digest, perceptual_hash(frame).tobytes().hex() if is_hashed else ""


def _work_folder(manifest_path: Path, pixels: pd.Series, config: RoiConfig) -> Path:
    """Beside the manifest; another one for other frames, settings or code."""
    settings = json.dumps(
        [__version__, _ANSWER_COLUMNS, dataclasses.asdict(config)], sort_keys=True
    )
    digest = hashlib.sha256(settings.encode())
    digest.update("".join(pixels).encode())
    return manifest_path.with_name(f"{manifest_path.name}.roi-{digest.hexdigest()[:16]}")
