"""Full-screen captures of many consoles, composed from the outlined set, to score a sector finder.

Question: is the sector found on real screens, with all that a console draws around it? The finder
is tuned on other layouts; these were written by an author who had not seen it, and are scored once.
Command: python benchmarks/screens_second.py ../shared/data/aul --output DIR   (writes 140 screens)

Each screen is one picture of the outlined set, scaled and placed as one family of consoles does,
with that family's header, menus, grey scale, rulers, thumbnails and text. Names, hospitals and
numbers are invented. The truth is the outline of the set, moved and scaled with the picture, and
clipped where the image area of the console cuts the sector.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from screen_canvas import Colour, Fan, Screen

_HOSPITAL = ("City Hospital", "ST. ANNA KLINIK", "Univ. Hosp. Radiology", "Gastro Outpatient 2",
             "ECHO LAB", "Hosp. Geral - Imagem", "2nd Dept. of Medicine")  # fmt: skip
_EXAM = ("Abdomen", "ABD Gen", "Abd Pen", "Liver", "Adult Abd", "Abdominal")
_PROBE = ("C5-1", "C1-5-D", "6C1HD", "SC6-1", "CA1-7A", "PVI-475BX", "3C5A", "AC2541", "C251")


# -- One function per family of consoles: size, background, and what stands where. ---------------


def _general_blue(s: Screen) -> None:
    """Black, name and logo in the header, stored frames in a column on the left."""
    w, h, u = s.width, s.height, s.unit
    s.fade((0, 0, w, 46 * u), (58, 78, 112), (24, 34, 54))
    s.text(14 * u, 6 * u, "GE", 24, (235, 240, 250), bold=True)
    s.text(70 * u, 6 * u, s.any(_HOSPITAL), 13)
    s.text(70 * u, 24 * u, s.patient(), 13, (240, 240, 190))
    s.text(w - 12 * u, 6 * u, s.output(), 13, anchor="ra")
    s.text(w - 12 * u, 24 * u, f"{s.any(_PROBE)}   {s.clock()}", 12, anchor="ra")
    for row in range(int(s.rng.integers(2, 7))):
        top = (70 + row * 92) * u
        s.thumbnail((8 * u, top, 108 * u, top + 76 * u))
    fan = s.place((150 * u, 66 * u, w - 150 * u, h - 60 * u), cut=0.3)
    s.lines(w - 78 * u, 300 * u, s.settings(), 12, (150, 220, 230))
    s.grey_bar(w - 50 * u, 80 * u, 250 * u)
    s.ruler(w - 110 * u, fan, "line")
    s.marker(fan, "GE", (90, 170, 250))
    s.fade((0, h - 34 * u, w, h), (30, 40, 60), (60, 76, 104))
    s.text(14 * u, h - 26 * u, s.any(("Trackball: Scroll", "Freeze", "Cine 214/214")), 13)
    if s.chance(0.4):
        s.calipers(fan, 150 * u, h - 60 * u, (250, 240, 90))


def _cardiac(s: Screen) -> None:
    """Black with an ECG below, grey scale and settings on the left, no header bar."""
    w, h, u = s.width, s.height, s.unit
    s.text(16 * u, 10 * u, s.patient(), 14, (230, 230, 230))
    s.text(16 * u, 30 * u, s.clock(), 12, (170, 170, 170))
    s.text(w / 2, 10 * u, s.any(_HOSPITAL), 14, (230, 230, 230), "ma")
    s.text(w - 14 * u, 10 * u, s.output(), 13, (190, 210, 190), "ra")
    fan = s.place((120 * u, 52 * u, w - 90 * u, h - 120 * u), cut=0.15)
    s.grey_bar(20 * u, 90 * u, 330 * u, 18, (140, 140, 140))
    s.lines(20 * u, 350 * u, s.settings(), 13, (120, 200, 120))
    s.ruler(w - 70 * u, fan, "numbers", (180, 220, 180))
    s.marker(fan, "V", (80, 200, 90))
    s.heart_trace((110 * u, h - 100 * u, w - 110 * u, h - 40 * u), (90, 220, 90))
    s.text(w - 16 * u, h - 40 * u, f"{s.rng.integers(52, 110)}\nHR", 16, (90, 220, 90), "rd")
    s.text(16 * u, h - 24 * u, f"{s.any(_PROBE)}   {s.any(_EXAM)}", 12)


def _premium_grey(s: Screen) -> None:
    """A light header across the whole top, settings left, grey scale right."""
    w, h, u = s.width, s.height, s.unit
    light = int(s.rng.integers(150, 225))
    s.fade((0, 0, w, 52 * u), (light, light, light + 8), (light - 50, light - 48, light - 40))
    s.text(16 * u, 8 * u, "PHILIPS", 20, (10, 50, 130), bold=True)
    s.text(170 * u, 7 * u, s.patient(), 14, (10, 10, 10))
    s.text(170 * u, 27 * u, s.any(_HOSPITAL), 12, (40, 40, 40))
    s.text(w - 200 * u, 7 * u, s.output(), 13, (10, 10, 10))
    s.text(w - 200 * u, 27 * u, s.clock(), 12, (10, 10, 10))
    back = (int(s.rng.integers(0, 12)),) * 3
    fan = s.place((110 * u, 54 * u, w - 60 * u, h - 40 * u), cut=0.4, back=back)
    s.text(12 * u, 70 * u, s.any(_EXAM), 13, (240, 190, 90))
    s.lines(12 * u, 92 * u, [s.any(_PROBE), *s.settings()], 12)
    s.grey_bar(w - 34 * u, 84 * u, 210 * u, 12)
    s.text(w - 30 * u, 66 * u, "M3", 12)
    s.ruler(w - 48 * u, fan, "dots")
    s.marker(fan, "P", (240, 240, 240))
    s.text(w - 60 * u, h - 34 * u, f"{s.rng.integers(1, 400)}/400", 12, anchor="ra")


def _wide_strip(s: Screen) -> None:
    """Wide and dark: icons in a rail on the left, a strip of stored frames below."""
    w, h, u = s.width, s.height, s.unit
    s.box((0, 0, 74 * u, h), (38, 40, 46))
    for row in range(9):
        top = (84 + row * 62) * u
        s.box((16 * u, top, 58 * u, top + 42 * u), (58, 62, 70), (92, 96, 104))
        s.draw.ellipse((27 * u, top + 10 * u, 47 * u, top + 30 * u), None, (190, 196, 204), 2)
    s.box((74 * u, 0, w, 40 * u), (50, 54, 62))
    s.text(90 * u, 11 * u, s.patient(), 14, (240, 240, 240))
    s.text(w / 2 + 90 * u, 11 * u, f"{s.any(_EXAM)}  {s.any(_PROBE)}", 14)
    s.text(w - 14 * u, 11 * u, f"{s.output()}   {s.clock()}", 13, anchor="ra")
    strip = h - 104 * u
    s.box((74 * u, strip, w, h), (26, 28, 32))
    for column in range(int(s.rng.integers(3, 9))):
        left = (88 + column * 128) * u
        s.thumbnail((left, strip + 10 * u, left + 116 * u, strip + 94 * u))
    fan = s.place((220 * u, 50 * u, w - 240 * u, strip - 6 * u), cut=0.25)
    s.lines(90 * u, 60 * u, s.settings(), 13, (140, 190, 250))
    s.grey_bar(w - 60 * u, 70 * u, 230 * u, 16, (110, 110, 110), 5)
    s.ruler(fan.right + 24 * u, fan, "axis")
    s.marker(fan, "", (250, 160, 60))


def _right_panel(s: Screen) -> None:
    """A grey panel with the settings down the right side, header and footer in the same grey."""
    w, h, u = s.width, s.height, s.unit
    tone = int(s.rng.integers(60, 190))
    ink = (15, 15, 15) if tone > 110 else (230, 230, 230)
    face = (tone, tone, tone)
    s.box((0, 0, w, h), face)
    s.text(14 * u, 5 * u, "SIEMENS", 16, ink, bold=True)
    s.text(160 * u, 7 * u, s.patient(), 13, ink)
    s.text(w - 12 * u, 7 * u, s.clock(), 13, ink, "ra")
    area = (8 * u, 30 * u, w - 190 * u, h - 44 * u)
    s.fade((w - 182 * u, 30 * u, w - 8 * u, h - 44 * u), face, (tone // 2,) * 3)
    fan = s.place(area, cut=0.35, fill=(0.75, 0.93), align=0.3)
    s.box(area, None, (tone // 2,) * 3)
    s.text(w - 172 * u, 40 * u, s.any(_EXAM), 16, ink, bold=True)
    s.lines(w - 172 * u, 66 * u, [s.any(_PROBE), *s.settings(), s.output()], 13, ink)
    for row in range(3):
        top = h - (300 - row * 84) * u
        s.thumbnail((w - 165 * u, top, w - 55 * u, top + 74 * u))
    s.grey_bar(20 * u, 60 * u, 200 * u, 12)
    s.ruler(w - 204 * u, fan, "line", (240, 200, 90))
    s.marker(fan, "S", (250, 150, 40))
    for key in range(6):
        left = (10 + key * 130) * u
        words = s.any(("Depth", "Focus", "DTCE", "Annotate", "Review", "Print", "Dual"))
        s.button((left, h - 36 * u, left + 120 * u, h - 8 * u), words, face, ink)


def _left_text(s: Screen) -> None:
    """Japanese carts: dark navy bar with the hospital, settings as a column at the left edge."""
    w, h, u = s.width, s.height, s.unit
    s.fade((0, 0, w, 30 * u), (20, 40, 110), (60, 100, 190), along=1)
    s.text(10 * u, 7 * u, s.any(("TOSHIBA", "Canon", "APLIO i700")), 14, (255, 255, 255), bold=True)
    s.text(190 * u, 8 * u, s.any(_HOSPITAL), 12, (230, 240, 255))
    s.text(w - 12 * u, 8 * u, s.clock(), 12, (230, 240, 255), "ra")
    s.text(10 * u, 36 * u, s.patient(), 13, (250, 250, 250))
    s.text(w - 12 * u, 36 * u, s.output(), 12, (250, 250, 250), "ra")
    fan = s.place((90 * u, 58 * u, w - 66 * u, h - 30 * u), cut=0.3, fill=(0.85, 1.0))
    s.lines(8 * u, 80 * u, [s.any(_PROBE), "diffT5.0", *s.settings()], 12, (235, 235, 235))
    s.grey_bar(w - 30 * u, 90 * u, 260 * u, 16, (200, 200, 200))
    s.ruler(w - 40 * u, fan, "line")
    s.gain_curve(w - 62 * u, fan)
    s.marker(fan, "", (60, 160, 240))
    s.body_mark(60 * u, h - 110 * u, (240, 240, 240))
    if s.chance(0.5):
        s.comment(fan, (240, 240, 240))


def _soft_keys(s: Screen) -> None:
    """Tall, with light soft keys below and stored frames on the right."""
    w, h, u = s.width, s.height, s.unit
    s.fade((0, 0, w, 58 * u), (70, 70, 74), (36, 36, 40))
    s.text(18 * u, 6 * u, "SAMSUNG", 15, (240, 240, 240), bold=True)
    s.text(18 * u, 30 * u, s.patient(), 14, (250, 230, 180))
    s.text(w / 2, 8 * u, s.any(_HOSPITAL), 13, anchor="ma")
    s.text(w - 20 * u, 6 * u, s.output(), 13, anchor="ra")
    s.text(w - 20 * u, 30 * u, s.clock(), 13, anchor="ra")
    keys = h - 86 * u
    s.box((0, keys, w, h), (196, 200, 206))
    for key in range(14):
        left, top = (10 + key % 7 * 134) * u, keys + (6 + key // 7 * 40) * u
        words = s.any(("Harmonic", "Gray Map", "Trapezoid", "Quick Scan", "Sono View", "Power",
                       "Reject", "Frame Avg", "ClearVision"))  # fmt: skip
        s.button((left, top, left + 128 * u, top + 34 * u), words, (222, 225, 230), (30, 30, 30))
    for row in range(int(s.rng.integers(1, 6))):
        top = (70 + row * 96) * u
        s.thumbnail((w - 116 * u, top, w - 8 * u, top + 84 * u), (250, 170, 40))
    fan = s.place((40 * u, 70 * u, w - 180 * u, keys - 20 * u), cut=0.2)
    s.lines(16 * u, 76 * u, [f"{s.any(_PROBE)} / {s.any(_EXAM)}", *s.settings()], 13)
    s.grey_bar(w - 150 * u, 80 * u, 250 * u, 12)
    s.ruler(w - 160 * u, fan, "numbers")
    s.marker(fan, "S", (80, 140, 250))


def _pale_menu(s: Screen) -> None:
    """A pale menu down the left and a pale header: the picture stands in a black window."""
    w, h, u = s.width, s.height, s.unit
    pale = (206, 216, 228) if s.chance(0.5) else (228, 228, 224)
    s.box((0, 0, w, h), pale)
    s.text(16 * u, 8 * u, "mindray", 19, (180, 20, 40), bold=True)
    s.text(180 * u, 5 * u, s.any(_HOSPITAL), 13, (20, 30, 60))
    s.text(180 * u, 23 * u, s.patient(), 12, (20, 30, 60))
    s.text(w - 14 * u, 5 * u, s.output(), 12, (20, 30, 60), "ra")
    s.text(w - 14 * u, 23 * u, s.clock(), 12, (20, 30, 60), "ra")
    menu = 152 * u
    s.fade((0, 44 * u, menu, 70 * u), (70, 110, 170), (40, 70, 120))
    s.text(menu / 2, 57 * u, "B Mode", 14, (255, 255, 255), "mm")
    for row in range(15):
        top = (78 + row * 38) * u
        words = s.any(("iClear 3", "Gray Map", "iBeam On", "TSI General", "Rotation 0", "Smooth 2",
                       "Persistence", "FOV 100%", "L/R Flip", "Tint Map", "LGC"))  # fmt: skip
        s.button((6 * u, top, menu - 6 * u, top + 32 * u), words, pale, (20, 20, 40))
    s.box((menu, 44 * u, w - 4 * u, h - 40 * u), (0, 0, 0))
    fan = s.place((menu + 30 * u, 60 * u, w - 70 * u, h - 50 * u), cut=0.2, fill=(0.8, 1.0))
    s.lines(menu + 10 * u, 70 * u, [s.any(_PROBE), *s.settings()], 12, (230, 220, 120))
    s.grey_bar(w - 30 * u, 70 * u, 200 * u, 12)
    s.ruler(w - 46 * u, fan, "line", (230, 220, 120))
    s.marker(fan, "M", (220, 60, 70))
    s.text(
        14 * u, h - 29 * u, s.any(("Freeze", "Live", "<Set> Menu  <Update> Next")), 13, (20, 30, 60)
    )


def _window_frame(s: Screen) -> None:
    """A program window: title bar, tool bar of light grey, status bar, frame around the picture."""
    w, h, u = s.width, s.height, s.unit
    s.box((0, 0, w, h), (212, 208, 200))
    s.fade((0, 0, w, 26 * u), (10, 36, 106), (166, 202, 240), along=1)
    s.text(8 * u, 5 * u, f"MyLab - [{s.patient()}]", 13, (255, 255, 255), bold=True)
    for key in range(3):
        left = w - (76 - key * 24) * u
        s.button((left, 4 * u, left + 20 * u, 22 * u), "_ox"[key], (212, 208, 200), (0, 0, 0))
    s.text(8 * u, 31 * u, "File   Edit   View   Measure   Archive   Help", 12, (0, 0, 0))
    for key in range(18):
        left = (8 + key * 34) * u
        s.button(
            (left, 50 * u, left + 28 * u, 76 * u),
            s.any(tuple("+-#*<>=A")),
            (212, 208, 200),
            (40, 40, 90),
        )
    side = s.rng.choice([0, 150]) * u
    area = (10 * u, 84 * u, w - 10 * u - side, h - 30 * u)
    fan = s.place(area, cut=0.25, fill=(0.7, 0.95), align=0.4)
    s.box(area, None, (128, 128, 128))
    if side:
        s.lines(w - 150 * u, 92 * u, [s.any(_EXAM), s.any(_PROBE), *s.settings()], 13, (0, 0, 0))
    s.lines(area[0] + 8 * u, area[1] + 6 * u, [s.output(), s.any(_HOSPITAL)], 12, (120, 220, 120))
    s.grey_bar(area[2] - 24 * u, area[1] + 30 * u, area[1] + 200 * u, 10, ticks=6)
    s.ruler(area[2] - 34 * u, fan, "dots", (120, 220, 120))
    s.text(
        10 * u,
        h - 23 * u,
        f"Ready    Zoom {s.rng.integers(60, 140)}%    {s.clock()}",
        12,
        (0, 0, 0),
    )
    if s.chance(0.4):
        s.calipers(fan, area[0] + 8 * u, area[3] - 24 * u, (120, 250, 120))


def _old_video(s: Screen) -> None:
    """A grabbed video signal: split black margins, monospaced text, soft, noise in the black."""
    w, h, u = s.width, s.height, s.unit
    margin = s.rng.integers(8, 40) * u
    s.box((margin, 6 * u, w - margin * 0.4, 44 * u), (110, 116, 122))
    s.text(margin + 8 * u, 14 * u, f"{s.patient()[:24]}", 22, (245, 245, 245))
    s.text(w - margin - 6 * u, 14 * u, s.clock(), 22, (245, 245, 245), "ra")
    fan = s.place((margin + 70 * u, 60 * u, w - margin - 50 * u, h - 70 * u), cut=0.2)
    s.lines(margin + 6 * u, 70 * u, s.settings()[:7], 20, (225, 225, 225))
    s.grey_bar(margin + 12 * u, 330 * u, 580 * u, 22)
    s.ruler(w - margin - 26 * u, fan, "dots")
    s.text(margin + 8 * u, h - 50 * u, f"{s.any(_HOSPITAL)}  {s.output()}", 20)
    s.body_mark(w - margin - 60 * u, h - 120 * u, (240, 240, 240))
    if s.chance(0.5):
        s.comment(fan, (245, 245, 245))
    pixels = cv2.GaussianBlur(np.array(s.image), None, 0.7).astype(float)
    pixels += s.rng.normal(2, 2, (h, w, 1))
    s.image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _shear_wave(s: Screen) -> None:
    """Very dark blue, rounded cards with settings left, a colour bar beside the grey scale."""
    w, h, u = s.width, s.height, s.unit
    s.fade((0, 0, w, h), (8, 14, 30), (18, 30, 58))
    s.draw.rounded_rectangle((8 * u, 8 * u, w - 8 * u, 52 * u), 8 * u, (30, 46, 82))
    s.text(22 * u, 20 * u, s.patient(), 15, (240, 245, 255))
    s.text(w - 22 * u, 20 * u, f"{s.output()}    {s.clock()}", 13, (200, 215, 240), "ra")
    for card in range(3):
        top = (64 + card * 190) * u
        s.draw.rounded_rectangle((8 * u, top, 150 * u, top + 176 * u), 8 * u, (26, 40, 72))
        s.text(
            18 * u, top + 8 * u, ("B-mode", s.any(_PROBE), s.any(_EXAM))[card], 14, (120, 190, 250)
        )
        s.lines(18 * u, top + 34 * u, s.settings()[:7], 12, (215, 225, 240))
    back = (int(s.rng.integers(0, 10)),) * 3
    area = (160 * u, 62 * u, w - 70 * u, h - 64 * u)
    fan = s.place(area, cut=0.3, fill=(0.8, 0.95), back=back)
    s.grey_bar(w - 58 * u, 80 * u, 240 * u, 14)
    s.fade((w - 58 * u, 270 * u, w - 44 * u, 350 * u), (220, 30, 20), (240, 220, 40))
    s.fade((w - 58 * u, 350 * u, w - 44 * u, 430 * u), (60, 200, 120), (20, 40, 200))
    s.text(w - 62 * u, 434 * u, "kPa", 12)
    s.ruler(w - 76 * u, fan, "axis", (150, 180, 220))
    s.marker(fan, "", (230, 80, 160))
    s.text(w / 2, h - 40 * u, s.any(_HOSPITAL), 13, (150, 170, 200), "ma")


def _handheld(s: Screen) -> None:
    """A phone held upright, light or dark: app bar above, the sector across, round keys below."""
    w, h, u = s.width, s.height, s.unit
    bright = s.chance(0.5)
    bar, ink = ((242, 244, 247), (20, 24, 30)) if bright else ((24, 26, 30), (235, 238, 242))
    s.box((0, 0, w, 120 * u), bar)
    s.text(30 * u, 12 * u, s.clock()[-8:-3], 24, ink, bold=True)
    for mark in range(3):
        s.box((w - (140 - mark * 42) * u, 18 * u, w - (112 - mark * 42) * u, 34 * u), ink)
    s.text(w / 2, 78 * u, f"{s.any(_EXAM)}", 30, ink, "mm", bold=True)
    s.text(30 * u, 66 * u, "<", 30, ink)
    bottom = h - s.rng.integers(250, 330) * u
    s.place((0, 124 * u, w, bottom), cut=0.35, fill=(0.8, 0.98), align=0.2)
    s.lines(24 * u, 140 * u, [s.output(), f"{s.rng.integers(8, 22)} cm"], 22, (220, 220, 220))
    fan_top = float(s.outline[:, 1].min())
    fan = Fan(0, fan_top, w, float(s.outline[:, 1].max()), w / 2)
    s.ruler(w - 20 * u, fan, s.any(("line", "numbers", "dots")))
    s.text(w / 2 + 160 * u, fan_top, "B", 28, (70, 160, 240))
    s.box((0, bottom, w, h), bar)
    for key in range(4):
        x, y, half = (0.14 + key * 0.24) * w, bottom + 80 * u, 44 * u
        face = (230, 234, 240) if bright else (52, 56, 64)
        s.draw.ellipse((x - half, y - half, x + half, y + half), face, (130, 136, 144), 2)
        s.text(x, y, ("B", "CF", "M", "II")[key], 28, ink, "mm")
        s.text(x, y + 66 * u, ("Gain", "Depth", "Preset", "Freeze")[key], 22, ink, "ma")
    s.text(w / 2, h - 34 * u, s.patient(), 22, ink, "ma")


def _viewer(s: Screen) -> None:
    """A viewer of an archive: tool bar, series on the left, text in the four corners."""
    w, h, u = s.width, s.height, s.unit
    light = s.chance(0.5)
    face, ink = ((226, 228, 232), (30, 30, 36)) if light else ((44, 46, 50), (220, 220, 224))
    s.box((0, 0, w, 56 * u), face)
    for key in range(22):
        left = (12 + key * 46) * u
        s.box((left, 10 * u, left + 36 * u, 46 * u), None, (140, 144, 150))
        s.draw.line([(left + 8 * u, 38 * u), (left + 28 * u, 18 * u)], ink, 2)
    s.box((0, 56 * u, 180 * u, h), face)
    for row in range(int(s.rng.integers(2, 6))):
        top = (72 + row * 134) * u
        s.thumbnail(
            (16 * u, top, 164 * u, top + 108 * u), (240, 150, 30) if row == 0 else (120, 120, 120)
        )
        s.text(90 * u, top + 112 * u, f"US {row + 1}/{s.rng.integers(5, 40)}", 11, ink, "ma")
    area = (186 * u, 62 * u, w - 24 * u, h - 6 * u)
    s.box(area, (0, 0, 0), (240, 150, 30))
    inner = (300 * u, 64 * u, w - 150 * u, h - 8 * u)
    fan = s.place(inner, cut=0.2, fill=(0.75, 0.97), align=0.4)
    s.lines(area[0] + 10 * u, area[1] + 8 * u, [s.patient(), s.any(_HOSPITAL), s.any(_EXAM)], 13)
    s.lines(
        area[2] - 10 * u, area[1] + 8 * u, [s.clock(), s.any(_PROBE), s.output()], 13, anchor="ra"
    )
    s.text(
        area[0] + 10 * u, area[3] - 26 * u, f"W: 256 L: 127  Zoom {s.rng.uniform(0.8, 2):.2f}", 13
    )
    s.ruler(area[2] - 20 * u, fan, "line")
    s.box((w - 18 * u, 62 * u, w - 4 * u, h - 6 * u), face)
    s.box((w - 18 * u, 200 * u, w - 4 * u, 330 * u), (150, 154, 160))


def _two_bars(s: Screen) -> None:
    """Portable carts: a saturated bar above and below, measures at the left."""
    w, h, u = s.width, s.height, s.unit
    tint = ((0, 96, 120), (90, 40, 100), (30, 90, 50), (140, 140, 150))[int(s.rng.integers(4))]
    pale = tuple(min(255, c + 110) for c in tint)
    s.fade((0, 0, w, 40 * u), pale, tint)
    s.fade((0, h - 40 * u, w, h), tint, pale)
    s.text(12 * u, 12 * u, s.patient(), 14, (255, 255, 255))
    s.text(w - 12 * u, 12 * u, s.clock(), 14, (255, 255, 255), "ra")
    words = "   |   ".join(
        s.any(("Depth", "Gain", "Focus", "THI", "Dual", "Store")) for _ in range(5)
    )
    s.text(w / 2, h - 20 * u, words, 14, (255, 255, 255), "mm")
    back = (int(s.rng.integers(0, 16)),) * 3
    area = (0, 41 * u, w, h - 41 * u)
    fan = s.place(area, cut=0.15, fill=(0.78, 0.97), align=0.1, back=back)
    s.grey_bar(16 * u, 70 * u, 270 * u, 20, (160, 160, 160), 8)
    s.lines(16 * u, 290 * u, [s.any(_PROBE), *s.settings(), s.output()], 13, (230, 230, 160))
    s.ruler(w - 30 * u, fan, "numbers")
    s.gain_curve(w - 90 * u, fan, (90, 150, 90))
    s.marker(fan, "E", (240, 240, 60))
    if s.chance(0.3):
        s.heart_trace((120 * u, h - 92 * u, w - 60 * u, h - 48 * u), (80, 230, 230))


_Layout = tuple[Callable[[Screen], None], tuple[tuple[int, int], ...], Colour, bool]
_LAYOUTS: tuple[_Layout, ...] = (
    (_general_blue, ((1024, 768), (1280, 1024)), (0, 0, 0), False),
    (_cardiac, ((1024, 768), (800, 600)), (0, 0, 0), False),
    (_premium_grey, ((1024, 768), (1280, 960)), (8, 8, 8), False),
    (_wide_strip, ((1280, 720), (1920, 1080)), (0, 0, 0), False),
    (_right_panel, ((1024, 768), (1280, 1024)), (0, 0, 0), False),
    (_left_text, ((1024, 768), (960, 720)), (0, 0, 0), False),
    (_soft_keys, ((1280, 1024), (1024, 768)), (4, 4, 6), False),
    (_pale_menu, ((1024, 768), (1280, 1024)), (0, 0, 0), False),
    (_window_frame, ((800, 600), (1024, 768)), (0, 0, 0), False),
    (_old_video, ((720, 576), (768, 576), (640, 480)), (0, 0, 0), True),
    (_shear_wave, ((1280, 1024), (1440, 1080)), (0, 0, 0), False),
    (_handheld, ((750, 1334), (1080, 1920), (720, 1280)), (0, 0, 0), False),
    (_viewer, ((1920, 1080), (1280, 1024)), (0, 0, 0), False),
    (_two_bars, ((800, 600), (1024, 768), (1280, 800)), (6, 6, 6), True),
)


def second_screens(
    folder: Path, seed: int, num: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, str]]:
    """Compose screens, the layouts in turn.

    Args:
        folder: the outlined set, with `images/*.jpg` and `polygons/*.json`.
        seed: of all that is drawn by chance; the same seed gives the same screens.
        num: how many.

    Yields:
        Name, frame `(height, width, 3)` uint8 RGB as decoded (half of them went through JPEG),
        true outline of the sector `(points, 2)`, x and y in px of the screen, and the layout.

    Raises:
        FileNotFoundError: the folder holds no pictures.
    """
    pictures = sorted((Path(folder) / "images").glob("*.jpg"))
    if not pictures:
        raise FileNotFoundError(
            f"expected images/*.jpg of the outlined set in {folder}, found none"
        )
    for index in range(num):
        rng = np.random.default_rng([seed, index])
        compose, sizes, back, mono = _LAYOUTS[index % len(_LAYOUTS)]
        size = sizes[int(rng.integers(len(sizes)))]
        screen = Screen(size, back, rng, pictures, mono)
        compose(screen)
        image = screen.image
        if rng.random() < 0.5:
            stored = io.BytesIO()
            image.save(stored, "JPEG", quality=int(rng.integers(70, 96)))
            image = Image.open(stored)
        layout = compose.__name__.strip("_")
        yield f"{index:04d}_{layout}", np.array(image), screen.outline, layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the outlined set (images/, polygons/)")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for screens and outlines"
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--num", type=int, default=140)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, frame, outline, layout in second_screens(
        arguments.folder, arguments.seed, arguments.num
    ):
        # As PNG: what JPEG loses is lost already, and nothing more is.
        Image.fromarray(frame).save(arguments.output / f"{name}.png")
        truth = {"outline": outline.round(1).tolist(), "layout": layout}
        (arguments.output / f"{name}.json").write_text(json.dumps(truth))


if __name__ == "__main__":
    main()
