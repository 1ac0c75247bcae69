"""Tell the ultrasound picture from the rest of a full screen, on a small copy of the frame.

Echo changes from pixel to pixel both along rows and along columns. Bars, buttons, frames, grey
scales and their shading change along one of them at most, and text and thumbnails are small. So the
largest area that changes both ways is the core of the picture, whatever the page looks like.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

# Grey levels between neighbours, along rows and along columns, that make a texture.
_TEXTURE_STEP = 2
# The core of a picture is at least this proportion of the screen.
_MIN_CORE_SHARE = 0.02
# How far from the core the surround is looked at, px.
_GAP_PX, _SURROUND_PX = 3, 15
# Noise of a video grab raises the threshold by so many levels at most.
_MAX_NOISE = 4
# A cut-out shows at most so much of the frame bright or textured apart from its core, and a dark
# rim; measured: 0.026 and 0.004 on every biopsy frame, 0.034 or more on every composed screen but
# those whose rim is light.
_MAX_BRIGHT_APART, _MAX_TEXTURE_APART = 0.026, 0.005
_MAX_RIM = 60
_MIN_BLOCK_PX = 40
# A line of the page is a step of so many levels, all the same way, over so much of a row beside the
# core, which has to be so much of the row; beyond it lies at most so much of the core.
_LINE_STEP, _LINE_SHARE, _MIN_LINE, _MAX_CORE_BEYOND, _MAX_ROUNDS = 3, 0.7, 0.2, 0.05, 4
# The ground is read from a band so wide around the core; its shade is fitted closer and closer.
_GROUND_PX, _MIN_GROUND_PX, _GROUND_RIDGE = 25, 100, 1e-3
_GROUND_SCALES = (32.0, 16.0, 8.0, 4.0, 3.0)
# What hangs on the core by less than this is another picture, or text.
_BRIDGE_PX = 17
# The largest textured area beside the fan over the fan: of one picture at most 0.11 (632; 843 of
# 844 full screens), of two 0.29 to 1 (36 of 38 full screens).
_MAX_TEXTURE_BESIDE = 0.2
# How far around a fan the ground tells the noise of the screen, and of how many levels at most.
_RING_PX, _NOISE_BESIDE = 21, 2

# Less than this proportion of the frame is no sector.
MIN_SECTOR_FRACTION = 0.03
# An echo is this much brighter than the surround, grey levels.
_ECHO_STEP = 2.5
# A halo, bar or button is at least this much brighter than the surround.
_FLAT_STEP = 12
_HALO_WIDTH = 3.0
# How much of the rim is within 3 levels of the halo's grey, and of the inside darker than it; on
# the outlined images: 0.22 to 0.93 and 0 with a halo, 0.08 to 0.35 and 0.02 to 0.8 without.
_MIN_HALO_SHARE = 0.22
_MAX_DARKER_SHARE = 0.02
# Speckle changes by more than this between frames of a clip, coding noise by less.
_MOTION_STEP = 3
_MIN_SOLID_PX = 60


def moving_area(small: list[np.ndarray]) -> np.ndarray | None:
    """Where the frames of a clip differ.

    Args:
        small: `(height, width)` uint8 each, small copies of the frames.

    Returns:
        `(height, width)` uint8, 1 where they differ by more than coding noise; None for a single
        frame.
    """
    if len(small) == 1:
        return None
    change = cv2.subtract(np.max(small, axis=0), np.min(small, axis=0))
    moving = (cv2.blur(change, (5, 5)) >= _MOTION_STEP).astype(np.uint8)
    return cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))


def bright_areas(small: np.ndarray, moving: np.ndarray | None = None) -> list[np.ndarray]:
    """Pixels brighter than the surround, thin marks and text removed.

    Args:
        small: `(height, width)` uint8, a frame or the median of a clip, about 256 px wide.
        moving: `(height, width)` uint8 0 or 1, as `moving_area` returns it, or None.

    Returns:
        One reading, `(height, width)` uint8 0 or 1, or two where the frame seems to have a halo:
        first without the halo, then with it.

    Raises:
        ValueError: if nothing larger than marks and text stands out.
    """
    edge = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    floor = float(np.median(edge))
    shown = (small > floor + _ECHO_STEP).astype(np.uint8)
    if share(shown) < MIN_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the frame is blank or nearly so "
            f"({100 * share(shown):.1f} % of it is brighter than its surround)"
        )
    readings = [shown]
    # A still clip (the same frame again and again) says nothing about what is echo.
    if moving is not None and (moving & shown).sum() > 0.5 * shown.sum():
        readings = [shown & moving]
    else:
        halo = _halo_level(small, shown, floor)
        if halo is not None:
            readings = [(small > halo + _HALO_WIDTH).astype(np.uint8), shown]
    blocks = _solid_blocks(small, floor)
    readings = [cleaned(reading & ~blocks) for reading in readings]
    readings = [reading for reading in readings if share(reading) >= MIN_SECTOR_FRACTION]
    if not readings:
        raise ValueError("no sector: only thin marks, text or noise stand out from the surround")
    return readings


def share(mask: np.ndarray) -> float:
    """Proportion of a mask's px that are not 0; a mean takes ten times as long."""
    return float(cv2.countNonZero(mask.view(np.uint8)) / mask.size)


