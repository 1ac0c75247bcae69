"""Find the echo sector of an ultrasound frame, and keep it in one cell of the manifest.

A cell says in which pixels the fan was found, and by which version of the code. For other pixels
or another version it counts for nothing, and the sector is found anew: what comes out is the same
with the cell and without. A fan that a person has set says "person" in place of the version, and
stays with its pixels. The cell belongs to the frame and not to the rectangle, so a person who moves
the box leaves it alone.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from steatosis_tf.roi.sector.fit import border_seen, fit_fan
from steatosis_tf.roi.sector.geometry import Fan
from steatosis_tf.roi.sector.screen import (
    MIN_SECTOR_FRACTION,
    Picture,
    bright_areas,
    cleaned,
    find_picture,
    ground_beside,
    moving_area,
    share,
)
from steatosis_tf.sources.images import MIN_SIDE_PX, to_grey
from steatosis_tf.sources.rejection import Rejection

if TYPE_CHECKING:
    import pandas as pd

#: Counts up whenever another fan may be found, or another ROI proposed, for the same pixels: what
#: was kept and nobody has looked at is made anew.
ROI_VERSION = 4

# The search runs on a copy whose longer side is this many px: a border known to half a px of it
# is known to two px of a 1024 px frame, less than the hand-drawn outlines scatter.
_WORK_SIDE_PX = 256
_MAX_SECTOR_FRACTION = 0.97
_MIN_SCORE = 0.4
_MIN_BORDER_SEEN = 0.25
_CLEAR_BORDER_SEEN = 0.35
# On a screen: with how much of the border seen no further variant is looked at; and what a fan
# needs at least: border seen, the same times the textured proportion, how much of the core lies
# inside.
_SURE_BORDER_SEEN = 0.66
_ENOUGH_SEEN = (_SURE_BORDER_SEEN, _SURE_BORDER_SEEN, _CLEAR_BORDER_SEEN, _CLEAR_BORDER_SEEN)
_MIN_BORDER_ON_SCREEN, _MIN_TEXTURED_BORDER, _MIN_CORE_INSIDE = 0.12, 0.15, 0.7
# A part of the page that is larger than this proportion of it is the page.
_MAX_PANE = 0.96
# Mean squared step to the next pixel over that to the next but one: echo of 640 frames 0.30 to
# 0.61, white noise 1. The step itself: echo on 294 composed screens 2.1 to 540, clouds 0.3, a page
# of crisp text 3900.
_NOISE_RATIO, _MIN_NOISE, _NUM_NOISE_ROWS = 0.85, 100.0, 24
_LEAST_GRAIN, _MOST_GRAIN = 0.8, 1500.0
# Nothing but its texture tells a linear probe's rectangle from any other picture: 0.95 of the area
# in drawn speckle, 0 in ramps, up to 0.55 in clouds.
_MIN_LINEAR_TEXTURE = 0.6
# Between two pictures the darkest column has at most 3 % of the lesser picture's brightest (200
# pairs); in 597 of 599 single ones the middle never falls under 30 %.
_MAX_GAP_SHARE = 0.15
_MIDDLE = (0.35, 0.65)  # proportion of the width in which the gap is looked for
# The border of a whole fan. Where one picture is cut in two, the lesser half shows at most 0.49 of
# it (1,028 pictures), and then without a gap; the lesser of two pictures 0.47 to 0.98 (65 pairs).
# So halves without a gap have to show more, and are looked at where one fan shows little.
_MIN_BORDER_OF_TWO, _MIN_BORDER_WITHOUT_GAP = 0.4, 0.52
# Grey level around the sector: on 1,028 frames at most 56, around inverted ones at least 202.
_MAX_GROUND = 150
# Echoes stand out of their surroundings by being bright, and most of a picture is dark. The least
# skewness was -0.22 on 404 real frames and -0.57 on 200 phantoms, some with a gain far too high.
_MIN_SKEWNESS, _SURROUNDINGS, _MIN_LEVEL_INVERTED = -0.6, (15, 15), 110


class _Fit(NamedTuple):
    fan: Fan
    score: float
    border_seen: float
    has_second: bool = False
    ground: float = 0.0
    is_inverted: bool = False
    may_be_two: bool = True


@dataclass(frozen=True)
class Sector:
    """The echo sector of one frame.

    Attributes:
        mask: `(height, width)` bool, True on echo pixels.
        fan: the fitted geometry, in px of the frame.
        score: how well the fan divides bright from dark, in nats per pixel of the fan (at most
            3.6); low means much shadow or a doubtful fit.
        border_seen: proportion of the fan's border, 0 to 1, that lies where bright turns dark.

    Both are NaN where a person has set the fan.
    """

    mask: np.ndarray
    fan: Fan
    score: float
    border_seen: float

    @classmethod
    def of_fan(cls, fan: Fan, frame_shape: tuple[int, ...]) -> "Sector":
        """The sector of a fan that a person has set, on a frame of that height and width."""
        height, width = frame_shape[:2]
        return cls(fan.mask((height, width)), fan, score=np.nan, border_seen=np.nan)

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """The pixels of one frame inside the sector, `(n,)` or `(n, 3)`.

        Raises:
            ValueError: if it is a clip, or no frame of this size.
        """
        if frame.shape[:2] != self.mask.shape:
            raise ValueError(
                "expected one frame (height, width) or (height, width, 3). Received: "
                f"shape={frame.shape}, a clip or with its channels in front. Give one frame of it, "
                "or move its channels to the end."
            )
        return frame[self.mask]


def find_sector(frame: np.ndarray) -> Sector:
    """Find the echo sector of a frame, or of a clip whose frames share one.

    In a clip, what never moves is not echo: logos, bars and halos that touch the sector are told
    from it, and shadows that wander do not hide its border.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, or several frames of one clip,
            `(num_frames, height, width)` or `(num_frames, height, width, 3)`; uint8.

    Returns:
        The sector, its mask as large as one frame.

    Raises:
        ValueError: if the frame holds no sector, or (a `Rejection`) two of them, or one that is
            inverted or on a light ground; the text says what was seen instead.

    Example:
        >>> from steatosis_tf.sources.phantom.study import simulate_patient
        >>> (frame,), _ = simulate_patient(
        ...     20.0, num_frames=1, generator=np.random.default_rng(0)
        ... )
        >>> sector = find_sector(frame)
        >>> sector.mask.shape == frame.shape[:2], sector.fan.kind
        (True, 'convex')
    """
    frames = _as_frames(frame)
    shape = frames[0].shape[:2]
    if min(shape) < MIN_SIDE_PX:
        raise ValueError(
            f"no sector: the frame has only {shape[0]} x {shape[1]} px (height x width)"
        )
    found = _search(frames)
    mask = found.fan.mask(shape)
    _check_grain(frames[0], mask)
    may_be_two = found.may_be_two or found.fan.kind == "linear"
    if found.has_second or (may_be_two and _is_two(frames, found)):
        raise Rejection("two_pictures")
    if found.ground > _MAX_GROUND:
        raise Rejection("light_ground")
    if found.is_inverted:
        raise Rejection("inverted")
    return Sector(mask=mask, fan=found.fan, score=found.score, border_seen=found.border_seen)


def _is_two(frames: list[np.ndarray], found: _Fit) -> bool:
    """Whether two sectors stand side by side where one fan was found."""
    still = to_grey(frames[0])
    if len(frames) > 1:
        still = np.median([to_grey(frame) for frame in frames], axis=0).astype(np.float32)
    width = still.shape[1]
    # Sums of grey levels are whole in float32; a mean of NumPy takes four times as long.
    columns = cv2.reduce(still, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32F) / np.float32(len(still))
    columns = cv2.GaussianBlur(columns, (0, 0), max(1.0, width / 100))[0]
    columns -= columns.min()
    first, last = (int(share * width) for share in _MIDDLE)
    gap = first + int(columns[first:last].argmin())
    lesser = min(columns[:gap].max(), columns[gap:].max())
    if found.may_be_two and columns[gap] <= _MAX_GAP_SHARE * lesser:
        return _show_sectors(frames, gap, _MIN_BORDER_OF_TWO)
    # Fans cut where they meet make a rectangle; halves of a linear probe's are no fans.
    border = _MIN_BORDER_OF_TWO if found.fan.kind == "linear" else _MIN_BORDER_WITHOUT_GAP
    return found.border_seen < _MIN_BORDER_WITHOUT_GAP and any(
        _show_sectors(frames, cut, border) for cut in {gap, width // 2}
    )


def _show_sectors(frames: list[np.ndarray], cut: int, border: float) -> bool:
    """Whether a sector stands left and right of a column, each with so much of its border seen."""
    if min(cut, frames[0].shape[1] - cut) < MIN_SIDE_PX:
        return False
    halves = ([frame[:, side] for frame in frames] for side in (slice(cut), slice(cut, None)))
    try:
        return all(
            _search([np.ascontiguousarray(frame) for frame in half]).border_seen >= border
            for half in halves
        )
    except ValueError:
        return False


def _search(frames: list[np.ndarray], is_pane: bool = False) -> _Fit:
    """Search on a small copy; the fan is in px of the frames."""
    scale = min(1.0, _WORK_SIDE_PX / max(frames[0].shape[:2]))
    small = [
        cv2.resize(to_grey(one), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for one in frames
    ]
    still = small[0] if len(small) == 1 else np.median(small, axis=0).astype(np.uint8)
    moving, picture = moving_area(small), find_picture(still)
    if picture is None or moving is not None or picture.is_cut_out():
        found = _checked(_best_fit(bright_areas(still, moving)), picture, still.shape)
    else:
        in_pane = None if is_pane else _searched_in_pane(frames[0], picture, scale)
        if in_pane is not None:
            return in_pane
        found = _fit_on_screen(picture, is_pane)
        is_doubtful = found.border_seen < _MIN_BORDER_WITHOUT_GAP
        found = found._replace(may_be_two=is_doubtful and picture.has_rival())
    mask = found.fan.mask(still.shape)
    if picture is not None and moving is None:  # in a clip a still texture is no second picture
        found = found._replace(
            has_second=picture.has_second(mask, found.border_seen >= _MIN_BORDER_OF_TWO)
        )
    return found._replace(
        fan=found.fan.scaled(1 / scale),
        ground=ground_beside(still, mask),
        is_inverted=_is_inverted(small[0], mask),
    )


def _is_inverted(small: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the mask's pixels are bright, with dark grains."""
    inside = cv2.erode(mask.view(np.uint8), np.ones((7, 7), np.uint8)) > 0
    levels = small[inside]
    if not levels.size or np.median(levels) <= _MIN_LEVEL_INVERTED:
        return False
    total = cv2.blur(np.where(mask, small, 0).astype(np.float32), _SURROUNDINGS)
    number = cv2.blur(mask.astype(np.float32), _SURROUNDINGS)
    stands_out = levels - total[inside] / number[inside]
    stands_out -= stands_out.mean()
    square = stands_out * stands_out
    return bool((square * stands_out).mean() < _MIN_SKEWNESS * square.mean() ** 1.5)


