"""Full screens whose parts are drawn at random: the third set.

    python benchmarks/screens_third.py ../shared/data/aul --sheet screens.png   (a sheet to look at)

The first set has twelve fixed layouts. Here every screen has a layout of its own: size, theme and
ground, bars and panels on any side with what consoles put into them, one picture or two, whole or
cut off by its box, with the beams of the image or bent to another probe's, marks beside it and over
it, and what a capture does to it all. Every random choice comes from the image's name.
"""

import argparse
import hashlib
from pathlib import Path

import cv2
import numpy as np
import screens
from screens import Box, Colour, Screen

from steatosis_tf.roi.sector import Fan, find_sector

_SIZES = (
    (640, 480), (720, 576), (768, 576), (800, 600), (960, 720), (1024, 768), (1024, 768),
    (1136, 852), (1280, 720), (1280, 800), (1280, 960), (1280, 1024), (1366, 768), (1440, 1080),
    (1600, 900), (1680, 1050), (1920, 1080),
)  # fmt: skip
_ENDS = {"header": 0.11, "footer": 0.14, "left": 0.2, "right": 0.2}


def compose(name: str, frame: np.ndarray, outline: np.ndarray) -> Screen:
    """Put one outlined image on a screen of its own.

    Args:
        name: of the image; every random choice comes from it.
        frame: `(height, width, 3)` RGB, uint8.
        outline: `(n, 2)` x and y in px, the sector drawn by hand.
    """
    rng = np.random.default_rng(list(hashlib.sha256(f"{name} third".encode()).digest()))
    size = _SIZES[rng.integers(len(_SIZES))]
    theme = str(rng.choice(["black", "dark", "grey", "light"], p=[0.4, 0.35, 0.15, 0.1]))
    low, high = {"black": (0, 3), "dark": (12, 70), "grey": (80, 180), "light": (200, 256)}[theme]
    paper = _tint(rng, int(rng.integers(low, high)))
    ink = _tint(rng, int(rng.integers(0, 60) if low > 75 else rng.integers(150, 250)))
    page = screens.Page(np.full((size[1], size[0], 3), paper, np.uint8), (0, 0, *size), rng, ink)
    parts = [f"{size[0]} x {size[1]}", theme]
    if rng.random() < 0.06:  # a black rim, as a recorder of another shape leaves it
        _letterbox(page)
        parts.append("letterbox")
    for side in rng.permutation(list(_ENDS)):
        parts += _panel(page, str(side), paper, frame)
    page.ink = _tint(rng, int(rng.integers(120, 250)))
    parts += _ground(page, paper)
    if rng.random() < 0.5:
        frame, outline = _bent(rng, frame, outline)
        parts.append("bent")
    boxes = [page.picture]
    if rng.random() < 0.12:
        left, top, width, height = page.picture
        split = round(width * rng.uniform(0.45, 0.55))
        boxes = [(left, top, split, height), (left + split, top, width - split, height)]
        parts.append("dual")
    truths = [_picture(page, box, frame, outline, parts) for box in boxes]
    return Screen(_captured(page.pixels, rng, parts), truths, ", ".join(parts))


def _tint(rng: np.random.Generator, level: int) -> Colour:
    """A grey, or a colour of about its lightness: consoles like slate and blue."""
    if rng.random() < 0.4:
        return (level, level, level)
    shift = rng.choice([-0.3, -0.15, 0.0]), rng.choice([-0.1, 0.0, 0.1]), rng.choice([0.0, 0.3])
    return tuple(int(np.clip(level * (1 + one), 0, 255)) for one in shift)  # type: ignore[return-value]


def _letterbox(page: screens.Page) -> None:
    height, width = page.pixels.shape[:2]
    rim = round(page.rng.uniform(0.03, 0.12) * width)
    if page.rng.random() < 0.5:
        page.picture = (rim, 0, width - 2 * rim, height)
    else:
        page.picture = (0, rim, width, height - 2 * rim)
    kept = page.pixels.copy()
    page.pixels[:] = 0
    left, top, width, height = page.picture
    page.pixels[top : top + height, left : left + width] = kept[0, 0]


