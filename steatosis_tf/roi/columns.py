"""The ROI columns of a manifest: proposed for every frame, a person's kept, cut from a row."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.decisions import manifest_lock
from steatosis_tf.cohort.manifest import (
    MARKS_COLUMN,
    ROI_COLUMNS,
    SCALE_COLUMN,
    frame_path,
    pixels_sha256,
    read_manifest,
    write_manifest,
)
from steatosis_tf.cohort.near_duplicates import keep_hashes, kept_hashes, perceptual_hash
from steatosis_tf.config import RoiConfig
from steatosis_tf.files import file_sha256
from steatosis_tf.parallel import map_on_cores, map_on_runner
from steatosis_tf.roi.anatomy.liver import NETWORK_PATH
from steatosis_tf.roi.anatomy.overlays import overlay_fraction
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.roi.review.rules import keep_persons_boxes
from steatosis_tf.roi.sector.find import (
    ROI_VERSION,
    SECTOR_COLUMN,
    is_current,
    is_persons,
    kept_fan,
    persons_fan,
    sector_cell,
    sector_fan,
)
from steatosis_tf.roi.views import (
    VIEW_COLUMN,
    VIEW_VERSION,
    Rectangle,
    crop_roi,
    depth_px_per_cm,
    input_shape,
    model_input,
)
from steatosis_tf.sources.images import read_frame

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_ANSWER_COLUMNS = [
    *ROI_COLUMNS, "roi_quality", "roi_reason", "roi_code", MARKS_COLUMN, VIEW_COLUMN, SECTOR_COLUMN,
]  # fmt: skip

# A killed run loses at most this many proposals, or a twentieth of a large study, because the
# whole manifest is written each time.
_CHECKPOINT_ROWS = 500
_SCALE_DIGITS = 3
# One px of a sector of a megapixel still counts.
_MARKS_DIGITS = 6


def fill_manifest(
    manifest_path: str | Path,
    config: RoiConfig,
    *,
    again: bool = False,
    options: "PipelineOptions | None" = None,
) -> pd.DataFrame:
    """Propose a ROI for every frame of a manifest that has none of this kind, and write them.

    Written in steps and at Ctrl+C, so that a run that was broken off goes on where it stopped. On a
    runner the steps are files beside the manifest until all are there.

    Args:
        manifest_path: manifest to complete in place.
        config: how to propose.
        again: propose anew where an earlier proposal stands. A person's box or fan is never
            touched.
        options: Beam runner whose workers propose, see `parallel.beam_options`; None proposes on
            the cores of this machine. The proposals are the same.

    Returns:
        the completed table.

    Raises:
        ValueError: if the manifest cannot be used.
        RuntimeError: if the runner gave up; what is done stays for the next call.
    """
    table = _without_other_kinds(with_roi_columns(read_manifest(manifest_path)), config)
    automatic = table["roi_source"] != "person"
    if again:
        table.loc[automatic, list(ROI_COLUMNS)] = pd.NA
        table.loc[automatic, "roi_source"] = ""
        table.loc[~is_persons(table[SECTOR_COLUMN]), SECTOR_COLUMN] = ""
    for _ in _propose(table, manifest_path, config, options):
        write_automatic_boxes(manifest_path, table)
    return read_manifest(manifest_path)  # with what reviewers have decided meanwhile


def add_roi_columns(
    frame_table: pd.DataFrame,
    manifest_path: str | Path,
    config: RoiConfig,
    options: "PipelineOptions | None" = None,
    hashes_path: str | Path | None = None,
    crops_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Propose a ROI for every frame of a table that has none, leaving the manifest alone.

    Args:
        frame_table: manifest rows. Rows with a ROI, a person's above all, stay as they are, unless
            nothing of a box that a person drew or accepted is in a sector: the model could see
            nothing of it, so it is taken out of this table, with the reason, and named. Rows
            whose ROI is of the other kind (a rectangle where beam space is asked for, or the other
            way round), or an unseen proposal of another method or an earlier version, get one of
            this kind in this table; a person's "rejected" and fan stay.
        manifest_path: where the manifest lies; frame paths are relative to it.
        config: how to propose.
        options: Beam runner whose workers propose; None proposes on the cores of this machine.
        hashes_path: file that keeps the data-leakage check's hashes. Those of frames looked at
            here are added, so that it need not decode them again.
        crops_dir: folder in which the ROIs of frames looked at here are left for `cut_roi`, 50 kB
            each (beam space 120), so that records need not decode them again.

    Returns:
        the table with `roi_top, roi_left, roi_height, roi_width` (px of the full frame, empty
        where there is no proposal), `roi_source`, `roi_quality`, `roi_reason`, `roi_code` (of
        `rejection.REASONS`, where there is no proposal), `roi_view` (what the model sees, see
        `views.input_shape`) and `roi_sector`.
    """
    table = _without_other_kinds(with_roi_columns(frame_table), config)
    for _ in _propose(table, manifest_path, config, options, hashes_path, crops_dir):
        pass
    _empty_useless_boxes(table, manifest_path)
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