def _searched_in_pane(frame: np.ndarray, picture: Picture, scale: float) -> _Fit | None:
    """Search in the part of the page that the picture stands in; None if that is all of it, or
    shows no sector by itself."""
    top, bottom, left, right = np.round(np.array(picture.pane()) / scale).astype(int).tolist()
    part = np.ascontiguousarray(frame[top:bottom, left:right])
    if min(part.shape[:2]) < MIN_SIDE_PX or part.size > _MAX_PANE * frame.size:
        return None
    try:
        found = _search([part], is_pane=True)
    except ValueError:
        return None
    fan = _within(found.fan, part.shape).moved(left, top)
    return found._replace(fan=fan, may_be_two=False)


def _within(fan: Fan, shape: tuple[int, ...]) -> Fan:
    """A fan cut off where it goes on beyond the left, right or lower side of its part."""
    outline, (height, width) = fan.outline(), shape[:2]
    cuts: dict[str, float] = {}
    if outline[:, 0].min() < 0 and fan.cut_left_px is None:
        cuts["cut_left_px"] = 0.0
    if outline[:, 0].max() > width - 1 and fan.cut_right_px is None:
        cuts["cut_right_px"] = width - 1.0
    if outline[:, 1].max() > height - 1 and fan.cut_bottom_px is None:
        cuts["cut_bottom_px"] = height - 1.0
    return replace(fan, **cuts)  # type: ignore[arg-type]


