"""Beam space of fans worked out by hand."""

import numpy as np
import pytest

from steatosis_tf.roi.sector import Fan
from steatosis_tf.roi.views import beam_space, to_frame

SHAPE = (480, 640)
FAN = Fan("convex", 320.0, -40.0, -35.0, 35.0, near_px=100.0, far_px=500.0)
LINEAR = Fan("linear", 320.0, -np.inf, 0.0, 0.0, 40.0, 440.0, 120.0, 520.0)
OBLONG = Fan("convex", 320.0, -40.0, -35.0, 35.0, 100.0, 480.0, row_stretch=16 / 15)


def test_an_arc_becomes_a_row():
    for fan, length in ((FAN, 400), (OBLONG, 380), (LINEAR, 400)):
        depth = fan.depth_px(SHAPE)
        frame = np.where(np.abs(depth - length / 2) < 3, 200, 20).astype(np.uint8)
        rows = beam_space(frame, fan).mean(axis=1)
        # The middle of the depth is the middle of beam space; 6 px of 400 are 6 of 384 rows.
        assert set(np.flatnonzero(rows > 150)) <= set(range(187, 197))
        assert rows[191:193].min() > 190
        assert np.delete(rows, range(186, 198)).max() < 25


def test_a_beam_becomes_a_column():
    angle = FAN.angle_deg(SHAPE)
    # 17 degrees to the right: (17 + 34) / 68 of the 320 columns.
    frame = np.where(np.abs(angle - 17) < 1, 200, 20).astype(np.uint8)
    columns = beam_space(frame, FAN)[50:].mean(axis=0)
    assert abs(int(columns.argmax()) - 240) <= 3
    assert set(np.flatnonzero(columns > 100)) <= set(range(233, 247))


def test_a_linear_probe_keeps_its_picture():
    frame = np.random.default_rng(0).integers(1, 255, SHAPE, np.uint8)
    view = beam_space(frame, LINEAR, 384, 384)
    # 96 % of 400 px in 384 steps: one px each, from the corner of four px on.
    px = frame.astype(float)
    expected = (
        px[48:432, 128:512] + px[49:433, 128:512] + px[48:432, 129:513] + px[49:433, 129:513]
    ) / 4
    assert np.abs(view - expected).max() <= 1


def test_orientation_is_kept():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for fan in (FAN, LINEAR):
        down = beam_space((rows // 2).astype(np.uint8), fan).astype(int)
        right = beam_space((columns // 3).astype(np.uint8), fan).astype(int)
        assert (np.diff(down[:, 160]) >= 0).all()
        assert down[-1, 160] > down[0, 160] + 150
        assert (np.diff(right[350]) >= 0).all()
        assert right[350, -1] > right[350, 0] + 100


def test_nothing_outside_the_sector_reaches_the_result():
    cut = Fan("convex", 320.0, -40.0, -35.0, 35.0, 4.0, 500.0, 150.0, 480.0, 400.0)
    for fan in (FAN, LINEAR, OBLONG, cut):
        frame = np.where(fan.mask(SHAPE), 0, 255).astype(np.uint8)
        assert not beam_space(frame, fan).any()


def test_sizes_and_type_are_what_was_asked_for():
    frame = np.full((*SHAPE, 3), 90, np.uint8)
    assert beam_space(frame, FAN).shape == (384, 320)
    small = beam_space(frame, FAN, 128, 96)
    assert small.shape == (128, 96)
    assert small.dtype == np.uint8
    assert np.abs(small[4:100, 4:-4].astype(int) - 90).max() <= 1


def test_the_same_sector_on_a_finer_screen_looks_the_same():
    fine = np.random.default_rng(0).rayleigh(40, (960, 1280)).clip(0, 255).astype(np.uint8)
    coarse = fine.reshape(480, 2, 640, 2).mean(axis=(1, 3)).round().astype(np.uint8)
    apart = beam_space(fine, FAN.scaled(2)).astype(float) - beam_space(coarse, FAN)
    assert np.abs(apart[:350]).mean() < 3


def test_a_map_comes_back_to_where_it_was():
    for fan in (FAN, LINEAR, OBLONG):
        depth = fan.depth_px(SHAPE) / (fan.far_px - fan.near_px)
        smooth = (60 + 120 * depth).clip(0, 255).astype(np.uint8)
        back = to_frame(beam_space(smooth, fan), fan, SHAPE)
        inside = (depth > 0.03) & (depth < 0.97) & (back > 0)
        assert inside.sum() > 0.85 * fan.mask(SHAPE).sum()
        assert np.abs(back - smooth)[inside].max() < 3
        assert not back[~fan.mask(SHAPE)].any()


def test_cells_of_a_coarse_map_lie_where_their_pixels_were():
    cells = np.zeros((12, 10))
    cells[6, 5] = 1.0
    drawn = to_frame(cells, FAN, SHAPE)
    row, column = np.unravel_index(drawn.argmax(), SHAPE)
    # Middle of the cell: 6.5 of 12 rows in depth, 5.5 of 10 columns across 68 degrees.
    radius = 100 + 400 * (0.02 + 0.96 * 6.5 / 12)
    assert row == pytest.approx(-40 + radius * np.cos(np.radians(3.4)), abs=1.5)
    assert column == pytest.approx(320 + radius * np.sin(np.radians(3.4)), abs=1.5)


def test_refusals_say_what_was_expected():
    with pytest.raises(ValueError, match="another frame size"):
        beam_space(np.zeros((20, 30), np.uint8), FAN)
