"""Sectors of drawn fans, of things that are no ultrasound, and of real frames."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.roi.sector import find_sector
from steatosis_tf.sources.images import read_frame, to_grey


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


FANS = {
    "convex": ({}, "convex"),
    "phased": ({"apex": (320, 20), "radii": (5, 420), "angles": (-45, 45)}, "phased"),
    "narrow": ({"apex": (320, -300), "radii": (340, 720), "angles": (-14, 14)}, "convex"),
    "skewed": ({"angles": (-35, 22)}, "convex"),
    "beyond the frame": ({"apex": (320, -200), "radii": (240, 760), "angles": (-40, 40)}, "convex"),
}


@pytest.mark.parametrize("name", FANS)
def test_recovers_the_geometry_of_a_drawn_fan(drawn_fan, name):
    settings, kind = FANS[name]
    frame, truth = drawn_fan(**settings)
    sector = find_sector(frame)
    assert dice(sector.mask, truth) > 0.99
    apex = settings.get("apex", (320, -40))
    angles = settings.get("angles", (-35, 35))
    near, far = settings.get("radii", (100, 440))
    fan = sector.fan
    assert fan.kind == kind
    # Few pixels of the last fan's far arc are inside the frame.
    slack = 3 if name == "beyond the frame" else 1
    assert (fan.apex_x_px, fan.apex_y_px) == pytest.approx(apex, abs=3 * slack)
    assert (fan.left_deg, fan.right_deg) == pytest.approx(angles, abs=0.5 * slack)
    assert (fan.near_px, fan.far_px) == pytest.approx((near, far), abs=4 * slack)
    assert fan.row_stretch == pytest.approx(1.0, abs=0.02)


def test_a_fan_cut_off_on_three_sides(drawn_fan):
    frame, truth = drawn_fan(apex=(320, 20), radii=(5, 420), angles=(-45, 45))
    kept = np.zeros_like(truth)
    kept[:400, 80:560] = True
    sector = find_sector(frame * kept)
    assert dice(sector.mask, truth & kept) > 0.99
    cuts = (sector.fan.cut_left_px, sector.fan.cut_right_px, sector.fan.cut_bottom_px)
    assert cuts == pytest.approx((79.5, 559.5, 399.5), abs=2)


@pytest.mark.parametrize("gap", [0, 6, 60])
@pytest.mark.parametrize("kept", [slice(None), slice(170, 470)], ids=["whole", "cut"])
def test_two_pictures_on_one_screen_are_refused(drawn_fan, gap, kept):
    """Whole fans, and fans of which a console in dual mode shows the middle alone."""
    left, right = (drawn_fan(seed=seed)[0][:, kept] for seed in (1, 2))
    page = np.hstack([left, np.zeros((480, gap), np.uint8), right])
    said = "no sector|two pictures side by side" if kept.start else "two pictures side by side"
    with pytest.raises(ValueError, match=said):
        find_sector(cv2.copyMakeBorder(page, 20, 20, 20, 20, cv2.BORDER_CONSTANT, value=0))


def test_inverted_and_printed_frames_are_refused(drawn_fan, real_data_dir):
    real = read_frame(real_data_dir / "byra2018" / "images" / "P02_F00.png")
    cases = [(real, find_sector(real).mask), drawn_fan()]
    for frame, truth in cases:
        printed = np.where(truth, frame, 250).astype(np.uint8)
        for light in (255 - frame, printed):
            with pytest.raises(ValueError, match=r"light ground around the sector|no sector"):
                find_sector(light)
    with pytest.raises(ValueError, match="inverted picture: echoes are dark on light"):
        find_sector(np.where(cases[0][1], 255 - real, 0).astype(np.uint8))


def test_a_linear_probe(drawn_fan):
    frame, _ = drawn_fan(apex=(320, -4000), radii=(0, 9000), angles=(-90, 90))
    truth = np.zeros(frame.shape, bool)
    truth[40:440, 150:480] = True
    sector = find_sector(frame * truth)
    assert sector.fan.kind == "linear"
    assert dice(sector.mask, truth) > 0.98
    assert (sector.fan.near_px, sector.fan.far_px) == pytest.approx((40, 440), abs=4)


def test_deep_shadow_does_not_narrow_the_fan(drawn_fan):
    frame, truth = drawn_fan()
    rows, columns = np.mgrid[:480, :640]
    angle = np.degrees(np.arctan2(columns - 320, rows + 40))
    frame[(angle > 12) & (rows > 110)] = 0
    assert dice(find_sector(frame).mask, truth) > 0.98


def test_oblong_pixels_are_seen_in_the_arcs(drawn_fan):
    frame, _ = drawn_fan()
    tall = cv2.resize(frame, (640, 512), interpolation=cv2.INTER_AREA)
    assert find_sector(tall).fan.row_stretch == pytest.approx(512 / 480, abs=0.04)


def screen_around(frame, mask):
    """Depth ticks, text, a grey bar, a trace and a logo that touches the fan."""
    screen = frame.copy()
    for row in range(40, 460, 40):
        cv2.line(screen, (20, row), (32, row), 255, 2)
    cv2.putText(screen, "LIVER 12 cm 0.8 MI", (330, 40), 0, 0.8, 255, 2)
    screen[60:300, 600:620] = np.linspace(255, 0, 240)[:, None]
    trace = [[x, 450 + round(15 * np.sin(x / 9))] for x in range(40, 600)]
    cv2.polylines(screen, [np.array(trace, np.int32)], False, 200, 2)
    cv2.rectangle(screen, (380, 70), (470, 130), 160, -1)
    screen[mask] = frame[mask]
    return screen


def test_what_stands_around_or_touches_the_fan_is_left_out(drawn_fan):
    frame, truth = drawn_fan(apex=(250, -40), angles=(-30, 30))
    screen = screen_around(frame, truth)
    assert dice(find_sector(screen).mask, truth) > 0.98


def test_a_halo_is_left_out(drawn_fan):
    frame, truth = drawn_fan()
    halo = cv2.dilate(truth.astype(np.uint8), np.ones((61, 61))) > 0
    frame[halo & ~truth] = 40
    frame[truth] = np.maximum(frame[truth], 40)
    assert dice(find_sector(frame).mask, truth) > 0.98


def page(level, height=768, width=1024):
    """Header, menu of buttons, lines of text, a grey scale and thumbnails of speckle."""
    ink = 20 if level > 100 else 230
    screen = np.full((height, width), level, np.uint8)
    screen[:60] = np.linspace(190, 120, 60)[:, None]
    for row in range(100, 700, 50):
        cv2.rectangle(screen, (884, row), (1010, row + 40), 150, -1)
        cv2.putText(screen, "Gain 52", (890, row + 28), 0, 0.7, 30, 1, cv2.LINE_AA)
        cv2.putText(screen, "12 cm", (12, row), 0, 0.6, ink, 1, cv2.LINE_AA)
    cv2.putText(screen, "NAME 0123456789 01.02.2003", (20, 40), 0, 1.0, 20, 2, cv2.LINE_AA)
    screen[80:340, 100:116] = np.linspace(255, 0, 260)[:, None]
    small = np.random.default_rng(1).integers(0, 200, (70, 90), dtype=np.uint8)
    for column in range(200, 800, 110):
        screen[690:760, column : column + 90] = small
    return screen


@pytest.mark.parametrize("level", [0, 30, 150, 245])
@pytest.mark.parametrize("name", ["convex", "phased", "linear"])
def test_a_picture_on_a_full_screen(drawn_fan, name, level):
    screen = page(level)
    if name == "linear":
        frame, _ = drawn_fan(apex=(320, -4000), radii=(0, 9000), angles=(-90, 90))
        drawn = np.zeros(frame.shape, bool)
        drawn[40:440, 150:480] = True
        frame = frame * drawn
    else:
        frame, drawn = drawn_fan(**FANS[name][0])
    screen[120:600, 180:820] = frame
    truth = np.zeros(screen.shape, bool)
    truth[120:600, 180:820] = drawn
    sector = find_sector(np.stack([screen] * 3, axis=-1))
    assert sector.fan.kind == name
    assert dice(sector.mask, truth) > 0.98


def test_a_photographed_screen(drawn_fan):
    screen = page(30)
    frame, drawn = drawn_fan(angles=(-25, 25))
    screen[120:600, 180:820] = np.where(drawn, frame, screen[120:600, 180:820])
    noise = np.random.default_rng(0).normal(0, 5, screen.shape)
    truth = np.zeros(screen.shape, bool)
    truth[120:600, 180:820] = drawn
    seen = np.clip(20 + 0.8 * screen + noise, 0, 255).astype(np.uint8)
    assert dice(find_sector(seen).mask, truth) > 0.98


@pytest.mark.parametrize("shade", [(45, 45), (5, 60)], ids=["grey", "shaded"])
def test_a_picture_darker_than_the_ground_it_stands_on(drawn_fan, shade):
    screen = page(30)
    frame, drawn = drawn_fan()
    ground = np.linspace(*shade, 480).astype(np.uint8)[:, None] * np.ones((1, 640), np.uint8)
    rows, columns = np.mgrid[:480, :640]
    frame[(rows - 260) ** 2 + (columns - 280) ** 2 < 60**2] = 0
    screen[120:600, 180:820] = np.where(drawn, frame, ground)
    truth = np.zeros(screen.shape, bool)
    truth[120:600, 180:820] = drawn
    assert dice(find_sector(screen).mask, truth) > 0.97


def test_a_bar_that_cuts_the_fan_off(drawn_fan):
    screen = page(0)
    frame, drawn = drawn_fan()
    screen[120:600, 180:820] = frame
    screen[480:] = np.linspace(90, 60, 288)[:, None]
    cv2.putText(screen, "Gain 52  DR 60  8 cm", (300, 520), 0, 0.8, 230, 2, cv2.LINE_AA)
    truth = np.zeros(screen.shape, bool)
    truth[120:480, 180:820] = drawn[:360]
    assert dice(find_sector(screen).mask, truth) > 0.97


def test_two_pictures_on_a_full_screen_are_refused(drawn_fan):
    screen = page(0)
    frame, drawn = drawn_fan(angles=(-22, 22))
    for left in (130, 480):
        part = slice(0, 440), slice(130, 510)
        place = slice(150, 590), slice(left, left + 380)
        screen[place] = np.maximum(screen[place] * ~drawn[part], frame[part])
    with pytest.raises(ValueError, match="two pictures side by side"):
        find_sector(screen)


def other_screens():
    random = np.random.default_rng(0)
    clouds = cv2.GaussianBlur(random.normal(size=(480, 640)), (0, 0), 40)
    lines = np.zeros((480, 640), np.uint8)
    for row in range(30, 470, 24):
        cv2.putText(lines, "a patient's list 0123", (20, row), 0, 0.7, 220, 1, cv2.LINE_AA)
    return {
        "nothing": np.zeros((480, 640), np.uint8),
        "noise": random.integers(0, 256, (480, 640), dtype=np.uint8),
        "ramp": np.tile(np.linspace(0, 255, 640, dtype=np.uint8), (480, 1)),
        "clouds": np.clip(128 + 3000 * clouds, 0, 255).astype(np.uint8),
        "lines": lines,
    }


@pytest.mark.parametrize("level", [0, 150, 245])
@pytest.mark.parametrize("name", other_screens())
def test_a_screen_without_a_picture_has_no_sector(name, level):
    screen = page(level)
    screen[120:600, 180:820] = other_screens()[name]
    with pytest.raises(ValueError, match="no sector"):
        find_sector(screen)


def test_in_a_clip_what_never_moves_is_not_echo(drawn_fan):
    """A textured block as large as a part of the fan is told from it by standing still."""
    frames = []
    block = np.random.default_rng(9).integers(60, 200, (200, 130), dtype=np.uint8)
    for seed in range(4):
        frame, truth = drawn_fan(apex=(200, -40), angles=(-30, 30), seed=seed)
        frame[60:260, 400:530] = np.where(truth[60:260, 400:530], frame[60:260, 400:530], block)
        frames.append(frame)
    assert dice(find_sector(np.stack(frames)).mask, truth) > 0.98
    in_colour = np.stack([np.stack([frame] * 3, axis=-1) for frame in frames])
    assert dice(find_sector(in_colour).mask, truth) > 0.98


def test_a_clip_that_stands_still_is_read_as_one_frame(drawn_fan):
    frame, _ = drawn_fan()
    np.testing.assert_array_equal(find_sector(np.stack([frame] * 3)).mask, find_sector(frame).mask)


def test_blank_and_uniform_frames_have_no_sector():
    for shape in ((480, 640), (480, 640, 3)):
        for level in (0, 90):
            with pytest.raises(ValueError, match="no sector: the frame is blank or nearly so"):
                find_sector(np.full(shape, level, np.uint8))


def not_ultrasound():
    rows, columns = np.mgrid[:480, :640].astype(float)
    random = np.random.default_rng(0)
    page = np.full((480, 640), 255, np.uint8)
    for line in range(12):
        cv2.putText(page, "some lines of a page of text", (20, 40 * line + 30), 0, 1, 0, 2)
    clouds = cv2.GaussianBlur(random.normal(size=(480, 640)), (0, 0), 40)
    return {
        "noise": random.integers(0, 256, (480, 640), dtype=np.uint8),
        "page": page,
        "dark page": 255 - page,
        "caption": cv2.putText(np.zeros((480, 640), np.uint8), "HELLO 123", (50, 200), 0, 2, 255),
        "ramp": (255 * columns / 640).astype(np.uint8),
        "blob": (255 * np.exp(-((rows - 240) ** 2 + (columns - 320) ** 2) / 8000)).astype(np.uint8),
        "clouds": np.clip(128 + 3000 * clouds, 0, 255).astype(np.uint8),
        "chequers": (255 * ((rows // 40 + columns // 40) % 2)).astype(np.uint8),
        "one row": np.full((1, 640), 9, np.uint8),
    }


@pytest.mark.parametrize("name", not_ultrasound())
def test_other_pictures_have_no_sector(name):
    with pytest.raises(ValueError, match="no sector"):
        find_sector(not_ultrasound()[name])


def test_wrong_arrays_are_named():
    with pytest.raises(ValueError, match="dtype=float64"):
        find_sector(np.zeros((480, 640)))
    with pytest.raises(ValueError, match=r"shape=\(480, 640, 4, 1\)"):
        find_sector(np.zeros((480, 640, 4, 1), np.uint8))
    for shape in ((480, 640, 4), (480, 640, 1)):  # channels, no clip of pictures 4 px wide
        with pytest.raises(ValueError, match=r"shape=\(480, 640, \d\) dtype=uint8"):
            find_sector(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"as read_frame gives one\. Received: .* dtype=str"):
        find_sector("frame.png")
    with pytest.raises(ValueError, match=r"shape=\(0, 640\)"):
        find_sector(np.zeros((0, 640), np.uint8))


def test_outlines_of_many_scanners(real_data_dir):
    """A fifth of the outlined images; `benchmarks/roi_sector.py` prints all of them."""
    scores = []
    for path in sorted((real_data_dir / "aul" / "polygons").glob("*.json"))[::5]:
        frame = read_frame(real_data_dir / "aul" / "images" / f"{path.stem}.jpg")
        outline = np.round(json.loads(path.read_text())["outline"]).astype(np.int32)
        truth = cv2.fillPoly(np.zeros(frame.shape[:2], np.uint8), [outline], 1) > 0
        scores.append(dice(find_sector(frame).mask, truth))
    assert np.median(scores) >= 0.975
    assert np.percentile(scores, 5) >= 0.93


def test_the_biopsy_frames_share_one_phased_geometry(real_data_dir):
    """One scanner and preset: depth changes the radius, not where the beams meet."""
    labels = pd.read_csv(real_data_dir / "byra2018" / "labels.csv")
    clips = [
        np.stack([to_grey(read_frame(real_data_dir / "byra2018" / path)) for path in part.path])
        for _, part in labels.groupby("patient_id")
    ]
    fans = [find_sector(clip[0]).fan for clip in clips]
    assert {fan.kind for fan in fans} == {"phased"}
    assert np.ptp([fan.apex_x_px for fan in fans]) < 6
    assert np.ptp([fan.apex_y_px for fan in fans]) < 6
    for clip in clips[::8]:
        assert dice(find_sector(clip).mask, find_sector(clip[0]).mask) > 0.99