def _check_grain(frame: np.ndarray, mask: np.ndarray) -> None:
    """Tell echo from noise, from smooth shades and from letters by how neighbours differ.

    Raises:
        ValueError: if pixels two apart differ no more than neighbours, as echo is wider than one
            pixel, or if neighbours are all but the same, or as far apart as ink and paper.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    row = slice(int(rows[0]), int(rows[-1]) + 1, max(1, len(rows) // _NUM_NOISE_ROWS))
    line, inside = to_grey(frame[row]).astype(np.float32), mask[row]
    one, two = (_mean_squared_step(line, inside, length) for length in (1, 2))
    if one > max(_NOISE_RATIO * two, _MIN_NOISE):
        raise ValueError("no sector: neighbouring pixels have nothing in common, as in noise")
    if not _LEAST_GRAIN <= one <= _MOST_GRAIN:
        raise ValueError("no sector: neighbouring pixels are as alike as in a shade, or letters")


def _mean_squared_step(line: np.ndarray, inside: np.ndarray, length: int) -> float:
    counted = inside[:, length:] & inside[:, :-length]
    step = ((line[:, length:] - line[:, :-length]) * counted).ravel()
    return float(step @ step) / max(1, int(np.count_nonzero(counted)))


def _fit_on_screen(picture: Picture, is_pane: bool) -> _Fit:
    """The fan whose border a screen shows best, of several ways to tell echo from the rest.

    Args:
        picture: what stands on the screen.
        is_pane: whether bars and menus around it are cut off already.

    Raises:
        ValueError: if none of them shows one.
    """
    best, most_seen, reason = None, 0.0, ValueError("no sector: nothing has a fan's border")
    shape = picture.small.shape
    try:
        best = _checked(_best_fit(bright_areas(picture.small)), picture, shape)
        is_clear = not is_pane and best.border_seen >= _CLEAR_BORDER_SEEN
        if is_clear and picture.is_cut_out(best.fan.mask(shape)):
            return best
        most_seen = _border_on_screen(best.fan, picture)
        if most_seen < _MIN_BORDER_ON_SCREEN and not picture.is_alone():
            raise ValueError("no sector: the textured area of the screen has no fan's border")
    except ValueError as error:
        best, most_seen, reason = None, 0.0, error
    for variant, enough in zip(picture.variants(), _ENOUGH_SEEN, strict=True):
        if most_seen >= enough:
            break
        try:
            found = _fit_part_of_screen(variant)
        except ValueError as error:
            reason = error
            continue
        seen = _border_on_screen(found.fan, variant)
        if seen > most_seen:
            best, most_seen = found, seen
    if best is None:
        raise reason
    return best


def _fit_part_of_screen(picture: Picture) -> _Fit:
    """Fit coarsely to what hangs together with the picture's core, then to that fan's content."""
    bright = picture.bright()
    coarse, most_seen, used = None, -1.0, bright
    for reading in map(cleaned, picture.readings()):
        if share(reading) < MIN_SECTOR_FRACTION:
            continue
        fan = fit_fan(reading)[0]
        seen = min(border_seen(fan, bright), _SURE_BORDER_SEEN)
        if seen > most_seen:
            coarse, most_seen, used = fan, seen, reading
        if seen == _SURE_BORDER_SEEN:
            break
    if coarse is None:
        raise ValueError("no sector: only small areas of the screen have a texture")
    painted = picture.painted(coarse.mask(bright.shape), used)
    found = _checked(_best_fit(bright_areas(painted)), picture, bright.shape)
    # What is painted gives any fan a border. So the screen itself has to show it, the more clearly
    # the less of the fan is textured, and the picture's core has to lie in the fan.
    mask = found.fan.mask(bright.shape)
    seen = _border_on_screen(found.fan, picture) * picture.texture_share(mask)
    if seen < _MIN_TEXTURED_BORDER or picture.core_share(mask) < _MIN_CORE_INSIDE:
        raise ValueError("no sector: the textured area of the screen has no fan's border")
    return found


def _border_on_screen(fan: Fan, picture: Picture) -> float:
    """How much of a fan's border, 0 to 1, lies where the screen turns dark right beside the fan."""
    return border_seen(fan, picture.bright_beside(fan.mask(picture.small.shape)))


