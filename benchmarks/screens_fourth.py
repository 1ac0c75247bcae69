"""Full screens after the habits of real scanners, tablets and phones: the fourth set.

    python benchmarks/screens_fourth.py ../shared/data/aul --sheet screens.png   (to look at)

Its author had not read the finder. What the first three have little of: fans of every probe (wide,
narrow, trapezoid, linear) cut off by the screen on any side or far off its middle, upright screens,
marks that touch the fan, an area with a rim of 1 px, tinted maps, a second small picture, and what
a capture does: interlaced or letterboxed video, photographs, strong JPEG.
Every random choice comes from the image's name.
"""

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import screen_canvas
import screens
from PIL import Image
from screen_canvas import Colour
from screens_third import along_beams

from steatosis_tf.roi.sector import Fan, find_sector

_SIZES = (
    (640, 480), (720, 480), (720, 576), (800, 600), (1024, 768), (1024, 768), (1016, 708),
    (1280, 720), (1280, 1024), (1292, 970), (1440, 900), (1552, 970), (1920, 1080),
    (720, 1280), (750, 1334), (828, 1472), (1200, 1600), (1080, 1440),
)  # fmt: skip
_BRANDS = (
    "LOGIQ E10", "Voluson", "Vivid", "PHILIPS", "EPIQ", "SIEMENS", "ACUSON", "Canon", "Aplio",
    "SAMSUNG", "mindray", "HITACHI", "ALOKA", "SonoScape", "iQ", "CLARIUS", "Lumify",
)  # fmt: skip
_SHAPE = (760, 1100)  # of a drawn fan's canvas, px


def compose(name: str, frame: np.ndarray, outline: np.ndarray) -> screens.Screen:
    """Put one outlined image on a screen of its own.

    Args:
        name: of the image; every random choice comes from it.
        frame: `(height, width, 3)` RGB, uint8.
        outline: `(n, 2)` x and y in px, the sector drawn by hand.
    """
    rng = np.random.default_rng(list(hashlib.sha256(f"{name} fourth".encode()).digest()))
    s, area, ground, parts = _console(rng, frame)
    inside = _filled(outline, frame.shape[:2])
    if rng.random() < 0.6:
        drawn = _drawn(rng, frame, inside, parts)
        if drawn is not None:
            frame, inside = drawn
    pixels, truth = _placed(s, area, ground, frame, inside, parts)
    s.image.paste(Image.fromarray(pixels))
    _marks(s, area, truth, frame, parts)
    pixels, truth = _captured(np.array(s.image), truth, rng, parts)
    return screens.Screen(pixels, [truth], ", ".join(parts))


def no_sectors(num: int = 120) -> Iterator[tuple[str, np.ndarray]]:
    """Consoles with no sector: worksheets, patient lists, sweeps, photographs, plots, nothing."""
    kinds = ("empty", "worksheet", "list", "sweep", "photograph", "plots", "grain", "text")
    for number in range(num):
        kind = kinds[number % len(kinds)]
        rng = np.random.default_rng(
            list(hashlib.sha256(f"{number} without, fourth".encode()).digest())
        )
        s, area, ground, parts = _console(rng, np.zeros((60, 80, 3), np.uint8))
        s.box(area, ground)
        _other(s, area, kind)
        nothing = np.zeros((s.height, s.width), bool)
        yield kind, _captured(np.array(s.image), nothing, rng, parts)[0]


