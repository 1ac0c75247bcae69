"""Marks drawn on real and drawn echo are found, echo is not."""

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.roi.anatomy.overlays import find_overlays, overlay_fraction, paint_out
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame


def draw_marks(frame):
    """Calipers with a dotted line, a text, a ruler and a body mark; returns the drawing too."""
    drawing = np.zeros(frame.shape[:2], np.uint8)
    for x, y in ((280, 200), (380, 260)):
        cv2.drawMarker(drawing, (x, y), 255, cv2.MARKER_CROSS, 15, 1)
    for step in np.linspace(0, 1, 20):
        cv2.circle(drawing, (round(280 + 100 * step), round(200 + 60 * step)), 1, 255, -1)
    cv2.putText(drawing, "D 5.1 cm", (250, 320), 0, 0.5, 255, 1)
    cv2.line(drawing, (330, 150), (330, 190), 255, 1)
    cv2.ellipse(drawing, (400, 320), (15, 22), 0, 0, 360, 255, 1)
    painted = frame.copy()
    painted[drawing > 0] = 240
    return painted, drawing > 0


@pytest.mark.parametrize("colour", [False, True])
def test_drawn_marks_are_found(drawn_fan, colour):
    frame, _ = drawn_fan()
    painted, drawing = draw_marks(frame)
    if colour:
        painted = np.stack([painted] * 3, axis=-1)
        painted[drawing] = (250, 220, 30)
    sector = find_sector(painted)
    found = find_overlays(painted, sector.mask)
    assert found[drawing].mean() > 0.9
    # Three px around a mark belong to it, nothing further off does.
    near = cv2.dilate(drawing.astype(np.uint8), np.ones((9, 9))) > 0
    assert not found[~near].any()
    assert not find_overlays(frame, sector.mask).any()


@pytest.mark.parametrize("level", [0, 130, 200, 245])
def test_a_typed_grade_cannot_be_read_after_painting(drawn_fan, level):
    frame, _ = drawn_fan()
    frame = (0.5 * frame + 35).astype(np.uint8) * (frame > 0)  # little contrast, as liver has
    drawing = np.zeros(frame.shape, np.uint8)
    cv2.putText(drawing, "Severe", (270, 300), 0, 0.6, 255, 1)
    letters = drawing > 110
    painted = np.where(letters, level, frame).astype(np.uint8)
    around = cv2.dilate(drawing, np.ones((9, 9), np.uint8)) > 0
    ring = around & ~(cv2.dilate(drawing, np.ones((3, 3), np.uint8)) > 0)

    def contrast(picture):
        picture = picture.astype(float)
        return abs(picture[letters].mean() - picture[ring].mean()) / picture[ring].std()

    cleaned = paint_out(painted, find_sector(painted).mask)
    assert contrast(painted) > 2
    assert contrast(cleaned) < 0.35
    # Speckle, not a smear: it scatters as much as the echo beside it.
    assert 0.6 < cleaned[letters].std() / cleaned[ring].std() < 1.5


def test_only_marks_are_painted(drawn_fan):
    frame, _ = drawn_fan()
    assert paint_out(frame, find_sector(frame).mask) is frame
    painted, drawing = draw_marks(frame)
    cleaned = paint_out(painted, find_sector(painted).mask)
    near = cv2.dilate(drawing.astype(np.uint8), np.ones((15, 15))) > 0
    np.testing.assert_array_equal(cleaned[~near], frame[~near])
    assert (cleaned[drawing] == 240).mean() < 0.05


def test_what_lies_outside_decides_nothing(drawn_fan):
    frame, _ = drawn_fan()
    painted, _ = draw_marks(frame)
    mask = find_sector(painted).mask
    outside = np.random.default_rng(0).integers(0, 255, frame.shape, np.uint8)
    disturbed = np.where(mask, painted, outside)
    np.testing.assert_array_equal(find_overlays(disturbed, mask), find_overlays(painted, mask))


def test_fraction_is_of_the_sector(drawn_fan):
    frame, _ = drawn_fan()
    sector = find_sector(frame)
    marks = np.zeros(frame.shape, bool)
    marks[sector.mask.nonzero()[0][:100], sector.mask.nonzero()[1][:100]] = True
    marks[0, 0] = True
    assert overlay_fraction(marks, sector.mask) == pytest.approx(100 / sector.mask.sum())


def test_sizes_must_agree(drawn_fan):
    frame, _ = drawn_fan()
    with pytest.raises(ValueError, match=r"of the sector_mask's size \(480, 640\)"):
        find_overlays(frame[:400], find_sector(frame).mask)


def test_on_the_biopsy_frames_only_one_patient_has_a_mark_inside(real_data_dir):
    """P12 has ruled lines inside, and the trace of P48 touches the sector."""
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv").groupby("patient_id").first()
    fractions = {}
    for patient, row in labels.iterrows():
        frame = read_frame(real_data_dir / "byra2018" / row.path)
        sector = find_sector(frame)
        fractions[patient] = overlay_fraction(find_overlays(frame, sector.mask), sector.mask)
    assert fractions.pop("P12") > 0.01
    assert fractions.pop("P48") < 0.01
    assert max(fractions.values()) < 0.001