def cut_roi(
    row: dict[str, Any], manifest_path: str | Path, crops_dir: str | Path | None = None
) -> np.ndarray:
    """The ROI of a manifest row as the model sees it, uint8, 0 outside the sector.

    `(224, 224)` for a rectangle; for beam space the size that the cell `roi_view` says.

    Args:
        row: of the manifest.
        manifest_path: where it lies; frame paths are relative to it.
        crops_dir: where `add_roi_columns` left ROIs. One of the same pixels, sector and rectangle
            is taken from there; else the frame is decoded and cut.

    Raises:
        ValueError: if the frame is gone or changed, has no sector, or does not hold the
            rectangle. The text names the frame.
    """
    path = frame_path(manifest_path, row["path"])
    view, cell = row.get(VIEW_COLUMN, ""), row.get(SECTOR_COLUMN, "")
    try:
        rectangle = Rectangle(*(int(row[name]) for name in ROI_COLUMNS))
        if crops_dir is not None and cell:
            crop = _kept_crop(
                _crop_path(crops_dir, row["pixels_sha256"], rectangle, view, cell), view
            )
            if crop is not None:
                return crop
        frame = read_frame(path)
        digest = pixels_sha256(frame)
        if digest != row["pixels_sha256"]:
            raise ValueError("the pixels are not those the manifest was made from")
        return model_input(frame, sector_fan(frame, digest, cell), rectangle, view)
    except ValueError as error:
        raise ValueError(f"{path.name} (frame_id={row['frame_id']}): {error}") from error


def _crop_path(folder: str | Path, digest: str, rectangle: Rectangle, view: str, cell: str) -> Path:
    """File of a ROI: another one for other pixels, sectors, rectangles, views or code."""
    text = f"{VIEW_VERSION} {digest} {rectangle} {view} {cell}"
    return Path(folder, hashlib.sha256(text.encode()).hexdigest()[:32])