def _other(s: screen_canvas.Screen, area: screen_canvas.Box, kind: str) -> None:
    rng, u = s.rng, s.unit
    left, top, right, bottom = (round(side) for side in area)
    wide, tall = right - left, bottom - top
    if kind in ("worksheet", "list"):
        for row, y in enumerate(np.arange(top + 6, bottom - 20 * u, 24 * u)):
            if row % 2 and kind == "list":
                s.box((left, y, right, y + 22 * u), tuple(rng.integers(20, 90, 3)))
            for column in np.linspace(left + 8, right - 0.2 * wide, 4):
                s.text(column, y, s.any((s.patient(), s.clock(), "4.21 cm", "Liver", "-")), 13)
    elif kind == "sweep":  # M-mode or a spectrum of one beam: bands and envelopes along time
        time = np.arange(wide)[None]
        level = rng.uniform(0.3, 0.6) + 0.2 * np.abs(np.sin(time / rng.uniform(40, 120)))
        deep = np.linspace(0, 1, tall)[:, None]
        lit = 170 * np.exp(-(((deep - level) / rng.uniform(0.05, 0.3)) ** 2))
        shown = lit * rng.gamma(2, 0.5, (tall, wide))
        s.image.paste(Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8)), (left, top))
    elif kind in ("photograph", "grain"):
        cloud = cv2.GaussianBlur(rng.normal(size=(tall, wide)), (0, 0), tall / rng.uniform(8, 60))
        shown = 110 + 60 * cloud / cloud.std()
        if kind == "grain":
            shown = shown + rng.normal(0, 25, shown.shape)
        s.image.paste(
            Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8)).convert("RGB"), (left, top)
        )
    elif kind == "plots":
        for _ in range(3):
            y = rng.uniform(top, bottom - 0.3 * tall)
            s.heart_trace(
                (left + 10, y, right - 10, y + 0.3 * tall), tuple(rng.integers(80, 255, 3))
            )
        s.fade(
            (left + 0.8 * wide, top + 8, left + 0.84 * wide, bottom - 8), (250, 60, 40), (0, 0, 90)
        )
    elif kind == "text":
        s.lines(left + 8, top + 6, s.settings() * 3, float(rng.uniform(14, 34)))