def _best_fit(readings: list[np.ndarray]) -> _Fit:
    """The first reading whose border is clear, or else the one with the clearest border."""
    fits = []
    for bright in readings:
        fits.append(_Fit(*fit_fan(bright)))
        if fits[-1].border_seen >= _CLEAR_BORDER_SEEN:
            break
    return max(fits, key=lambda fit: min(fit.border_seen, _CLEAR_BORDER_SEEN))


def _as_frames(frame: np.ndarray) -> list[np.ndarray]:
    # Of what is no array, as a path, there is neither.
    shape: tuple[int, ...] = getattr(frame, "shape", ())
    dtype = getattr(frame, "dtype", type(frame).__name__)
    is_frame = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    # No clip is up to four px wide: those are channels, as of RGBA.
    is_clip = (len(shape) == 3 and shape[2] > 4) or (len(shape) == 4 and shape[3] == 3)
    if dtype != np.uint8 or not (is_frame or is_clip) or 0 in shape:
        raise ValueError(
            "expected a frame (height, width) or (height, width, 3), or a clip of such frames, "
            f"uint8, as read_frame gives one. Received: shape={shape} dtype={dtype}"
        )
    return [frame] if is_frame else list(frame)


def _checked(found: _Fit, picture: Picture | None, shape: tuple[int, int]) -> _Fit:
    mask = found.fan.mask(shape)
    fraction = share(mask)
    if fraction > _MAX_SECTOR_FRACTION:
        raise ValueError(
            "no sector: the picture fills the frame without a dark surround, "
            "as a photo or noise does"
        )
    if found.score < _MIN_SCORE or found.border_seen < _MIN_BORDER_SEEN:
        raise ValueError("no sector: the bright area is scattered or has no fan's border")
    if fraction < MIN_SECTOR_FRACTION:
        raise ValueError("no sector: what stands out is smaller than 3 % of the frame")
    if found.fan.kind == "linear":
        texture = 0.0 if picture is None else picture.texture_share(mask)
        if texture < _MIN_LINEAR_TEXTURE:
            raise ValueError("no sector: what stands out is a rectangle smoother than echo")
    return found


