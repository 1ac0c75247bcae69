"""Full screens of ultrasound scanners, composed around the outlined images: the first set.

    python benchmarks/screens.py ../shared/data/aul --sheet screens.png   (a sheet to look at)

`find_sector` was tuned on the screens whose image has an even sha256 (`is_held_out` of
`roi_sector.py`); `python benchmarks/roi_sector.py ../shared/data/aul --screens first` scores it.
A screen is drawn in the order a scanner does it: page, bars and menus, picture, and then what lies
over the picture's dark corners.  Every random choice comes from the image's name.
"""

import argparse
import hashlib
import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from steatosis_tf.sources.images import read_frame

_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN)

# Left, top, width, height in px.
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


@dataclass
class Screen:
    """One composed screen.

    Attributes:
        frame: `(height, width, 3)` RGB, uint8.
        truths: the sectors on it, one or two, `(height, width)` bool.
        layout: name of the layout, or its parts in words.
    """

    frame: np.ndarray
    truths: list[np.ndarray]
    layout: str


@dataclass
class Page:
    """A screen in the making: its pixels, where the picture goes, and the habits of the vendor."""

    pixels: np.ndarray
    picture: Box
    rng: np.random.Generator
    ink: Colour
    ground: Colour = (0, 0, 0)

    def text(self, left: float, top: float, height: float, words: str, ink: Colour) -> None:
        font = _FONTS[self.rng.integers(len(_FONTS))]
        scale = height / (12 if font == cv2.FONT_HERSHEY_PLAIN else 26)
        place = (round(left), round(top + height))
        cv2.putText(self.pixels, words, place, font, scale, ink, 1 + (height > 22), cv2.LINE_AA)

    def lines(self, box: Box, height: int, ink: Colour, share: float = 1.0) -> None:
        """Short lines of text from the top of a box down, as many as fit in a proportion of it."""
        left, top, width, tall = box
        for row in range(top, top + round(share * tall) - height, round(1.7 * height)):
            num = int(self.rng.integers(3, max(4, width / height / 0.75)))
            self.text(left, row, height, words(self.rng, num), ink)

    def bar(self, box: Box, colour: Colour, shade: float = 0.0) -> None:
        """A filled box, `shade` darker at its lower end."""
        left, top, width, height = box
        fall = 1 - shade * np.linspace(0, 1, max(1, height))[:, None, None]
        part = self.pixels[max(0, top) : top + height, max(0, left) : left + width]
        part[:] = (fall * np.array(colour))[-len(part) :].astype(np.uint8)

    def buttons(self, box: Box, across: int, down: int, colour: Colour, ink: Colour) -> None:
        """A grid of raised boxes with a word in each."""
        left, top, width, height = box
        step_x, step_y = width // across, height // down
        for row in range(down):
            for column in range(across):
                x, y = left + column * step_x, top + row * step_y
                self.bar((x + 2, y + 2, step_x - 4, step_y - 4), colour, 0.3)
                if self.rng.random() < 0.8:
                    tall = max(6, min(step_y // 3, 16))
                    num = max(2, int(0.7 * step_x / tall))
                    self.text(x + 6, y + step_y // 3, tall, words(self.rng, num), ink)

    def grey_scale(self, left: int, top: int, width: int, height: int) -> None:
        ramp = np.linspace(255, 0, height)[:, None, None] * np.ones((1, width, 3))
        tint = np.array([1.0, 1.0, 1.0]) if self.rng.random() < 0.7 else np.array([1.0, 0.9, 0.7])
        self.pixels[top : top + height, left : left + width] = (ramp * tint).astype(np.uint8)
        cv2.rectangle(self.pixels, (left, top), (left + width, top + height), self.ink, 1)

    def ticks(self, column: int, top: int, height: int) -> None:
        """A depth scale."""
        num = int(self.rng.integers(6, 22))
        for mark in range(num):
            row = top + mark * height // num
            length = 10 if mark % 5 == 0 else 5
            cv2.line(self.pixels, (column, row), (column + length, row), self.ink, 1)
            if mark % 5 == 0 and self.rng.random() < 0.5:
                self.text(column + 12, row - 6, 11, str(mark), self.ink)

    def thumbnails(self, boxes: list[Box], frame: np.ndarray) -> None:
        """Small copies of the picture."""
        for left, top, width, height in boxes:
            shown = frame[:, ::-1] if self.rng.random() < 0.5 else frame
            small = cv2.resize(shown, (width - 4, height - 4), interpolation=cv2.INTER_AREA)
            self.pixels[top + 2 : top + height - 2, left + 2 : left + width - 2] = small
            cv2.rectangle(self.pixels, (left, top), (left + width - 1, top + height - 1), self.ink)


def words(rng: np.random.Generator, length: int) -> str:
    """Random letters, digits and signs with gaps, as names, dates and settings have them."""
    letters = list(string.ascii_letters + string.digits * 3 + "   .:/-%")
    return "".join(rng.choice(letters, length))


def _tone(rng: np.random.Generator, low: int, high: int, tint: int = 20) -> Colour:
    level = int(rng.integers(low, high))
    shift = rng.integers(-tint, tint + 1, 3)
    return tuple(int(np.clip(level + one, 0, 255)) for one in shift)  # type: ignore[return-value]


def _page(rng: np.random.Generator, size: tuple[int, int], colour: Colour, ink: Colour) -> Page:
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = colour
    return Page(pixels, (0, 0, width, height), rng, ink)


def _header_and_clipboard(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Shaded header, settings on the left, grey scale, thumbnails below the picture."""
    page = _page(rng, (1024, 768), (0, 0, 0), _tone(rng, 170, 240))
    page.bar((0, 0, 1024, 62), _tone(rng, 70, 190, 40), 0.4)
    page.lines((14, 6, 420, 56), 16, _tone(rng, 220, 250))
    page.lines((560, 6, 440, 56), 16, _tone(rng, 220, 250))
    page.lines((8, 90, 120, 500), 12, page.ink, rng.uniform(0.3, 0.9))
    page.grey_scale(150, 100, 14, 180)
    page.thumbnails([(160 + 110 * spot, 672, 100, 80) for spot in range(rng.integers(3, 8))], frame)
    page.lines((8, 700, 140, 60), 11, page.ink)
    page.picture = (175, 66, 740, 600)
    page.ticks(940, 90, 560)
    return page


def _side_thumbnails(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Light header, thumbnails in a light column on the right, help line below."""
    page = _page(rng, (1024, 768), (0, 0, 0), _tone(rng, 180, 250))
    light, dark = _tone(rng, 170, 230), _tone(rng, 10, 60)
    page.bar((0, 0, 1024, 48), light, 0.2)
    page.lines((10, 8, 700, 40), 18, dark)
    page.bar((880, 48, 144, 690), light)
    page.thumbnails([(890, 60 + 112 * spot, 124, 96) for spot in range(rng.integers(2, 7))], frame)
    page.bar((0, 738, 1024, 30), _tone(rng, 90, 160))
    page.lines((10, 742, 800, 26), 14, dark)
    page.picture = (60, 56, 790, 670)
    page.ticks(855, 80, 600)
    page.grey_scale(14, 80, 16, 150)
    return page


def _coloured_header(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Header of one saturated colour, settings over the picture's dark corner, slim grey scale."""
    size = ((800, 600), (1024, 768), (1280, 960))[rng.integers(3)]
    page = _page(rng, size, (0, 0, 0), _tone(rng, 200, 250))
    width, height = size
    page.bar((0, 0, width, height // 10), (40, 70, 120) if rng.random() < 0.5 else (90, 40, 40))
    page.lines((width // 50, 4, width // 2, height // 10), height // 34, (240, 240, 240))
    page.lines((width * 2 // 3, 4, width // 4, height // 10), height // 34, (240, 240, 240))
    page.picture = (width // 30, height // 10 + 3, width * 26 // 30, height * 88 // 100)
    page.grey_scale(width - width // 40, height // 8, width // 80, height // 4)
    page.ticks(width - width // 20, height // 8, height * 3 // 4)
    return page


def _left_menu(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Dark grey buttons down the left side and along the foot."""
    page = _page(rng, (1024, 768), _tone(rng, 28, 60, 6), _tone(rng, 170, 230))
    page.buttons((0, 60, 150, 640), 1, int(rng.integers(7, 16)), _tone(rng, 60, 120), page.ink)
    page.buttons((150, 712, 874, 56), int(rng.integers(5, 9)), 1, _tone(rng, 60, 120), page.ink)
    page.lines((12, 8, 600, 50), 18, page.ink)
    page.bar((154, 60, 866, 648), (0, 0, 0))
    page.picture = (210, 64, 740, 640)
    page.grey_scale(166, 80, 18, 256)
    page.ticks(975, 90, 560)
    return page


def _white_page(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Black picture on a white page with dark text and a line around it."""
    size = ((1280, 1024), (1024, 768), (1366, 768))[rng.integers(3)]
    width, height = size
    page = _page(rng, size, _tone(rng, 235, 255, 4), _tone(rng, 0, 60))
    page.lines((20, 12, width // 2, height // 9), height // 42, page.ink)
    page.lines((width * 3 // 4 + 12, height // 8, width // 5, height * 2 // 3), 14, page.ink)
    box = (width // 24, height // 8, width * 17 // 24, height * 3 // 4)
    page.bar(box, (0, 0, 0))
    cv2.rectangle(page.pixels, box[:2], (box[0] + box[2], box[1] + box[3]), _tone(rng, 60, 160), 2)
    page.lines((20, height * 9 // 10, width // 2, height // 12), height // 45, page.ink)
    page.picture = (box[0] + 8, box[1] + 4, box[2] - 16, box[3] - 8)
    return page


def _grey_page(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Middle grey user interface with light buttons on two sides of a black picture."""
    page = _page(rng, (1280, 1024), _tone(rng, 110, 190, 8), _tone(rng, 0, 40))
    page.bar((0, 0, 1280, 80), _tone(rng, 180, 230), 0.3)
    page.lines((20, 10, 800, 70), 22, page.ink)
    page.buttons((1060, 90, 210, 900), 2, int(rng.integers(8, 14)), _tone(rng, 190, 240), page.ink)
    page.bar((20, 90, 1030, 800), (0, 0, 0))
    page.thumbnails([(30 + 150 * spot, 900, 140, 110) for spot in range(rng.integers(1, 7))], frame)
    page.picture = (40, 96, 980, 790)
    return page


def _dark_grey_ground(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """The picture stands on the same dark grey as everything else."""
    ground = _tone(rng, 14, 38, 3)
    page = _page(rng, (960, 720), ground, _tone(rng, 150, 230))
    page.ground = ground
    page.bar((0, 0, 960, 40), _tone(rng, 40, 90), 0.3)
    page.lines((12, 8, 500, 30), 16, page.ink)
    page.lines((820, 80, 130, 420), 13, page.ink, rng.uniform(0.3, 1))
    page.lines((12, 650, 500, 60), 14, page.ink)
    page.picture = (70, 50, 730, 590)
    page.grey_scale(20, 60, 20, 200)
    return page


def _video_grab(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Text alone, grabbed from 576-line video with its noise (added at the end)."""
    page = _page(rng, ((768, 576), (720, 576), (640, 480))[rng.integers(3)], (4, 4, 4), (200,) * 3)
    height, width = page.pixels.shape[:2]
    page.lines((20, 14, width // 3, height // 5), 15, page.ink)
    page.lines((width * 2 // 3, 14, width // 3, height // 5), 15, page.ink)
    page.lines((20, height - 50, width // 2, 50), 15, page.ink)
    page.picture = (50, 50, width - 100, height - 110)
    page.grey_scale(18, height // 3, 12, height // 3)
    page.ticks(width - 36, 80, height - 150)
    return page


def _tablet(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Wide hand-held screen: large round icons on both sides."""
    size = ((1280, 800), (1920, 1080), (1920, 1200))[rng.integers(3)]
    width, height = size
    page = _page(rng, size, _tone(rng, 0, 30, 3), _tone(rng, 200, 250))
    side = width // 6
    page.picture = (side, height // 30, width - 2 * side, height * 28 // 30)
    page.bar((side, 0, width - 2 * side, height), (0, 0, 0))
    for column in (side // 2, width - side // 2):
        for row in range(height // 8, height, height // int(rng.integers(4, 8))):
            colour = (30, 160, 140) if rng.random() < 0.3 else _tone(rng, 60, 200)
            cv2.circle(page.pixels, (column, row), height // 22, colour, -1, cv2.LINE_AA)
            page.text(column - side // 4, row + height // 20, height // 50, words(rng, 7), page.ink)
    return page


def _phone(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Upright hand-held screen, light or dark, sliders below."""
    is_light = rng.random() < 0.5
    paper, ink = (_tone(rng, 225, 255, 3), (30,) * 3) if is_light else ((0, 0, 0), (230,) * 3)
    page = _page(rng, (750, 1334), paper, ink)
    page.lines((30, 20, 500, 70), 24, ink)
    page.bar((0, 110, 750, 760), (0, 0, 0))
    page.buttons((20, 1150, 710, 150), 4, 1, _tone(rng, 90, 180, 50), ink)
    for row in (930, 1000, 1070):
        page.bar((60, row, 630, 8), _tone(rng, 110, 160))
        cv2.circle(page.pixels, (int(rng.integers(80, 660)), row + 4), 18, (60, 140, 220), -1)
    page.picture = (10, 130, 730, 720)
    return page


def _viewer(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """Archive viewer: tool bar, strip of thumbnails on the left, text in the four corners."""
    page = _page(rng, (1600, 1000), (0, 0, 0), _tone(rng, 180, 240, 60))
    page.bar((0, 0, 1600, 70), _tone(rng, 45, 230))
    page.buttons((10, 5, 1100, 60), int(rng.integers(10, 20)), 1, _tone(rng, 80, 200, 40), (0,) * 3)
    page.bar((0, 70, 190, 930), _tone(rng, 30, 90))
    page.thumbnails([(12, 84 + 150 * spot, 166, 136) for spot in range(rng.integers(2, 6))], frame)
    for left in (204, 1380):
        page.lines((left, 84, 210, 150), 15, page.ink)
        page.lines((left, 900, 210, 100), 15, page.ink)
    page.picture = (300, 90, 1180, 890)
    return page


def _measurements(rng: np.random.Generator, frame: np.ndarray) -> Page:
    """A table of results in a box over the picture's corner, a logo, a heart trace at the foot."""
    page = _page(rng, (1024, 768), (0, 0, 0), _tone(rng, 180, 250))
    page.bar((0, 0, 1024, 36), _tone(rng, 50, 110))
    page.lines((8, 6, 900, 30), 16, page.ink)
    page.picture = (110, 40, 800, 640)
    at = np.arange(0, 1024, 3)
    trace = 730 - 9 * rng.random(len(at)) - 24 * (at % 150 < 6)
    line = np.stack([at, trace], axis=1).astype(np.int32)
    cv2.polylines(page.pixels, [line], False, (80, 220, 80), 1, cv2.LINE_AA)
    page.grey_scale(20, 60, 24, 220)
    page.ticks(960, 60, 600)
    return page


LAYOUTS: dict[str, Callable[[np.random.Generator, np.ndarray], Page]] = {
    "header and clipboard": _header_and_clipboard,
    "side thumbnails": _side_thumbnails,
    "coloured header": _coloured_header,
    "left menu": _left_menu,
    "white page": _white_page,
    "grey page": _grey_page,
    "dark grey ground": _dark_grey_ground,
    "video grab": _video_grab,
    "tablet": _tablet,
    "phone": _phone,
    "viewer": _viewer,
    "measurements": _measurements,
}


def compose(name: str, frame: np.ndarray, outline: np.ndarray, layout: str) -> Screen:
    """Put one outlined image on a screen.

    Args:
        name: of the image; every random choice comes from it and from the layout.
        frame: `(height, width, 3)` RGB, uint8.
        outline: `(n, 2)` x and y in px, the sector drawn by hand.
        layout: one of `LAYOUTS`.
    """
    rng = np.random.default_rng(list(hashlib.sha256(f"{name} {layout}".encode()).digest()))
    page = LAYOUTS[layout](rng, frame)
    truth = np.zeros(page.pixels.shape[:2], np.uint8)
    part, drawn, (left, top) = _fitted(page, frame, outline)
    cv2.fillPoly(truth, [np.round(drawn).astype(np.int32)], 1)
    beside = truth[top : top + part.shape[0], left : left + part.shape[1]]
    kept = cv2.dilate(beside, np.ones((5, 5), np.uint8))[..., None] > 0
    target = page.pixels[top : top + part.shape[0], left : left + part.shape[1]]
    target[:] = np.where(kept, np.maximum(part, np.array(page.ground, np.uint8)), target)
    _write_over(page, truth > 0)
    pixels = page.pixels
    if layout == "video grab":
        noise = rng.normal(0, rng.uniform(0.5, 2.0), pixels.shape[:2])[..., None]
        soft = cv2.GaussianBlur(pixels, (3, 1), 0.7)
        pixels = np.clip(np.round(soft + noise), 0, 255).astype(np.uint8)
    elif rng.random() < 0.4:
        quality = int(rng.integers(70, 96))
        _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return Screen(pixels, [truth > 0], layout)


def _fitted(
    page: Page, frame: np.ndarray, outline: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The image's part around the sector, scaled into the picture's box; the outline on the screen;
    and where the part goes."""
    low = np.maximum(0, np.floor(outline.min(axis=0)) - 4).astype(int)
    high = np.ceil(outline.max(axis=0)).astype(int) + 5
    part = frame[low[1] : high[1], low[0] : high[0]]
    left, top, width, height = page.picture
    scale = page.rng.uniform(0.7, 1.0) * min(width / part.shape[1], height / part.shape[0])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=way)
    small = small[:height, :width]
    free_x, free_y = width - small.shape[1], height - small.shape[0]
    left += round(page.rng.uniform(0.3, 0.7) * free_x)
    top += round(page.rng.uniform(0.0, 0.6) * free_y)
    factor = np.array([small.shape[1] / part.shape[1], small.shape[0] / part.shape[0]])
    drawn = (outline - low + 0.5) * factor - 0.5 + (left, top)
    return small, drawn, (left, top)


def _write_over(page: Page, sector: np.ndarray) -> None:
    """Text, a body mark, a result box and a focus mark in the picture's corners, off the sector."""
    before = page.pixels.copy()
    left, top, width, height = page.picture
    tall = max(9, height // 45)
    page.lines((left + 4, top + 4, width // 5, height // 3), tall, page.ink, page.rng.random())
    if page.rng.random() < 0.5:
        centre = (left + width - width // 12, top + height - height // 10)
        cv2.ellipse(page.pixels, centre, (width // 30, height // 14), 0, 0, 360, page.ink, 2)
    if page.rng.random() < 0.5:
        box = (left + 6, top + height * 4 // 5, width // 5, height // 6)
        page.bar(box, _tone(page.rng, 20, 120))
        page.lines((box[0] + 4, box[1] + 4, box[2] - 8, box[3]), tall, page.ink)
    if page.rng.random() < 0.5:
        columns = np.flatnonzero(sector.any(axis=0))
        page.text(columns[0] + 0.3 * np.ptp(columns), top, tall, "V", (80, 220, 220))
    around = cv2.dilate(sector.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    page.pixels[around] = before[around]


def no_sectors() -> Iterator[tuple[str, np.ndarray]]:
    """Every layout with something else in the picture's place; names and `(height, width, 3)`."""
    for layout, draw in LAYOUTS.items():
        for content in ("empty", "list", "cloud", "noise", "ramp"):
            rng = np.random.default_rng(
                list(hashlib.sha256(f"{layout} {content}".encode()).digest())
            )
            page = draw(rng, np.zeros((60, 80, 3), np.uint8))
            left, top, width, height = page.picture
            part = page.pixels[top : top + height, left : left + width]
            if content == "list":
                page.lines((left + 8, top + 4, width - 16, height), max(10, height // 50), page.ink)
            elif content == "cloud":
                cloud = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), height / 12)
                part[:] = np.clip(120 + 50 * cloud / cloud.std(), 0, 255)[..., None]
            elif content == "noise":
                part[:] = rng.integers(0, 256, (height, width, 1))
            elif content == "ramp":
                part[:] = np.linspace(0, 255, width)[None, :, None]
            yield f"{layout}, {content}", page.pixels


def read_outlined(aul_dir: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One outlined image, `(height, width, 3)` RGB uint8, and its sector `(n, 2)` x and y in px."""
    frame = read_frame(aul_dir / "images" / f"{name}.jpg")
    outline = json.loads((aul_dir / "polygons" / f"{name}.json").read_text())["outline"]
    return frame if frame.ndim == 3 else np.stack([frame] * 3, axis=-1), np.array(outline, float)


def sheet(frames: list[np.ndarray], across: int) -> np.ndarray:
    """Pictures side by side, each fitted into 320 x 240 px."""
    tiles = []
    for frame in frames:
        scale = min(320 / frame.shape[1], 240 / frame.shape[0])
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        tiles.append(np.full((244, 324, 3), (90, 0, 90), np.uint8))
        tiles[-1][: small.shape[0], : small.shape[1]] = small
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % across)
    rows = [np.hstack(tiles[start : start + across]) for start in range(0, len(tiles), across)]
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("aul_dir", type=Path)
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in (arguments.aul_dir / "polygons").glob("*.json"))
    frames = []
    for number, layout in enumerate([*LAYOUTS] * 2):
        name = names[number * 23]
        frames.append(compose(name, *read_outlined(arguments.aul_dir, name), layout).frame)
    frames += [frame for _, frame in no_sectors()]
    cv2.imwrite(str(arguments.sheet), sheet(frames, 8)[..., ::-1])


if __name__ == "__main__":
    main()
