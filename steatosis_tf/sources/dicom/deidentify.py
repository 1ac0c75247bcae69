"""What may leave the hospital: named fields, and the pixels of the ultrasound picture.

An allow-list: a field that is not named here does not leave, whatever a scanner puts into it."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom

from steatosis_tf.files import BEING_WRITTEN, move_into_place
from steatosis_tf.roi.anatomy.overlays import find_overlays
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.dicom.personal import Finder, personal_values
from steatosis_tf.sources.dicom.pixels import FrameReader, Layout
from steatosis_tf.sources.dicom.read import Header, Region, read_dataset, text_of
from steatosis_tf.sources.images import read_frame, refuse_colours, to_grey
from steatosis_tf.sources.rejection import Rejection

#: Columns of labels.csv that come from the header; nothing else of it leaves.
KEPT_FIELDS = (
    "manufacturer",
    "model",
    "transducer_frequency_mhz",
    "pixel_height_mm",
    "pixel_width_mm",
    "sex",
    "age",
    "days_since_first_study",
)

_MAX_TEXT = 64
_ALLOWED_TEXT = re.compile(r"[^A-Za-z0-9 .,()/_+-]")

# A fan fitted worse than this may reach over text beside it. Every second of the same pictures
# gives 5 of 294 below, one of them with 3 % of its bright pixels outside the outlined sector; a
# fan drawn over the menu bar of pydicom's cine loop, by an earlier finder, scored 1.3 to 1.9.
_MIN_SECTOR_SCORE = 2.0


def kept_fields(dataset: pydicom.Dataset, header: Header, region: Region | None) -> dict[str, str]:
    """The cells of `KEPT_FIELDS` for one file; "" where the file does not say.

    `days_since_first_study` stays "": it takes all files of the patient.

    Args:
        dataset: its header.
        header: the same, read.
        region: its 2-D region, or None.
    """
    finder = Finder(personal_values(dataset))
    spacing_mm = (None, None) if region is None else (region.pixel_height_mm, region.pixel_width_mm)
    frequency_mhz = None if region is None else region.transducer_frequency_mhz
    cells: tuple[str | float | None, ...] = (
        technical_text(text_of(dataset, "Manufacturer"), finder),
        technical_text(text_of(dataset, "ManufacturerModelName"), finder),
        frequency_mhz,
        *spacing_mm,
        header.sex,
        header.age,
        None,
    )
    return dict(zip(KEPT_FIELDS, map(_cell, cells), strict=True))


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def technical_text(text: str, finder: Finder) -> str:
    """A manufacturer or model name, or "" if a personal value of the same file is in it.

    Free text has been seen to hold whatever was typed into the wrong field.
    """
    plain = " ".join(_ALLOWED_TEXT.sub(" ", text).split())[:_MAX_TEXT].strip()
    plain = plain.lstrip("=+-@ ")  # a spreadsheet would run it as a formula
    return "" if finder.in_text(text) or finder.in_text(plain) else plain


def region_mask(region: Region, rows: int, columns: int) -> np.ndarray:
    """`(rows, columns)` bool, True inside the region."""
    mask = np.zeros((rows, columns), bool)
    mask[region.top : region.top + region.height, region.left : region.left + region.width] = True
    return mask


def sector_mask(frames: np.ndarray) -> np.ndarray:
    """Pixels of the ultrasound sector found in a clip without a stated region.

    Args:
        frames: `(num_frames, height, width)` or `(num_frames, height, width, 3)` RGB, uint8.

    Returns:
        `(height, width)` bool.

    Raises:
        Rejection: if no sector is found, one that may hold more than the picture, or two side by
            side.
    """
    try:
        sector = find_sector(frames)
    except Rejection:  # two pictures
        raise
    except ValueError as error:
        raise Rejection("no_sector") from error
    if sector.score < _MIN_SECTOR_SCORE:
        for frame in frames:
            refuse_colours(frame[sector.mask])  # often the true reason for the doubt
        raise Rejection("doubtful_sector")
    return sector.mask


def blanked(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame with 0 wherever the mask is False, grey if its channels are equal there.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        mask: `(height, width)` bool, True where pixels may leave.

    Raises:
        Rejection: if Doppler colours or nothing at all is left.
    """
    kept = np.where(mask if frame.ndim == 2 else mask[..., None], frame, np.uint8(0))
    inside = frame[mask]
    if inside.size == 0 or inside.min() == inside.max():
        raise Rejection("flat_frame")
    if frame.ndim == 2:
        return kept
    refuse_colours(inside)
    return kept if (inside != inside[:, :1]).any() else kept[..., 0]