def cleaned(bright: np.ndarray) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(cv2.medianBlur(bright, 3), cv2.MORPH_OPEN, kernel)
    _remove_bars(opened)
    return opened


def _solid_blocks(small: np.ndarray, floor: float) -> np.ndarray:
    """Logos and buttons: areas of one grey level, which no echo has; uint8 0 or 1."""
    window = np.ones((5, 5), np.uint8)
    spread = cv2.subtract(cv2.dilate(small, window), cv2.erode(small, window))
    solid = ((small >= int(floor) + _FLAT_STEP) & (small <= 250) & (spread <= 1)).astype(np.uint8)
    blocks = np.zeros_like(small)
    if cv2.countNonZero(solid) < _MIN_SOLID_PX:  # labelling is the dearest step of all
        return blocks
    _, _, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    for left, top, width, height, area in stats[1:].tolist():
        if area >= _MIN_SOLID_PX and area > 0.7 * width * height:
            # The test window and the resampling each blur the block's rim.
            blocks[max(0, top - 4) : top + height + 4, max(0, left - 4) : left + width + 4] = 1
    return blocks


def _remove_bars(bright: np.ndarray) -> None:
    """Clear slim rectangles that stand apart, as a grey scale does; in place."""
    # Contours take a tenth of the time of labels.
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        left, top, width, height = cv2.boundingRect(contour)
        if max(width, height) <= 4 * min(width, height):
            continue
        drawn = np.zeros((height, width), np.uint8)
        cv2.drawContours(drawn, [contour - (left, top)], 0, 1, cv2.FILLED)
        part = bright[top : top + height, left : left + width]
        if cv2.countNonZero(part & drawn) > 0.75 * width * height:
            part[drawn > 0] = 0


def _halo_level(small: np.ndarray, shown: np.ndarray, floor: float) -> float | None:
    """Grey level of a flat halo around the sector, or None.

    Frames that were cut out of a screenshot keep a rim of the screen's own dark grey. Nothing in
    such a frame is darker than that grey, which tells it from a sector of even brightness.
    """
    cross = np.ones((3, 3), np.uint8)
    solid = cv2.morphologyEx(shown, cv2.MORPH_CLOSE, cross, iterations=2)
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, cross, iterations=3)
    rim_outside = cv2.erode(solid, cross)
    rim_inside = cv2.erode(rim_outside, cross, iterations=2)
    rim = cv2.calcHist([small], [0], rim_outside - rim_inside, [256], [0, 256]).ravel()
    inner = cv2.calcHist([small], [0], rim_inside, [256], [0, 256]).ravel()
    if rim.sum() == 0 or inner.sum() == 0:
        return None
    close = np.convolve(rim, np.ones(7), mode="same") / rim.sum()
    close[: int(floor) + _FLAT_STEP] = 0
    peak = int(close.argmax())
    darker = max(
        rim[: peak - 3].sum() / rim.sum() / 5,
        inner[: peak - 3].sum() / inner.sum(),
    )
    is_halo = close[peak] >= _MIN_HALO_SHARE and darker <= _MAX_DARKER_SHARE
    return float(peak) if is_halo else None