def _panel(page: screens.Page, side: str, paper: Colour, frame: np.ndarray) -> list[str]:
    """A bar on one side of what is left of the page, filled as consoles fill them."""
    rng = page.rng
    if rng.random() < 0.25:
        return []
    left, top, width, height = page.picture
    is_level = side in ("header", "footer")
    thick = round(rng.uniform(0.04, _ENDS[side]) * (height if is_level else width))
    box = {
        "header": (left, top, width, thick),
        "footer": (left, top + height - thick, width, thick),
        "left": (left, top, thick, height),
        "right": (left + width - thick, top, thick, height),
    }[side]
    page.picture = {
        "header": (left, top + thick, width, height - thick),
        "footer": (left, top, width, height - thick),
        "left": (left + thick, top, width - thick, height),
        "right": (left, top, width - thick, height),
    }[side]
    fill = str(rng.choice(["paper", "flat", "shaded"]))
    colour = paper
    if fill != "paper":
        level = int(np.clip(np.mean(paper) + rng.choice([-60, -25, 12, 30, 60, 110]), 0, 250))
        colour = _tint(rng, level)
        page.bar(box, colour, 0.0 if fill == "flat" else rng.uniform(0.1, 0.6))
    ink = _tint(rng, 20) if np.mean(colour) > 120 else _tint(rng, 225)
    if rng.random() < 0.3:
        cv2.rectangle(page.pixels, box[:2], (box[0] + box[2] - 1, box[1] + box[3] - 1), ink, 1)
    content = [_fill(page, box, is_level, colour, ink, frame)]
    return [f"{side} {fill} {' '.join(content)}"]