#: Frames of a clip looked at to find its sector.
_NUM_SECTOR_FRAMES = 8
# Some systems state the whole screen, banner and all, as the region.
_MAX_REGION_SHARE = 0.9
SHEETS_DIR = "sheets"
_SHEET_GRID, _THUMB_PX = (6, 8), (150, 200)  # (rows, columns), (height, width)
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 4]
_CHOICE = re.compile(r"(every|evenly):([1-9]\d{0,5})")


@dataclass(frozen=True)
class ClipResult:
    """What became of the chosen frames of one file.

    Attributes:
        frames: `(frame index, SHA-256 of its PNG file)` of every frame written.
        rejected: `(frame index, code, reason)` of every other chosen frame; index -1 is the whole
            file, and the first frame beyond the end of the pixel data stands for all of them.
        kept_by: "region" (stated in the file), "sector" (found), "both" or "" if nothing was kept.
        kept_box: `(top, left, height, width)` px around the kept pixels, or empty.
        kept_percent: proportion of the pixels kept.
        marked: index of every frame written that has text or other marks among the kept pixels.
        num_beyond: chosen frames beyond the end of the pixel data.
    """

    frames: tuple[tuple[int, str], ...]
    rejected: tuple[tuple[int, str, str], ...]
    kept_by: str = ""
    kept_box: tuple[int, ...] = ()
    kept_percent: float = 0.0
    marked: tuple[int, ...] = ()
    num_beyond: int = 0

    @classmethod
    def of(cls, rejection: Rejection) -> "ClipResult":
        """The result of a file that is left out as a whole."""
        return cls((), ((-1, rejection.code, str(rejection)),))


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
    *,
    keep_region: bool = False,
) -> ClipResult:
    """Decode, blank and write the chosen frames of a file.

    Args:
        data: the file.
        layout: of its frames.
        region: its 2-D region; None lets the sector be found.
        chosen: frame indices.
        images_dir: where the PNG files go, each moved into place when it is whole.
        clip_id: first part of their names.
        keep_region: keep all pixels of a stated region, also those outside of its sector.
    """
    try:
        dataset = read_dataset(io.BytesIO(data), with_pixels=True)
        reader = FrameReader(dataset, layout)
        mask, kept_by = _kept_pixels(reader, layout, region, keep_region)
    except Rejection as rejection:
        return ClipResult.of(rejection)
    frames, rejected, marked = [], [], []
    inside = [index for index in chosen if index < reader.num_frames]
    for index in inside:
        try:
            frame = blanked(reader.read(index), mask)
        except Rejection as rejection:
            rejected.append((index, rejection.code, str(rejection)))
            continue
        frames.append((index, _write_png(images_dir / frame_name(clip_id, index), frame)))
        if find_overlays(frame, mask).any():
            marked.append(index)
    if num_beyond := len(chosen) - len(inside):
        beyond = Rejection("missing_frame", count=num_beyond)
        rejected.append((chosen[len(inside)], beyond.code, str(beyond)))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1)
    return ClipResult(
        frames=tuple(frames),
        rejected=tuple(rejected),
        kept_by=kept_by,
        kept_box=tuple(int(number) for number in box),
        kept_percent=round(100 * float(mask.mean()), 2),
        marked=tuple(marked),
        num_beyond=num_beyond,
    )