@dataclass(frozen=True)
class Picture:
    """The core of the picture on a screen and what surrounds it; masks `(height, width)` uint8.

    Attributes:
        small: the frame, about 256 px wide.
        core: 1 on the largest textured area.
        apart: 1 on other textured areas: text, thumbnails, parts of the picture behind shadows.
    """

    small: np.ndarray
    core: np.ndarray
    apart: np.ndarray

    @cached_property
    def surround(self) -> tuple[int, int]:
        """The commonest grey level around the core, and how far its noise goes."""
        wide, close = _grown(self.core, 2 * _SURROUND_PX + 1), _grown(self.core, 2 * _GAP_PX + 1)
        counts = cv2.calcHist([self.small], [0], wide & ~close, [256], [0, 256]).ravel()
        if counts.sum() == 0:
            return 0, 0
        level = int(counts.argmax())
        lowest = int((counts.cumsum() >= 0.05 * counts.sum()).argmax())
        return level, min(_MAX_NOISE, max(0, level - lowest))

    def pane(self) -> tuple[int, int, int, int]:
        """First and last row, first and last column of the part of the page with the picture, px.

        Consoles lay their pages out in upright rectangles. Where one ends, the grey level changes
        along a straight line that goes on beside the picture.
        """
        beside = _grown(self.core, 7) == 0
        bounds = [0, self.small.shape[0], 0, self.small.shape[1]]
        for _ in range(_MAX_ROUNDS):
            before = list(bounds)
            for axis in (0, 1):
                part = (slice(*bounds[:2]), slice(*bounds[2:]))
                grey, free, core = (
                    np.moveaxis(one[part], axis, 0) for one in (self.small, beside, self.core)
                )
                first, last = _innermost_lines(grey.astype(np.int16), free, core)
                bounds[2 * axis + 1] = bounds[2 * axis] + last
                bounds[2 * axis] += first
            if bounds == before:
                break
        return bounds[0], bounds[1], bounds[2], bounds[3]

    def variants(self) -> Iterator["Picture"]:
        """The screen as it is, and other ways to see it, the likeliest first."""
        yield self
        yield self.flattened()
        parted = self.parted()
        yield parted
        yield parted.flattened()

    def flattened(self) -> "Picture":
        """The same screen as its difference from the ground that the picture stands on.

        On a shaded ground no one level tells echo from it, and on a grey one what is black within
        the picture is darker than the ground.
        """
        height, width = self.small.shape
        rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        terms = np.stack(
            [np.ones_like(rows), rows, columns, rows**2, rows * columns, columns**2], axis=-1
        )
        around = _grown(self.core, 2 * _GROUND_PX + 1)
        around &= ~_grown(self.core | self.apart, 2 * _GAP_PX + 1)
        around[1::2] = 0  # half the rows tell as much
        at, level = terms[around > 0], self.small[around > 0].astype(float)
        if len(level) < _MIN_GROUND_PX:
            return self
        off = level - np.median(level)
        for scale in _GROUND_SCALES:  # text, bars and the page beyond weigh less and less
            weighted = (at * (1 / (1 + (off / scale) ** 2) ** 2)[:, None]).T
            shade = np.linalg.solve(weighted @ at + _GROUND_RIDGE * np.eye(6), weighted @ level)
            off = level - at @ shade
        close = np.abs(off)[np.abs(off) < 2 * _MAX_NOISE]
        noise = min(_MAX_NOISE, np.percentile(close, 95)) if close.size else 0.0
        ground = np.clip(terms @ shade, level.min(), level.max())
        flat = np.maximum(np.abs(self.small - ground) - noise, 0).astype(np.uint8)
        # Where echo is as grey as the ground its texture shows.
        flat = cv2.max(flat, _step(self.small, 3))
        closed = np.asarray(cv2.morphologyEx(flat, cv2.MORPH_CLOSE, _square(5)), np.uint8)
        return Picture(closed, self.core, self.apart)

    def parted(self) -> "Picture":
        """The same screen with what only hangs on the core by a narrow bridge apart from it."""
        texture = self.core | self.apart
        narrower = _largest(_opened(texture, _BRIDGE_PX))
        return Picture(self.small, narrower, texture & ~narrower)

    def bright(self) -> np.ndarray:
        """1 where the screen is brighter than the surround of the picture."""
        return (self.small > sum(self.surround) + _ECHO_STEP).astype(np.uint8)

    def is_cut_out(self, fan_mask: np.ndarray | None = None) -> bool:
        """Whether the frame is nothing but the picture, some marks and a dark rim.

        Args:
            fan_mask: `(height, width)` bool, the picture; None takes its core for it.
        """
        rim = np.concatenate([self.small[0], self.small[-1], self.small[:, 0], self.small[:, -1]])
        level = float(np.median(rim))
        if level > _MAX_RIM:
            return False
        picture = self.core if fan_mask is None else fan_mask.view(np.uint8)
        far = _grown(picture, 15) == 0
        bright = (self.small > level + _FLAT_STEP) & far
        texture = (self.apart | self.core) > 0
        return bool(
            share(bright) <= _MAX_BRIGHT_APART and share(texture & far) <= _MAX_TEXTURE_APART
        )

    def is_alone(self) -> bool:
        """Whether there are next to no text, thumbnails and textured areas but the core."""
        return bool(share(self.apart) <= _MAX_TEXTURE_APART)

    def texture_share(self, fan_mask: np.ndarray) -> float:
        """Proportion of a fan `(height, width)` bool that is textured, 0 to 1."""
        return float((self.core | self.apart)[fan_mask].mean()) if fan_mask.any() else 0.0

    def has_rival(self) -> bool:
        """Whether another textured area is over a third as large as the core."""
        return share(_largest(self.apart)) > share(self.core) / 3

    def has_second(self, fan_mask: np.ndarray, is_sure: bool) -> bool:
        """Whether a textured area outside of a fan `(height, width)` bool is another picture.

        Noise, as of a photographed screen, is none where the fan is sure: the ground beside a wrong
        one may be echo.
        """
        fan, steps = fan_mask.view(np.uint8), _step(self.small, 3)
        near = _grown(fan, 5)

        def is_beside(texture: np.ndarray) -> bool:
            return share(_largest(texture & ~near & 1)) > _MAX_TEXTURE_BESIDE * share(fan)

        if not is_sure:
            return is_beside(_textured(steps, _TEXTURE_STEP))
        if not is_beside(self.core | self.apart):
            return False
        around = (_grown(fan, _RING_PX) & ~near) > 0
        noise = np.percentile(steps[around], 75) if around.any() else 0
        return is_beside(_textured(steps, _TEXTURE_STEP + min(_NOISE_BESIDE, int(noise))))

    def core_share(self, fan_mask: np.ndarray) -> float:
        """Proportion of the core that lies in a fan `(height, width)` bool, 0 to 1."""
        return float(fan_mask[self.core > 0].mean())

    def bright_beside(self, fan_mask: np.ndarray) -> np.ndarray:
        """1 where the screen is brighter than right beside a fan `(height, width)` bool."""
        level = ground_beside(self.small, fan_mask, self.surround[0])
        return (self.small > level + self.surround[1] + _ECHO_STEP).astype(np.uint8)

    def readings(self) -> list[np.ndarray]:
        """What may be echo: all that hangs together with the core, and its close surroundings."""
        bright, near = self.bright(), _grown(self.core, 13)
        bright &= ~(self._blocks() & ~self.core)
        foreign = _grown(self.apart & ~near, 7) & ~self.core
        hanging = _opened(bright & ~foreign, 5)
        _, labels = cv2.connectedComponents(hanging, connectivity=4)
        touched = np.unique(labels[self.core > 0])
        wide = (np.isin(labels, touched) & (labels > 0)).astype(np.uint8)
        return [wide, bright & near]

    def painted(self, fan_mask: np.ndarray, reading: np.ndarray) -> np.ndarray:
        """The screen with all but a fan and its close surroundings set to the surround's level.

        Args:
            fan_mask: `(height, width)` bool, a coarse fan.
            reading: the one of `readings` it was fitted to.
        """
        inside = _grown(fan_mask.view(np.uint8), 13) | _grown(reading, 5)
        num, labels = cv2.connectedComponents(self.apart, connectivity=4)
        size = np.bincount(labels.ravel(), minlength=num)
        within = np.bincount(labels.ravel(), inside.ravel(), minlength=num) / np.maximum(1, size)
        foreign = ((within < 0.5)[labels] & (self.apart > 0)).astype(np.uint8)
        outside = _grown(foreign, 5) | (self._blocks() & ~self.core) | (1 - inside)
        level = np.uint8(min(255, sum(self.surround)))
        return np.where(outside > 0, level, np.maximum(self.small, level))

    def _blocks(self) -> np.ndarray:
        """Bars, buttons and the page: bright, even along rows or columns, square or at the rim."""
        even = (_step(self.small, 5) <= 1) & (self.small > self.surround[0] + _FLAT_STEP)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(
            _opened(even.view(np.uint8), 3), connectivity=4
        )
        left, top, width, height, area = stats.T
        rims = (left == 0).astype(int) + (top == 0)
        rims += left + width == even.shape[1]
        rims += top + height == even.shape[0]
        is_block = (area >= _MIN_BLOCK_PX) & ((area > 0.7 * width * height) | (rims >= 2))
        is_block[0] = False
        return _grown(is_block[labels].view(np.uint8), 5)