SECTOR_COLUMN = "roi_sector"

_PERSON = "person"
_CODE = f"v{ROI_VERSION}"
_FIELDS = tuple(field.name for field in fields(Fan))
# Enough to tell a frame from what it was before; the manifest holds the whole hash.
_DIGITS = 16


def sector_cell(fan: Fan, digest: str, *, by_person: bool = False) -> str:
    """The cell of a frame: version, pixels, kind of fan, its numbers to the last bit.

    Args:
        fan: as `find_sector` found it, or as a person has set it.
        digest: `pixels_sha256` of the frame.
        by_person: whether a person has set it.
    """
    kind, *numbers = (getattr(fan, name) for name in _FIELDS)
    texts = ["-" if number is None else repr(float(number)) for number in numbers]
    return " ".join([_PERSON if by_person else _CODE, digest[:_DIGITS], kind, *texts])


def is_persons(cells: "pd.Series") -> "pd.Series":
    """Which cells hold a fan that a person has set, bool."""
    return cells.str.startswith(f"{_PERSON} ")


def is_current(cells: "pd.Series") -> "pd.Series":
    """Which cells hold a fan that counts: found by this version, or a person's, bool."""
    return cells.str.startswith((f"{_CODE} ", f"{_PERSON} "))


def persons_fan(digest: str, cell: str) -> Fan | None:
    """The fan that a person has set for a frame, or None if there is none for these pixels.

    Args:
        digest: `pixels_sha256` of the frame.
        cell: of the frame's manifest row; "" where there is none.

    Raises:
        ValueError: if the cell is damaged.
    """
    return _fan_of(digest, cell, _PERSON)


def kept_fan(digest: str, cell: str) -> Fan | None:
    """The fan of a cell that holds for these pixels and this version, or None; as `persons_fan`."""
    return _fan_of(digest, cell, _CODE, _PERSON)


def sector_fan(frame: np.ndarray, digest: str, cell: str) -> Fan:
    """The fan of a frame's sector, from its cell if that holds it.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        digest: `pixels_sha256` of that frame.
        cell: of the frame's manifest row; "" where there is none.

    Returns:
        the fan of `find_sector(frame)`, or the one a person has set.

    Raises:
        ValueError: if the frame holds no sector, or the cell is damaged.
    """
    kept = kept_fan(digest, cell)
    return find_sector(frame).fan if kept is None else kept


def _fan_of(digest: str, cell: str, *kinds: str) -> Fan | None:
    kind, _, text = cell.rpartition(f" {digest[:_DIGITS]} ")
    if kind not in kinds:
        return None
    try:
        kind, *texts = text.split(" ")
        numbers = [None if number == "-" else float(number) for number in texts]
        fan: dict[str, Any] = dict(zip(_FIELDS, [kind, *numbers], strict=True))
        return Fan(**fan)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected {SECTOR_COLUMN} as `steatosis roi` wrote it. Received: {cell!r}. "
            "Empty the cell, and the sector is found again"
        ) from error
