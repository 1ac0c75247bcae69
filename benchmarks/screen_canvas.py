"""A screen of an ultrasound console to draw on: text, keys, rulers, thumbnails, and the sector.

What every console draws stands here once; what stands where is in `screens_second`.
"""

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom in px
Colour = tuple[int, int, int]

_FAMILY = ("ABARA", "Brenner", "CASTELLO", "Dvorakova", "Eklund", "FARKAS", "Gruber", "HOLM")
_GIVEN = ("MIRA", "Jonas", "LENA", "Pavel", "ANNIKA", "Tomas", "IDA", "Rui")


@dataclass(frozen=True)
class Fan:
    """Where the sector stands on the screen, px."""

    left: float
    top: float
    right: float
    bottom: float
    apex: float


class Screen:
    """One canvas with what every console draws; `unit` is 1 px on a screen 768 px high."""

    def __init__(self, size: tuple[int, int], back: Colour, rng: np.random.Generator,
                 pictures: list[Path], mono: bool = False) -> None:  # fmt: skip
        self.image = Image.new("RGB", size, back)
        self.draw = ImageDraw.Draw(self.image)
        self.width, self.height = size
        self.unit = min(size) / 768
        self.rng = rng
        self.pictures = pictures
        self.family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
        self.outline = np.zeros((0, 2))

    def any(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def text(self, x: float, y: float, words: str, size: float = 13,
             fill: Colour = (210, 210, 210), anchor: str = "la",
             bold: bool = False) -> None:  # fmt: skip
        font = _font(self.family, max(8, round(size * self.unit)), bold)
        self.draw.text((x, y), words, fill, font, anchor)

    def lines(self, x: float, y: float, words: list[str], size: float = 12,
              fill: Colour = (200, 200, 200), anchor: str = "la") -> None:  # fmt: skip
        for row, line in enumerate(words):
            self.text(x, y + row * size * 1.35 * self.unit, line, size, fill, anchor)

    def box(self, box: Box, fill: Colour | None = None, edge: Colour | None = None) -> None:
        self.draw.rectangle(box, fill, edge)

    def fade(self, box: Box, start: Colour, end: Colour, along: int = 0) -> None:
        """A box that goes from one colour to another, downwards (0) or to the right (1)."""
        left, top, right, bottom = (round(side) for side in box)
        shape = (max(bottom - top, 1), max(right - left, 1))
        ramp = np.linspace(0, 1, shape[along])[..., None]
        row = np.array(start) * (1 - ramp) + np.array(end) * ramp
        filled = np.broadcast_to(row[:, None] if along == 0 else row[None], (*shape, 3))
        self.image.paste(Image.fromarray(np.round(filled).astype(np.uint8)), (left, top))

    def button(self, box: Box, words: str, face: Colour, ink: Colour, size: float = 11) -> None:
        """A raised soft key."""
        left, top, right, bottom = box
        light, dark = (tuple(int(np.clip(c + by, 0, 255)) for c in face) for by in (45, -45))
        self.box(box, face)
        self.draw.line([(left, bottom), (left, top), (right, top)], light)
        self.draw.line([(left, bottom), (right, bottom), (right, top)], dark)
        self.text((left + right) / 2, (top + bottom) / 2, words, size, ink, "mm")

    def patient(self) -> str:
        family, given = self.any(_FAMILY), self.any(_GIVEN)
        joined = self.any((f"{family}, {given}", f"{family}^{given}", f"{given} {family}"))
        return f"{joined}  {self.rng.integers(10**6, 10**8)}"

    def clock(self) -> str:
        day, month, hour, minute, second = self.rng.integers((1, 1, 7, 0, 0), (28, 12, 20, 60, 60))
        year = int(self.rng.integers(2008, 2026))
        date = self.any((f"{day:02d}.{month:02d}.{year}", f"{month:02d}/{day:02d}/{year}",
                         f"{year}-{month:02d}-{day:02d}"))  # fmt: skip
        return f"{date}  {hour:02d}:{minute:02d}:{second:02d}"

    def output(self) -> str:
        index, thermal = self.rng.uniform(0.4, 1.5), self.rng.uniform(0.1, 1.6)
        return self.any((f"MI {index:.1f}  TIs {thermal:.1f}", f"TIS{thermal:.1f}  MI {index:.1f}",
                         f"MI:{index:.2f} TIB:{thermal:.1f}"))  # fmt: skip

    def settings(self) -> list[str]:
        """The imaging parameters that stand beside the picture."""
        rng = self.rng
        gain, rate, depth = rng.integers(30, 90), rng.integers(12, 60), rng.uniform(8, 24)
        lines = [f"FR {rate}Hz", f"{depth:.1f}cm", f"Gn {gain}", f"DR {rng.integers(50, 90)}",
                 f"Frq {rng.uniform(1.8, 5):.1f}MHz", f"Map {'ABCDEF'[rng.integers(6)]}/0",
                 f"P {rng.integers(70, 101)}%", "CHI", f"AO {rng.integers(60, 101)}", "HRes",
                 f"XV {rng.integers(1, 4)}", f"Pers {rng.integers(0, 5)}"]  # fmt: skip
        return lines[: int(rng.integers(5, len(lines) + 1))]

    def place(self, area: Box, cut: float = 0.0, fill: tuple[float, float] = (0.8, 0.98),
              align: float = 0.0, back: Colour = (0, 0, 0)) -> Fan:  # fmt: skip
        """Put the sector into the image area, and keep its outline.

        Args:
            area: the console's window for the picture, px.
            cut: the proportion of screens whose sector is larger than the window and cut by it.
            fill: the proportion of the window that the sector fills otherwise, least and most.
            align: where spare height goes, 0 below the sector (as most do), 0.5 on both sides.
            back: the colour of the window.
        """
        picture, outline = _picture(self.any_path())
        left, top, right, bottom = area
        low, high = outline.min(0), outline.max(0)
        room = min((right - left) / (high - low)[0], (bottom - top) / (high - low)[1])
        scale = room * self.rng.uniform(*((1.02, 1.2) if self.chance(cut) else fill))
        spare = np.array([right - left, bottom - top]) - (high - low) * scale
        share = np.array([0.5 + self.rng.uniform(-0.12, 0.12), align])
        share[1] = self.rng.uniform(0, 0.12) if spare[1] < 0 else max(align, 0.02)
        move = np.array([left, top]) + spare * share - low * scale
        points = outline * scale + move
        layer, inside = self._layers(picture, points, scale, move, area)
        self.box(area, back)
        canvas = np.array(self.image)
        canvas[inside] = layer[inside]
        self.image.paste(Image.fromarray(canvas))
        self.outline = _clipped(points, area)
        (x0, y0), (x1, y1) = self.outline.min(0), self.outline.max(0)
        near = self.outline[self.outline[:, 1] < y0 + 0.12 * (y1 - y0), 0]
        return Fan(x0, y0, x1, y1, float((near.min() + near.max()) / 2))

    def _layers(self, picture: np.ndarray, points: np.ndarray, scale: float, move: np.ndarray,
                area: Box) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The scaled picture on the whole screen, and which of its pixels are taken."""
        size = (self.width, self.height)
        if scale < 0.7:
            step = 0.5 / scale
            picture = cv2.GaussianBlur(picture, None, step / 2)
        matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
        layer = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
        whole = np.full(picture.shape[:2], 255, np.uint8)
        if self.chance(0.5):  # only the sector, on the console's own background
            taken = np.zeros((self.height, self.width), np.uint8)
            cv2.fillPoly(taken, [np.round(points).astype(int)], 255)
        else:  # the whole cut-out, with the black around it
            taken = cv2.warpAffine(whole, matrix, size, flags=cv2.INTER_NEAREST)
        left, top, right, bottom = (round(side) for side in area)
        window = np.zeros(taken.shape, bool)
        window[top : bottom + 1, left : right + 1] = True
        return layer, (taken > 0) & window

    def any_path(self) -> Path:
        return self.pictures[int(self.rng.integers(len(self.pictures)))]

    def thumbnail(self, box: Box, edge: Colour = (90, 90, 90)) -> None:
        """A small copy of another picture, as in a strip of stored frames."""
        left, top, right, bottom = (round(side) for side in box)
        picture, _ = _picture(self.any_path())
        small = Image.fromarray(picture)
        small.thumbnail((right - left, bottom - top), Image.Resampling.BOX)
        self.box(box, (0, 0, 0))
        spare = (right - left - small.width, bottom - top - small.height)
        self.image.paste(small, (left + spare[0] // 2, top + spare[1] // 2))
        self.box((left, top, right, bottom), None, edge)

    def grey_bar(self, x: float, top: float, bottom: float, wide: float = 14,
                 edge: Colour | None = None, ticks: int = 0) -> None:  # fmt: skip
        wide *= self.unit
        self.fade((x, top, x + wide, bottom), (250, 250, 250), (0, 0, 0))
        if edge is not None:
            self.box((x, top, x + wide, bottom), None, edge)
        for y in np.linspace(top, bottom, ticks) if ticks else ():
            self.draw.line([(x + wide, y), (x + wide + 5 * self.unit, y)], (200, 200, 200))

    def ruler(self, x: float, fan: Fan, style: str, ink: Colour = (220, 220, 220)) -> None:
        """Depth marks in cm from the top of the sector to its bottom."""
        depth = int(self.rng.integers(9, 22))
        for mark in range(depth + 1):
            y = fan.top + (fan.bottom - fan.top) * mark / depth
            long = mark % 5 == 0
            reach = (9 if long else 4) * self.unit
            if style == "dots":
                half = (2 if long else 1) * max(self.unit, 0.8)
                self.draw.ellipse((x - half, y - half, x + half, y + half), ink)
            else:
                self.draw.line([(x, y), (x - reach, y)], ink, max(1, round(self.unit)))
            if style == "numbers" and long:
                self.text(x + 4 * self.unit, y, str(mark), 11, ink, "lm")
        if style == "axis":
            self.draw.line([(x, fan.top), (x, fan.bottom)], ink)
        if self.chance(0.6):  # the focus
            y = fan.top + (fan.bottom - fan.top) * self.rng.uniform(0.3, 0.7)
            step = 5 * self.unit
            self.draw.polygon([(x + step, y - step), (x + step, y + step), (x - step, y)], ink)

    def gain_curve(self, x: float, fan: Fan, ink: Colour = (150, 150, 150)) -> None:
        """Time gain compensation beside the sector."""
        y = np.linspace(fan.top, fan.bottom, 9)
        bend = np.cumsum(self.rng.uniform(-1, 4, 9)) * self.unit
        self.draw.line([(x + b, h) for b, h in zip(bend, y, strict=True)], ink)

    def marker(self, fan: Fan, words: str, ink: Colour) -> None:
        """The orientation mark at one side of the top of the sector."""
        side = -1 if self.chance(0.7) else 1
        x = fan.apex + side * (fan.right - fan.left) * self.rng.uniform(0.2, 0.28)
        if words:
            self.text(x, fan.top + 2, words, 15, ink, "ma", bold=True)
        else:
            half = 5 * self.unit
            self.draw.ellipse((x - half, fan.top, x + half, fan.top + 2 * half), None, ink, 2)

    def calipers(self, fan: Fan, x: float, y: float, ink: Colour) -> None:
        """Two crosses in the sector with a dotted line, and the result in a box."""
        a, b = self.rng.uniform((0.35, 0.4), (0.65, 0.8), (2, 2))
        span = np.array([fan.right - fan.left, fan.bottom - fan.top])
        start, end = (np.array([fan.left, fan.top]) + span * at for at in (a, b))
        for at in (start, end):
            for reach in ((6, 0), (0, 6)):
                step = np.array(reach) * self.unit
                self.draw.line([tuple(at - step), tuple(at + step)], ink, max(1, round(self.unit)))
        for share in np.linspace(0, 1, 24):
            self.draw.point(tuple(start + (end - start) * share), ink)
        self.text(x, y, f"1  L {self.rng.uniform(2, 14):.2f} cm", 13, ink)

    def heart_trace(self, box: Box, ink: Colour) -> None:
        left, top, right, bottom = box
        time = np.arange(left, right)
        phase = (time - left) / ((right - left) / self.rng.uniform(3, 6)) % 1
        beat = (np.exp(-(((phase - 0.3) / 0.015) ** 2))
                - 0.25 * np.exp(-(((phase - 0.34) / 0.02) ** 2))
                + 0.18 * np.exp(-(((phase - 0.55) / 0.05) ** 2)))  # fmt: skip
        level = bottom - (bottom - top) * (0.25 + 0.7 * beat) + self.rng.normal(0, 0.5, len(time))
        self.draw.line(list(zip(time, level, strict=True)), ink, max(1, round(self.unit)))

    def body_mark(self, x: float, y: float, ink: Colour) -> None:
        """A torso with the probe on it."""
        u = self.unit
        for side in (-1, 1):
            flank = ((9, 0), (16, 8), (12, 24), (14, 46))
            self.draw.line([(x + side * a * u, y + b * u) for a, b in flank], ink, 2)
        self.draw.line([(x - 9 * u, y + 20 * u), (x - 2 * u, y + 24 * u)], (240, 200, 60), 3)

    def comment(self, fan: Fan, ink: Colour) -> None:
        words = self.any(("RT LOBE", "LIVER RT", "Leber", "LIVER / RK", "SAG", "rt lobe inspir.",
                          "Segment VI", "TRANS LIVER"))  # fmt: skip
        self.text(fan.left + 6, fan.bottom - self.rng.uniform(20, 120) * self.unit, words, 16, ink)


@cache
def _font(family: str, size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # Matplotlib brings these fonts, so that every machine draws the same letters.
    found = findfont(FontProperties(family=family, weight="bold" if bold else "normal"))
    return ImageFont.truetype(found, size)


@cache
def _read(path: Path) -> tuple[bytes, bytes]:
    polygon = path.parent.parent / "polygons" / f"{path.stem}.json"
    return path.read_bytes(), polygon.read_bytes()


def _picture(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The picture `(height, width, 3)` uint8 and its outline `(points, 2)`, x and y in px."""
    encoded, polygon = _read(path)
    pixels = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return pixels, np.array(json.loads(polygon)["outline"], float)


def _clipped(points: np.ndarray, area: Box) -> np.ndarray:
    """The outline inside the image area; as it is where the area does not cut it."""
    left, top, right, bottom = area
    low, high = points.min(0), points.max(0)
    if low[0] >= left and low[1] >= top and high[0] <= right and high[1] <= bottom:
        return points
    window = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    size = (int(max(high[1], bottom)) + 2, int(max(high[0], right)) + 2)
    masks = [np.zeros(size, np.uint8) for _ in range(2)]
    for mask, shape in zip(masks, (points, window), strict=True):
        cv2.fillPoly(mask, [np.round(shape).astype(int)], 1)
    contours, _ = cv2.findContours(masks[0] & masks[1], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return max(contours, key=cv2.contourArea)[:, 0].astype(float)