def _fill(
    page: screens.Page, box: Box, is_level: bool, colour: Colour, ink: Colour, frame: np.ndarray
) -> str:
    rng = page.rng
    left, top, width, height = box
    tall = int(np.clip(page.pixels.shape[0] // int(rng.integers(36, 70)), 8, 24))
    kinds = ["nothing", "text", "buttons", "thumbnails", "trace" if is_level else "table"]
    kind = str(rng.choice(kinds, p=[0.1, 0.4, 0.2, 0.2, 0.1]))
    if kind == "text":
        for start in (0.0, 0.35, 0.7) if is_level else (0.0, rng.uniform(0.3, 0.7)):
            part = (left + 6, top + 3, width - 12, height - 6)
            if is_level:
                part = (left + 6 + round(start * width), top + 3, width // 4, height - 6)
            else:
                part = (left + 6, top + 3 + round(start * height), width - 12, height // 4)
            page.lines(part, tall, ink, rng.uniform(0.5, 1.0))
        if rng.random() < 0.4:  # the vendor's sign
            centre = (left + width // 2, top + min(height, width) // 2)
            axes = (min(width, height) // 4, min(width, height) // 6)
            cv2.ellipse(page.pixels, centre, axes, 0, 0, 360, _tint(rng, 180), -1, cv2.LINE_AA)
    elif kind == "buttons":
        num = int(rng.integers(4, 16))
        level = int(np.clip(np.mean(colour) + rng.choice([-40, 25, 50]), 5, 250))
        across, down = (
            (num, int(rng.integers(1, 3))) if is_level else (int(rng.integers(1, 3)), num)
        )
        page.buttons(box, across, down, _tint(rng, level), ink)
    elif kind == "thumbnails":
        side = max(24, min(width, height) - 6)
        step = round(side * rng.uniform(1.0, 1.4))
        long = width if is_level else height
        boxes = [
            (left + 3 + at, top + 3, step - 2, side)
            if is_level
            else (left + 3, top + 3 + at, side, step - 2)
            for at in range(0, long - step, step + 4)[: int(rng.integers(1, 9))]
        ]
        page.thumbnails(boxes, frame)
    elif kind == "trace":
        at = np.arange(left, left + width, 3)
        level = top + height * 0.6 - height * 0.05 * rng.random(len(at))
        level -= 0.4 * height * (at % int(rng.integers(90, 240)) < 6)
        line = np.stack([at, level], axis=1).astype(np.int32)
        cv2.polylines(page.pixels, [line], False, (80, 220, 80), 1, cv2.LINE_AA)
    elif kind == "table":
        step = round(2.2 * tall)
        for number, row in enumerate(range(top, top + height - step, step)):
            if number % 2:
                page.bar((left, row, width, step), tuple(min(255, one + 18) for one in colour))
            page.text(left + 6, row + 4, tall, screens.words(rng, max(3, width // tall // 2)), ink)
    return kind


def _ground(page: screens.Page, paper: Colour) -> list[str]:
    """What the picture stands on: black, the page, a dark grey, or a shaded one."""
    rng = page.rng
    kinds = ["black", "paper", "dark grey", "shaded"]
    kind = str(rng.choice(kinds, p=[0.55, 0.2, 0.15, 0.1]))
    left, top, width, height = page.picture
    if kind == "paper" and np.mean(paper) > 75:
        kind = "black"
    part = page.pixels[top : top + height, left : left + width]
    if kind == "black":
        part[:] = rng.integers(0, 4)
    elif kind == "dark grey":
        part[:] = _tint(rng, int(rng.integers(8, 55)))
    elif kind == "shaded":
        fall = np.linspace(*rng.permutation([0.1, 1.0]), height)[:, None, None]
        part[:] = fall * np.array(_tint(rng, int(rng.integers(20, 60))))
    if rng.random() < 0.25:
        line = _tint(rng, int(rng.integers(40, 200)))
        cv2.rectangle(page.pixels, (left, top), (left + width - 1, top + height - 1), line, 1)
    return [f"on {kind}"]


def _bent(
    rng: np.random.Generator, frame: np.ndarray, outline: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The image along the beams of another probe, drawn beam by beam; a drawn fan's outline."""
    source = find_sector(frame).fan
    shape = (700, 900)
    half = rng.uniform(16, 48)
    far = min(680 / (1 - 0.4 * np.cos(np.radians(half))), 430 / np.sin(np.radians(half)))
    near = far * (rng.uniform(0.02, 0.08) if rng.random() < 0.3 else rng.uniform(0.15, 0.5))
    fan = Fan("convex", 450.0, 10 - near * np.cos(np.radians(half)), -half, half, near, far)
    if rng.random() < 0.15:
        wide = rng.uniform(150, 330)
        fan = Fan("linear", 450.0, -np.inf, 0.0, 0.0, 10.0, 600.0, 450 - wide, 450 + wide)
    drawn = along_beams(frame, source, fan, shape)
    mask = fan.mask(shape)
    drawn[~mask] = 0
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return drawn, max(contours, key=len)[:, 0].astype(float)


def along_beams(frame: np.ndarray, source: Fan, fan: Fan, shape: tuple[int, int]) -> np.ndarray:
    """A frame's echo of its fan `source`, drawn along the beams of `fan` on a canvas of `shape`."""
    if fan.kind == "linear":
        columns = np.broadcast_to(np.arange(shape[1], dtype=np.float32), shape)
        turn = (columns - fan.cut_left_px) / (fan.cut_right_px - fan.cut_left_px)
    else:
        turn = (fan.angle_deg(shape) - fan.left_deg) / (fan.right_deg - fan.left_deg)
    # A little inside, where there is echo up to the border.
    angle = np.radians(
        source.left_deg + (0.03 + 0.94 * turn) * (source.right_deg - source.left_deg)
    )
    deep = 0.03 + 0.94 * fan.depth_px(shape) / (fan.far_px - fan.near_px)
    radius = source.near_px + deep * (source.far_px - source.near_px)
    x = source.apex_x_px + radius * np.sin(angle)
    y = source.apex_y_px + source.row_stretch * radius * np.cos(angle)
    return cv2.remap(frame, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def _picture(
    page: screens.Page, box: Box, frame: np.ndarray, outline: np.ndarray, parts: list[str]
) -> np.ndarray:
    """Place the sector into its box, whole or cut off by it, with marks; the sector's mask."""
    rng = page.rng
    left, top, width, height = box
    low, high = outline.min(axis=0) - 4, outline.max(axis=0) + 5
    scale = rng.uniform(0.62, 1.0) * min((width, height) / (high - low))
    if rng.random() < 0.15:
        scale *= rng.uniform(1.1, 1.4)
        parts.append("cut off")
    free = np.array([width, height]) - scale * (high - low)
    shift = np.array([left, top]) - scale * low
    shift += free * (rng.uniform(0.35, 0.65), rng.uniform(0, 0.5) if free[1] > 0 else 0.02)
    if rng.random() < 0.15:  # mirrored left to right
        frame, outline = frame[:, ::-1], (outline * [-1, 1] + [frame.shape[1] - 1, 0])
        low, high = outline.min(axis=0) - 4, outline.max(axis=0) + 5
        shift[0] = left - scale * low[0] + 0.5 * free[0]
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    soft = frame if scale > 0.7 else cv2.GaussianBlur(frame, (0, 0), 0.45 / scale)
    shape = page.pixels.shape[:2]
    moved = cv2.warpAffine(soft, matrix, shape[::-1], flags=cv2.INTER_LINEAR)
    truth = np.zeros(shape, np.uint8)
    cv2.fillPoly(truth, [np.round(outline * scale + shift).astype(np.int32)], 1)
    window = np.zeros(shape, np.uint8)
    window[top : top + height, left : left + width] = 1
    truth &= window
    shown = moved.astype(np.float32)
    if rng.random() < 0.5:  # gain, dynamic range, tinted map
        shown = 255 * (shown / 255) ** rng.uniform(0.7, 1.3) * rng.uniform(0.7, 1.15)
        shown = shown * (rng.choice([1.0, 0.9]), 1.0, rng.choice([1.0, 0.75, 1.1]))
    shown = np.clip(shown, 0, 255).astype(np.uint8)
    if page.pixels[top : top + height, left : left + width].mean() < 30 and rng.random() < 0.5:
        shown = np.maximum(
            shown, page.pixels
        )  # else what is black inside is darker than the ground
    _beside(page, box, truth)
    page.pixels[truth > 0] = shown[truth > 0]
    _across(page, truth)
    return truth > 0


def _beside(page: screens.Page, box: Box, truth: np.ndarray) -> None:
    """Ruler, grey scale, gain curve, probe mark, body mark, tables, text by the sector."""
    rng = page.rng
    left, top, width, height = box
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    if len(rows) == 0:
        return
    first, last = int(rows[0]), int(rows[-1])
    tall = int(np.clip(height // int(rng.integers(30, 55)), 8, 22))
    edge = int(columns[-1]) if rng.random() < 0.6 else left + width - 40
    if rng.random() < 0.8:
        page.ticks(min(left + width - 30, edge + int(rng.integers(3, 25))), first, last - first)
    if rng.random() < 0.7:
        wide = max(4, width // int(rng.integers(40, 110)))
        at = left + 6 if rng.random() < 0.6 else left + width - wide - 6
        scale_height = round(height * rng.uniform(0.12, 0.5))
        page.grey_scale(at, top + 8 + int(rng.integers(0, height // 4)), wide, scale_height)
    if rng.random() < 0.25:  # time gain compensation
        down = np.linspace(first, last, 9)
        over = edge + 12 + np.cumsum(rng.uniform(-5, 9, 9))
        line = np.stack([over, down], axis=1).astype(np.int32)
        cv2.polylines(page.pixels, [line], False, page.ink, 1, cv2.LINE_AA)
    if rng.random() < 0.5:
        centre = int(np.median(np.flatnonzero(truth[first + 2])))
        at = centre - round(rng.uniform(0.05, 0.25) * width)
        if rng.random() < 0.5:
            page.text(at, first, tall + 4, rng.choice(list("VPMSGE")), (90, 200, 220))
        else:
            cv2.circle(page.pixels, (at, first + tall), tall // 2, _tint(rng, 190), -1)
    for _ in range(int(rng.integers(0, 4))):
        wide, high = round(width * rng.uniform(0.1, 0.3)), round(height * rng.uniform(0.05, 0.35))
        x = left + 4 if rng.random() < 0.5 else left + width - wide - 4
        y = top + int(rng.integers(2, max(3, height - high)))
        if rng.random() < 0.25:
            page.bar((x, y, wide, high), _tint(rng, int(rng.integers(15, 130))))
        page.lines((x, y, wide, high), tall, page.ink)
    if rng.random() < 0.3:
        centre = (left + round(width * rng.choice([0.08, 0.92])), top + round(height * 0.88))
        cv2.ellipse(page.pixels, centre, (width // 30, height // 14), 0, 0, 360, page.ink, 2)


def _across(page: screens.Page, truth: np.ndarray) -> None:
    """Calipers, words, a puncture line and a colour box: over the sector and out of it."""
    rng = page.rng
    rows, columns = np.nonzero(truth)
    if len(rows) == 0:
        return
    places = [rng.integers(len(rows)) for _ in range(8)]
    points = [(int(columns[place]), int(rows[place])) for place in places]
    for first, second in zip(points[:4:2], points[1:4:2], strict=True):
        if rng.random() < 0.25:
            for share in np.linspace(0, 1, 30):
                x, y = np.array(first) * (1 - share) + np.array(second) * share
                cv2.circle(page.pixels, (round(x), round(y)), 1, page.ink, -1)
    if rng.random() < 0.25:
        page.text(*points[4], 16, screens.words(rng, 8), page.ink)
    if rng.random() < 0.05:
        cv2.line(page.pixels, points[5], (points[5][0] + 300, 5), (200, 200, 60), 1)
    if rng.random() < 0.06:
        x, y = points[6]
        part = page.pixels[y : y + 90, x : x + 120]
        part[:] = (0.5 * part + np.array([120, 20, 20])).astype(np.uint8)


def _captured(pixels: np.ndarray, rng: np.random.Generator, parts: list[str]) -> np.ndarray:
    """What stands between a screen and a file: video, a smaller range, JPEG."""
    if rng.random() < 0.15:
        noise = rng.normal(0, rng.uniform(0.5, 3.0), pixels.shape[:2])[..., None]
        soft = cv2.GaussianBlur(pixels, (3, 3), rng.uniform(0.4, 1.0))
        pixels = np.clip(np.round(soft + noise), 0, 255).astype(np.uint8)
        parts.append("video")
    if rng.random() < 0.1:
        pixels = (16 + pixels.astype(np.float32) * (219 / 255)).astype(np.uint8)
        parts.append("video range")
    if rng.random() < 0.6:
        quality = int(rng.integers(45, 97))
        _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        parts.append(f"jpeg {quality}")
    return pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("aul_dir", type=Path)
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in (arguments.aul_dir / "polygons").glob("*.json"))
    frames = [
        compose(name, *screens.read_outlined(arguments.aul_dir, name)).frame for name in names[::12]
    ]
    cv2.imwrite(str(arguments.sheet), screens.sheet(frames, 7)[..., ::-1])


if __name__ == "__main__":
    main()