def _kept_pixels(
    reader: FrameReader, layout: Layout, region: Region | None, keep_region: bool
) -> tuple[np.ndarray, str]:
    """Mask of the pixels that may leave, and what it was made by."""
    stated = None if region is None else region_mask(region, layout.rows, layout.columns)
    is_told = not says_nothing(region, layout)
    if stated is not None and is_told and keep_region:
        return stated, "region"
    try:
        frames = _spread_frames(reader)
        if region is None or stated is None:
            return sector_mask(frames), "sector"
        if not is_told:
            return sector_mask(frames) & stated, "sector"
        rows = slice(region.top, region.top + region.height)
        columns = slice(region.left, region.left + region.width)
        mask = np.zeros_like(stated)
        mask[rows, columns] = sector_mask(frames[:, rows, columns])
        return mask, "both"
    except Rejection:
        if stated is not None and is_told:  # the file's own word, where the picture has no fan
            return stated, "region"
        raise


def _spread_frames(reader: FrameReader) -> np.ndarray:
    # One mask for the clip, from frames all over it: what never moves is no echo. It does not
    # depend on the frames chosen, or every:2 and every:3 would blank one frame differently.
    frames: list[np.ndarray] = []
    first_rejection: Rejection | None = None
    for index in chosen_frames(f"evenly:{_NUM_SECTOR_FRAMES}", reader.num_frames):
        try:
            frames.append(reader.read(index))
        except Rejection as rejection:
            first_rejection = first_rejection or rejection
    if first_rejection is not None and not frames:
        raise first_rejection
    return np.stack(frames)


def says_nothing(region: Region | None, layout: Layout) -> bool:
    """Whether the banner with the patient's name would stay inside the stated region."""
    if region is None:
        return True
    return region.height * region.width > _MAX_REGION_SHARE * layout.rows * layout.columns


def _write_png(path: Path, frame: np.ndarray) -> str:
    picture = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", picture, _PNG_OPTIONS)
    data = encoded.tobytes()
    # Not `replacing`: it looks through the folder for what killed writers left, and this one may
    # hold a hundred thousand frames. Who goes on after a kill writes under the same name again.
    part = path.with_name(f"{BEING_WRITTEN}{path.name}")
    try:
        part.write_bytes(data)
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def remove_sheets(folder: Path) -> None:
    """Remove earlier contact sheets: they may show what is left out by now."""
    for old in (folder / SHEETS_DIR).glob("sheet_*.png"):
        old.unlink()


def write_sheets(folder: Path, paths: Sequence[str], marked: set[str]) -> int:
    """Write contact sheets, `sheets/sheet_0001.png` and so on, so that a person sees what leaves.

    Args:
        folder: output of an ingest.
        paths: of the frames in it, in the order in which they are shown.
        marked: those that get the word MARKS beside their name.

    Returns:
        number of sheets.
    """
    (num_rows, num_columns), (height, width) = _SHEET_GRID, _THUMB_PX
    (folder / SHEETS_DIR).mkdir(exist_ok=True)
    starts = range(0, len(paths), num_rows * num_columns)
    for number, start in enumerate(starts, start=1):
        shown = paths[start : start + num_rows * num_columns]
        num_filled = -(-len(shown) // num_columns)
        sheet = np.zeros((num_filled * (height + 16), num_columns * (width + 4), 3), np.uint8)
        for place, path in enumerate(shown):
            frame = to_grey(read_frame(folder / path))
            scale = min(height / frame.shape[0], width / frame.shape[1])
            thumb = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            top, left = (place // num_columns) * (height + 16), (place % num_columns) * (width + 4)
            part = sheet[top : top + height, left : left + width]
            part[: thumb.shape[0], : thumb.shape[1]] = thumb[:height, :width, None]
            text, colour = Path(path).stem, (200, 200, 200)
            if path in marked:
                text, colour = f"{text} MARKS", (255, 160, 60)
            at = (left + 2, top + height + 12)
            cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.33, colour, 1, cv2.LINE_AA)
        _write_png(folder / SHEETS_DIR / f"sheet_{number:04d}.png", sheet)
    return len(starts)