def _kept_crop(path: Path, view: str) -> np.ndarray | None:
    """A ROI that the proposal left; None where there is none, or half of one of a killed run."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    shape = input_shape(view)
    if len(data) != shape[0] * shape[1]:
        return None
    return np.frombuffer(data, np.uint8).reshape(shape)


def with_roi_columns(frame_table: pd.DataFrame) -> pd.DataFrame:
    """A copy of the table with all ROI columns; `roi_source` is "" where nobody has looked."""
    table = frame_table.copy()
    for name in ROI_COLUMNS:
        if name not in table.columns:
            table[name] = pd.array([pd.NA] * len(table), dtype="Int64")
    if "roi_source" not in table.columns:
        table["roi_source"] = np.where(table["roi_height"].notna(), "person", "")
    for name in ("roi_quality", MARKS_COLUMN):
        if name not in table.columns:
            table[name] = np.nan
    for name in ("roi_reason", "roi_code", VIEW_COLUMN, SECTOR_COLUMN):
        if name not in table.columns:
            table[name] = ""
    return table


def _without_other_kinds(table: pd.DataFrame, config: RoiConfig) -> pd.DataFrame:
    """The table with rows of another kind of ROI emptied, but for what a person has rejected; and
    proposals that nobody has looked at, if another method or an earlier version has made them:
    `predict` would cut others."""
    is_rejected = (table["roi_source"] == "person") & table["roi_height"].isna()
    other = (table[VIEW_COLUMN] != config.view) & (table["roi_source"] != "") & ~is_rejected
    is_open = table.get("roi_state", pd.Series("", table.index)) == ""
    is_made_so = _is_proposed_by(config, table) & (
        is_current(table[SECTOR_COLUMN]) | table["roi_height"].isna()
    )
    other |= (table["roi_source"] == "auto") & is_open & ~is_made_so
    if count := (other & table["roi_height"].notna()).sum():
        said = "ROIs are of an earlier version or another roi.method, and made anew"
        decided = ~is_open & other
        kept = f"; a person had decided on {decided.sum()} of them, which the manifest keeps"
        print(f"{count} {said}{kept if decided.any() else ''}", file=sys.stderr)
    table.loc[other, list(ROI_COLUMNS)] = pd.NA
    table.loc[other, "roi_source"] = ""
    if "roi_state" in table.columns:  # a person has decided on the other kind
        table.loc[other, "roi_state"] = ""
    return table


def _is_proposed_by(config: RoiConfig, table: pd.DataFrame) -> pd.Series:
    """Which automatic ROIs a config gives, told by quality and reason, see `propose.Roi`."""
    if config.view:
        return table[VIEW_COLUMN] == config.view
    has_box = table["roi_height"].notna()
    is_liver = has_box & (table["roi_reason"] == "") & (table["roi_quality"] > 0)
    is_fallback = has_box & (table["roi_reason"] != "")
    if config.method == "sector":
        return has_box & ~is_liver & ~is_fallback
    return is_liver | (is_fallback if config.sector_fallback else ~has_box)


def _propose(
    table: pd.DataFrame,
    manifest_path: str | Path,
    config: RoiConfig,
    options: "PipelineOptions | None" = None,
    hashes_path: str | Path | None = None,
    crops_dir: str | Path | None = None,
) -> Iterator[None]:
    """Fill the rows nobody has looked at, in place; yields after each step, so that the caller can
    store it. A runner's answers lie in files until then, and are one step."""
    wanted = table.index[table["roi_source"] == ""]
    folder_path = frame_path(manifest_path, "").resolve()
    paths = [os.path.join(folder_path, path) for path in table.loc[wanted, "path"]]
    digests, cells = table.loc[wanted, "pixels_sha256"], table.loc[wanted, SECTOR_COLUMN]
    cells = cells.where(is_persons(cells), "")  # other fans are found again
    known = kept_hashes(hashes_path)
    fresh: dict[str, str] = {}
    items = [
        (path, hashes_path is not None and digest not in known, cell)
        for path, digest, cell in zip(paths, digests, cells, strict=True)
    ]
    if crops_dir is not None:
        Path(crops_dir).mkdir(parents=True, exist_ok=True)
    work = partial(_answer, config, crops_dir)
    folder = None
    if options is None:
        found = map_on_cores(work, items, "ROI")
        step = max(_CHECKPOINT_ROWS, len(table) // 20)
    else:
        folder = _work_folder(Path(manifest_path), digests, config)
        found = map_on_runner(work, items, folder, options, desc="ROI")
        step = len(table)
    start = 0
    for block in _blocks(found, step):
        rows = wanted[start : start + len(block)]
        answered = [cells for cells, _, _ in block]
        fresh |= {digest: found_hash for _, digest, found_hash in block if found_hash}
        columns = pd.DataFrame(answered, columns=_ANSWER_COLUMNS, index=rows)
        for name in _ANSWER_COLUMNS:
            table.loc[rows, name] = columns[name].astype(table[name].dtype)
        table.loc[rows, "roi_source"] = "auto"
        if config.view and {"pixel_height_mm", "pixel_width_mm"} <= set(table.columns):
            filled = table.loc[rows].to_dict("records")
            table.loc[rows, SCALE_COLUMN] = [_scale(row) for row in filled]
        start += len(block)
        yield
    if hashes_path is not None and fresh:
        keep_hashes(hashes_path, fresh)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _blocks(found: Iterator[Any], step: int) -> Iterator[list[Any]]:
    """Answers, so many at a time; what is there when a run is broken off is the last block."""
    while True:
        block: list[Any] = []
        try:
            block.extend(islice(found, step))
        except (KeyboardInterrupt, RuntimeError):  # a person's Ctrl+C; a worker that was killed
            if block:
                yield block
            raise
        if not block:
            return
        yield block


def _answer(
    config: RoiConfig, crops_dir: str | Path | None, item: tuple[str, bool, str]
) -> tuple[list[Any], str, str]:
    """The columns of one frame, the hash of its pixels, and its perceptual hash if it is wanted.

    Without the sector's mask, to travel light between processes. The ROI itself is left in a file.
    """
    path, is_hashed, cell = item
    try:
        frame = read_frame(path)
        digest = pixels_sha256(frame)
        fan = persons_fan(digest, cell)
        roi = propose_roi(frame, config, fan)
    except ValueError as error:
        reason = [str(error), getattr(error, "code", "no_roi")]
        return [None, None, None, None, np.nan, *reason, np.nan, config.view, cell], "", ""
    box = roi.rectangle
    cell = sector_cell(roi.sector.fan, digest, by_person=fan is not None)
    sides = [box.top, box.left, box.height, box.width]
    if crops_dir is not None:
        crop = model_input(frame, roi.sector.fan, box, config.view, roi.overlay_mask)
        _crop_path(crops_dir, digest, box, config.view, cell).write_bytes(crop.tobytes())
    marks = round(overlay_fraction(roi.overlay_mask, roi.sector.mask), _MARKS_DIGITS)
    cells = [*sides, roi.quality, roi.reason, "", marks, config.view, cell]
    return cells, digest, perceptual_hash(frame).tobytes().hex() if is_hashed else ""


def _scale(row: dict[str, Any]) -> float:
    """Px of beam space per cm of depth; NaN where the scanner has not stated the size of a px."""
    sides = ("pixel_height_mm", "pixel_width_mm")
    px_mm = [pd.to_numeric(row[name], errors="coerce") for name in sides]
    fan = kept_fan(row["pixels_sha256"], row[SECTOR_COLUMN])
    if fan is None or not all(size > 0 for size in px_mm):
        return np.nan
    return round(depth_px_per_cm(fan, row[VIEW_COLUMN], *map(float, px_mm)), _SCALE_DIGITS)


def _work_folder(manifest_path: Path, pixels: pd.Series, config: RoiConfig) -> Path:
    """Beside the manifest; another one for other frames, settings or code."""
    settings = json.dumps(
        [ROI_VERSION, VIEW_VERSION, file_sha256(NETWORK_PATH),
         _ANSWER_COLUMNS, dataclasses.asdict(config)],
        sort_keys=True,
    )  # fmt: skip
    digest = hashlib.sha256(settings.encode())
    digest.update("".join(pixels).encode())
    return manifest_path.with_name(f"{manifest_path.name}.roi-{digest.hexdigest()[:16]}")


def _empty_useless_boxes(table: pd.DataFrame, manifest_path: str | Path) -> None:
    """Take out, in place, persons' boxes of which a model would see nothing, and name them.

    One that a person accepted lies in a sector, but an earlier version may have found that.

    Args:
        table: manifest rows with all ROI columns; `roi_reason` then says what is wrong.
        manifest_path: where the manifest lies; frame paths are relative to it.
    """
    is_box = table["roi_height"].notna() & (table[VIEW_COLUMN] == "")
    drawn = table["roi_source"] == "person"
    if "roi_state" in table.columns:
        drawn |= (table["roi_state"] == "accepted") & ~is_current(table[SECTOR_COLUMN])
    drawn = table.index[drawn & is_box]
    rows = [
        (
            frame_path(manifest_path, row["path"]),
            [int(row[name]) for name in ROI_COLUMNS],
            row[SECTOR_COLUMN],
        )
        for row in table.loc[drawn].to_dict("records")
    ]
    faults = map_on_cores(_fault_of_box, rows, "persons' boxes") if rows else []
    found = {index: fault for index, fault in zip(drawn, faults, strict=True) if fault}
    for index, fault in found.items():
        table.loc[index, list(ROI_COLUMNS)] = pd.NA
        table.at[index, "roi_reason"] = f"a person's box, but {fault}"
    if found:
        named = [f"frame_id={table.at[index, 'frame_id']} ({found[index]})" for index in found]
        print(
            f"warning: {len(found)} of {len(drawn)} boxes that a person drew or accepted are left "
            f"out here; the manifest keeps them. Decide on them again with `steatosis review "
            f"MANIFEST_CSV`: {'; '.join(named)}",
            file=sys.stderr,
        )


def _fault_of_box(row: tuple[Path, list[int], str]) -> str:
    path, box, cell = row
    try:
        frame = read_frame(path)
        fan = sector_fan(frame, pixels_sha256(frame), cell)
        crop_roi(frame, fan.mask(frame.shape[:2]), Rectangle(*box))
    except ValueError as error:
        return str(error)
    return ""