def _console(
    rng: np.random.Generator, frame: np.ndarray
) -> tuple[screen_canvas.Screen, screen_canvas.Box, Colour, list[str]]:
    """The page with its bars; the picture's area, its ground, and what was drawn, in words."""
    width, height = _SIZES[rng.integers(len(_SIZES))]
    theme = str(
        rng.choice(["black", "dark", "slate", "grey", "light"], p=[0.45, 0.2, 0.15, 0.1, 0.1])
    )
    level = rng.integers(*{"black": (0, 3), "dark": (8, 36), "slate": (30, 75), "grey": (90, 180),
                           "light": (215, 252)}[theme])  # fmt: skip
    paper = _tint(rng, int(level))
    s = screen_canvas.Screen((width, height), paper, rng, [], mono=bool(rng.random() < 0.2))
    ink = (30, 30, 40) if level > 85 else _tint(rng, int(rng.integers(150, 250)))
    left, top, right, bottom = 0.0, 0.0, width - 1.0, height - 1.0
    parts = [f"{width} x {height}", theme]
    if s.chance(0.85):  # brand, patient, hospital, indices
        tall = height * rng.uniform(0.04, 0.11)
        if s.chance(0.4):
            end = _tint(rng, int(rng.integers(10, 200)))
            s.fade((0, 0, width, tall), end, tuple(one // 2 for one in end))
        s.text(8, 4, s.any(_BRANDS), 20, ink, bold=True)
        s.text(width * 0.3, 4, s.patient(), 15, ink)
        s.text(width - 8, 4, s.clock(), 14, ink, "ra")
        s.text(width - 8, 4 + 20 * s.unit, s.output(), 14, ink, "ra")
        top = tall
    if s.chance(0.5):  # settings, a menu, or thumbnails beside the picture
        wide, on_left = width * rng.uniform(0.08, 0.2), s.chance(0.5)
        x = 0.0 if on_left else right - wide
        _column(s, (x, top, x + wide, bottom), ink, frame)
        left, right = (wide, right) if on_left else (left, right - wide)
    if s.chance(0.45):  # soft keys, a strip of thumbnails, sliders of a tablet
        tall = height * rng.uniform(0.04, 0.22 if height > width else 0.14)
        num = int(rng.integers(3, 11))
        step = (right - left) / num
        face = _tint(rng, int(np.clip(level + rng.choice([-50, 25, 60]), 5, 245)))
        for spot in range(num if s.chance(0.8) else num // 2):
            x = left + spot * step
            box = (x + 2, bottom - tall + 2, x + step - 3, bottom - 2)
            if num % 2:
                s.button(box, s.any(("Depth", "Gain", "Store", "THI", "Focus")), face, ink)
            else:
                _small(s, box, frame)
        bottom -= tall
    if height > width and s.chance(0.7):  # upright: the picture fills a part of the height
        bottom = top + (bottom - top) * rng.uniform(0.5, 0.85)
    ground = paper
    if level > 85 or s.chance(0.7):
        ground = (0, 0, 0) if s.chance(0.75) else _tint(rng, int(rng.integers(3, 32)))
    s.box((left, top, right, bottom), ground)
    if s.chance(0.3):
        s.box((left, top, right, bottom), None, _tint(rng, int(rng.integers(50, 220))))
        parts.append("rim")
    return s, (left, top, right, bottom), ground, parts


def _column(
    s: screen_canvas.Screen, box: screen_canvas.Box, ink: Colour, frame: np.ndarray
) -> None:
    left, top, right, bottom = box
    kind = s.rng.integers(3)
    if kind == 0:
        s.lines(left + 5, top + 8, s.settings(), 13, ink)
    for y in np.arange(top + 4, bottom - 40 * s.unit, (right - left) * 0.8) if kind == 1 else ():
        if s.chance(0.8):
            _small(s, (left + 3, y, right - 3, min(bottom, y + 0.75 * (right - left))), frame)
    face = _tint(s.rng, int(s.rng.integers(30, 210)))
    for y in np.arange(top + 4, bottom - 40 * s.unit, 52 * s.unit) if kind == 2 else ():
        s.button((left + 4, y, right - 4, y + 46 * s.unit), s.any(("2D", "PW", "CF", "Body")), face,
                 (20, 20, 20))  # fmt: skip


def _small(s: screen_canvas.Screen, box: screen_canvas.Box, frame: np.ndarray) -> None:
    small = Image.fromarray(frame)
    small.thumbnail((max(8, int(box[2] - box[0])), max(8, int(box[3] - box[1]))))
    s.image.paste(small, (round(box[0]), round(box[1])))


def _tint(rng: np.random.Generator, level: int) -> Colour:
    shift = rng.choice([(1, 1, 1), (1, 1, 1), (0.8, 1, 1.25), (0.9, 0.95, 1.1), (1.1, 1, 0.85)])
    return tuple(int(np.clip(level * one, 0, 255)) for one in shift)  # type: ignore[return-value]


def _filled(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.round(outline).astype(np.int32)], 1) > 0


def _drawn(
    rng: np.random.Generator, frame: np.ndarray, inside: np.ndarray, parts: list[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The image's echo along the beams of another probe, and that probe's sector."""
    try:
        found = find_sector(frame)
    except ValueError:
        return None
    if 2 * (found.mask & inside).sum() < 0.95 * (found.mask.sum() + inside.sum()):
        return None
    probe = str(rng.choice(["convex", "wide", "narrow", "trapezoid", "linear"],
                           p=[0.35, 0.2, 0.2, 0.15, 0.1]))  # fmt: skip
    low, high = {"convex": (25, 40), "wide": (40, 62), "narrow": (20, 45), "trapezoid": (8, 22),
                 "linear": (0, 0)}[probe]  # fmt: skip
    half = float(rng.uniform(low, high))
    share = {"convex": (0.2, 0.45), "wide": (0.08, 0.3), "narrow": (0.0, 0.04),
             "trapezoid": (0.45, 0.75), "linear": (0, 0)}[probe]  # fmt: skip
    part = float(rng.uniform(*share))
    if probe == "linear":
        wide = rng.uniform(150, 420)
        fan = Fan("linear", 550.0, -np.inf, 0, 0, 10.0, 700.0, 550 - wide, 550 + wide)
    else:
        rise = part * np.cos(np.radians(half))
        far = min(740 / (1 - rise), 540 / np.sin(np.radians(half)))
        fan = Fan("convex", 550.0, 10 - far * rise, -half, half, part * far, far)
    mask = fan.mask(_SHAPE)
    if probe == "trapezoid":  # the face of a linear probe is flat
        mask[: int(fan.apex_y_px + fan.near_px)] = False
    parts.append(probe)
    return np.where(mask[..., None], along_beams(frame, found.fan, fan, _SHAPE), 0), mask


def _placed(
    s: screen_canvas.Screen, area: screen_canvas.Box, ground: Colour, frame: np.ndarray,
    inside: np.ndarray, parts: list[str],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The sector in its area: whole, off the middle or cut off; the screen, and its mask."""
    rng = s.rng
    left, top, right, bottom = area
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    low = np.array([columns[0], rows[0]])
    size = np.array([columns[-1], rows[-1]]) - low + 1
    room = np.array([right - left - 2, bottom - top - 2])
    scale = rng.uniform(0.72, 1.0) * (room / size).min()
    if rng.random() < 0.22:  # zoomed, or wider than an upright screen
        scale *= rng.uniform(1.05, 1.45)
        parts.append("cut off")
    free = room - scale * size
    at = np.array([rng.uniform(0, 1) if rng.random() < 0.3 else rng.uniform(0.42, 0.58),
                   rng.choice([0.0, 0.02, 0.1, 0.5])])  # fmt: skip
    if free[1] < 0:
        at[1] = rng.choice([0, 0, 0, 0.5])
    move = np.array([left + 1, top + 1]) + free * at - scale * low
    matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
    soft = frame if scale > 0.7 else cv2.GaussianBlur(frame, (0, 0), 0.45 / scale)
    shown = cv2.warpAffine(soft, matrix, (s.width, s.height)).astype(np.float32)
    truth = cv2.warpAffine(inside.astype(np.uint8) * 255, matrix, (s.width, s.height)) > 127
    window = np.zeros(truth.shape, bool)
    window[round(top) + 1 : round(bottom), round(left) + 1 : round(right)] = True
    truth &= window
    shown = 255 * (shown / 255) ** rng.uniform(0.75, 1.35) * rng.uniform(0.75, 1.1)
    maps = {"grey": (1, 1, 1), "sepia": (1.08, 0.95, 0.72), "blue": (0.75, 0.92, 1.12)}
    tint = str(rng.choice(list(maps), p=[0.7, 0.17, 0.13]))
    parts.append(tint)
    shown = np.clip(shown * maps[tint], 0, 255)
    pixels = np.array(s.image)
    if rng.random() < 0.5:
        shown = np.maximum(shown, ground)
    pixels[truth] = shown[truth].astype(np.uint8)
    return pixels, truth


def _marks(
    s: screen_canvas.Screen, area: screen_canvas.Box, truth: np.ndarray, frame: np.ndarray,
    parts: list[str],
) -> None:  # fmt: skip
    """What scanners draw beside, against and over the fan."""
    left, top, right, bottom = area
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    first = np.flatnonzero(truth[rows[0] + 2])
    fan = screen_canvas.Fan(columns[0], rows[0], columns[-1], rows[-1], float(first.mean()))
    rng, u = s.rng, s.unit
    ink = _tint(rng, int(rng.integers(120, 250)))
    if s.chance(0.8):  # the depth scale, at the border of the area or against the fan
        x = fan.right + rng.uniform(-2, 12) * u if s.chance(0.5) else right - 30 * u
        s.ruler(min(x, right - 12 * u), fan, s.any(("dots", "lines", "numbers", "axis")), ink)
    if s.chance(0.6):  # a grey or colour bar, near the fan's side or at the border
        x = left + 4 * u if s.chance(0.5) else max(left + 2, fan.left - rng.uniform(0, 20) * u)
        end = rows[0] + (rows[-1] - rows[0]) * rng.uniform(0.2, 0.55)
        if s.chance(0.25):
            s.fade((x, fan.top, x + 14 * u, (fan.top + end) / 2), (255, 220, 60), (90, 0, 0))
            s.fade((x, (fan.top + end) / 2, x + 14 * u, end), (0, 0, 90), (80, 230, 255))
        else:
            s.grey_bar(x, fan.top, end, float(rng.uniform(6, 18)), ink if s.chance(0.5) else None)
    if s.chance(0.3):
        s.gain_curve(min(right - 40 * u, fan.right + rng.uniform(-30, 10) * u), fan, ink)
    if s.chance(0.7):  # the probe's side: a letter, a ring, or the vendor's disc
        s.marker(fan, s.any(("", "V", "P", "GE", "S", "M", "\u25cf")), ink)
    if s.chance(0.2):
        tall = (bottom - top) * 0.1
        s.heart_trace((left + 4, bottom - tall - 4, right - 4, bottom - 4), (70, 230, 90))
        parts.append("trace")
    if s.chance(0.35):
        s.body_mark(left + (right - left) * rng.choice([0.08, 0.9]), bottom - 70 * u, ink)
    if s.chance(0.5):
        s.lines(left + 6, top + 6, s.settings(), float(rng.uniform(11, 16)), ink)
    if s.chance(0.35):  # results over a lower corner of the fan
        wide, tall = rng.uniform(120, 230) * u, rng.uniform(40, 110) * u
        x = left + 6 if s.chance(0.5) else right - wide - 6
        y = bottom - tall - 6
        if s.chance(0.6):
            s.box((x, y, x + wide, y + tall), _tint(rng, int(rng.integers(0, 90))), ink)
        s.lines(
            x + 5, y + 4, [f"{one} L {rng.uniform(1, 14):.2f} cm" for one in range(1, 5)], 14, ink
        )
        parts.append("results")
    if s.chance(0.15):  # the whole picture, small, in a corner
        wide = (right - left) * rng.uniform(0.12, 0.2)
        x = left + 4 if s.chance(0.5) else right - wide - 4
        _small(s, (x, top + 4, x + wide, top + 0.8 * wide), frame)
        parts.append("second picture")
    if s.chance(0.3):
        s.calipers(fan, right - 150 * u, bottom - 24 * u, ink)
    if s.chance(0.4):
        s.comment(fan, ink)


def _captured(
    pixels: np.ndarray, truth: np.ndarray, rng: np.random.Generator, parts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Video, a letterbox, a photograph of the screen, JPEG."""
    kind = str(rng.choice(["as it is", "interlaced", "letterbox", "photograph", "window"],
                          p=[0.6, 0.12, 0.12, 0.08, 0.08]))  # fmt: skip
    parts.append(kind)
    height, width = truth.shape
    if kind == "interlaced":
        pixels = cv2.GaussianBlur(pixels, (3, 1), 0.7)
        pixels[1::2] = np.roll(pixels[1::2], 1, axis=1)
        noise = rng.normal(0, rng.uniform(0.5, 2.5), truth.shape)[..., None]
        pixels = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    elif kind in ("letterbox", "window"):
        level = (0, 0, 0) if kind == "letterbox" else (int(rng.integers(90, 245)),) * 3
        across, down = (round(side * rng.choice([0.0, 0.06, 0.12])) for side in (width, height))
        pixels = cv2.copyMakeBorder(
            pixels, down, down, across, across, cv2.BORDER_CONSTANT, value=level
        )
        truth = cv2.copyMakeBorder(truth.astype(np.uint8), down, down, across, across,
                                   cv2.BORDER_CONSTANT, value=0) > 0  # fmt: skip
    elif kind == "photograph":
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        moved = corners + rng.uniform(-0.025, 0.025, (4, 2)) * (width, height)
        matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
        pixels = cv2.warpPerspective(pixels, matrix, (width, height), borderValue=(25, 25, 25))
        truth = cv2.warpPerspective(truth.astype(np.uint8), matrix, (width, height)) > 0
        shine = np.linspace(0, rng.uniform(5, 25), width)[None, :, None]
        noise = rng.normal(0, 3, truth.shape)[..., None]
        lit = cv2.GaussianBlur(pixels, (0, 0), 0.9) * 0.85 + 10 + shine + noise
        pixels = np.clip(lit, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 91))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
    return pixels, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("aul_dir", type=Path)
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    names = sorted(path.stem for path in (arguments.aul_dir / "polygons").glob("*.json"))
    frames = [
        compose(name, *screens.read_outlined(arguments.aul_dir, name)).frame for name in names[::12]
    ]
    frames += [frame for _, frame in no_sectors(8)]
    cv2.imwrite(str(arguments.sheet), screens.sheet(frames, 7)[..., ::-1])


if __name__ == "__main__":
    main()