def find_picture(small: np.ndarray) -> Picture | None:
    """The largest textured area of a screen.

    Args:
        small: `(height, width)` uint8, about 256 px wide.

    Returns:
        The picture's core, or None if no textured area is large enough.
    """
    steps = _step(small, 3)
    counts = cv2.calcHist([steps], [0], None, [256], [0, 256]).ravel().cumsum()
    # A quarter of any page is plain: what it changes by there is noise, as a photograph's.
    noise = min(_MAX_NOISE, int((counts >= small.size / 4).argmax()))
    texture = _textured(steps, _TEXTURE_STEP + noise)
    core = _largest(texture)
    if cv2.countNonZero(core) < _MIN_CORE_SHARE * small.size:
        return None
    return Picture(small, core, texture & ~core)


def _textured(steps: np.ndarray, least: int) -> np.ndarray:
    """Where the grey level changes by so much both ways, closed and without small areas."""
    rough = (steps >= least).view(np.uint8)
    closed = cv2.morphologyEx(rough, cv2.MORPH_CLOSE, _square(3))
    return _opened(np.asarray(closed, np.uint8), 7)


def ground_beside(small: np.ndarray, fan_mask: np.ndarray, otherwise: float = 0.0) -> float:
    """The median grey level right beside a fan `(height, width)` bool; or what is given where the
    fan fills the frame."""
    fan = fan_mask.view(np.uint8)
    beside = (_grown(fan, 11) & ~_grown(fan, 5)) > 0
    return float(np.median(small[beside])) if beside.any() else otherwise


