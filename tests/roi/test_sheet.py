"""A sheet shows the worst first, with boxes where they belong."""

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import ROI_COLUMNS
from steatosis_tf.roi import sheet as sheets
from steatosis_tf.roi.sheet import SheetRow, draw_sheet, write_sheet
from steatosis_tf.roi.views import Rectangle

YELLOW = (240, 228, 66)


def grey_row(level, **settings):
    return SheetRow(np.full((260, 360), level, np.uint8), caption=f"frame {level}", **settings)


def tile_levels(path, count, num_columns):
    """Grey level in the middle of each tile of 360 x 300 px, 6 px apart, below 34 px of legend."""
    sheet = cv2.imread(str(path))
    places = [divmod(index, num_columns) for index in range(count)]
    return [int(sheet[34 + 306 * row + 30, 6 + 366 * column + 30, 0]) for row, column in places]


@pytest.mark.parametrize(("most", "levels"), [(120, [70, 60, 90, 50, 80]), (3, [70, 60, 90])])
def test_worst_first_and_those_without_a_box_before_all(tmp_path, monkeypatch, most, levels):
    monkeypatch.setattr(sheets, "MAX_TILES", most)
    qualities = {50: 0.9, 60: 0.5, 70: 0.2, 80: np.nan, 90: 0.5}
    for level in qualities:
        cv2.imwrite(str(tmp_path / f"{level}.png"), np.full((260, 360), level, np.uint8))
    table = pd.DataFrame({"path": [f"{level}.png" for level in qualities]}, qualities)
    table = table.assign(frame_id=table["path"], roi_quality=qualities, roi_source="auto")
    table[["roi_sector", "roi_view", "roi_reason"]] = ""
    table[list(ROI_COLUMNS)] = 100.0
    table.loc[70, list(ROI_COLUMNS)] = np.nan
    path = draw_sheet(table, tmp_path / "manifest.csv", tmp_path / "sheet.png")
    assert tile_levels(path, len(levels), min(4, len(levels))) == levels


def test_boxes_and_outlines_are_drawn_in_the_scaled_frame(tmp_path):
    mask = np.zeros((520, 720), bool)
    mask[100:400, 100:600] = True
    row = SheetRow(
        np.full((520, 720), 90, np.uint8), "a", Rectangle(200, 300, 100, 120), 0.7, sector_mask=mask
    )
    path = write_sheet([row], tmp_path / "sheet.png")
    sheet = cv2.imread(str(path))[..., ::-1]
    # Half size: the box's top left corner is at row 100, column 150 of the tile.
    assert tuple(sheet[34 + 100, 6 + 150 + 20]) == YELLOW
    assert tuple(sheet[34 + 50, 6 + 100]) == (86, 180, 233)


def test_beam_space_is_drawn_as_its_sector(tmp_path):
    mask = np.zeros((520, 720), bool)
    mask[100:400, 100:600] = True
    frame = np.full((520, 720), 90, np.uint8)
    around = Rectangle(60, 40, 400, 600)
    row = SheetRow(frame, "a", around, 0.7, sector_mask=mask, is_beam_space=True)
    sheet = cv2.imread(str(write_sheet([row], tmp_path / "sheet.png")))[..., ::-1]
    assert tuple(sheet[34 + 50, 6 + 150]) == YELLOW
    assert tuple(sheet[34 + 30, 6 + 150]) == (90, 90, 90)


def test_frames_left_out_are_counted_in_the_header(tmp_path):
    rows = [grey_row(level) for level in (40, 50)]
    sheet, same, other = (
        write_sheet(rows[:shown], tmp_path / f"{shown}_{more}.png", 1, num_better=more)
        for shown, more in ((2, 0), (1, 1), (1, 0))
    )
    two, one_of_two, one_of_one = (cv2.imread(str(path))[:34] for path in (sheet, same, other))
    place = slice(20, None)  # behind the first digit
    np.testing.assert_array_equal(one_of_two[:, place], two[:, place])
    assert (one_of_two[:, place] != one_of_one[:, place]).any()


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_sheet([], tmp_path / "sheet.png")