def _innermost_lines(grey: np.ndarray, free: np.ndarray, core: np.ndarray) -> tuple[int, int]:
    """The rows between the last line above the core and the first line below it."""
    num_rows = len(grey)
    step = grey[2:] - grey[:-2]
    counted = free[1:-1]
    num = counted.sum(axis=1)
    most = np.maximum(
        ((step >= _LINE_STEP) & counted).sum(axis=1), ((step <= -_LINE_STEP) & counted).sum(axis=1)
    )
    is_line = (most >= _LINE_SHARE * num) & (num >= _MIN_LINE * grey.shape[1])
    lines = np.flatnonzero(is_line) + 1
    above = core.sum(axis=1).cumsum() / max(1, core.sum())
    first = max([0, *(lines[above[lines] <= _MAX_CORE_BEYOND] + 2)])
    last = min([num_rows, *(lines[above[lines] >= 1 - _MAX_CORE_BEYOND] - 1)])
    return int(first), int(last)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest area of a mask, all 0 where there is none."""
    # Contours take a tenth of the time of labels.
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros_like(mask)
    if contours:
        largest = max(contours, key=cv2.contourArea)
        cv2.drawContours(drawn, [largest], 0, 1, cv2.FILLED)
    return drawn & mask


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask dilated by a square, which takes a tenth of a disc's time."""
    return np.asarray(cv2.dilate(mask, _square(width)), np.uint8)


def _opened(mask: np.ndarray, width: int) -> np.ndarray:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, _square(width)), np.uint8)


def _step(small: np.ndarray, length: int) -> np.ndarray:
    """Range of grey levels over `length` px along the row or down the column, the lesser."""
    along, down = np.ones((1, length), np.uint8), np.ones((length, 1), np.uint8)
    return np.asarray(
        cv2.min(
            cv2.morphologyEx(small, cv2.MORPH_GRADIENT, along),
            cv2.morphologyEx(small, cv2.MORPH_GRADIENT, down),
        ),
        np.uint8,
    )


def _square(width: int) -> np.ndarray:
    return np.ones((width, width), np.uint8)
