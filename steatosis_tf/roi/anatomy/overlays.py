"""Find what a scanner drew over the echo: calipers, lines, text, body marks, colour.

A drawn stroke differs from an echo in three ways: it has a colour, or it rises from its
neighbourhood within one or two px where the beam would blur it, or it keeps one grey level along
a line where an echo would speckle.
"""

from typing import NamedTuple

import cv2
import numpy as np

from steatosis_tf.sources.images import to_grey

# Grey levels by which a coloured pixel's channels differ beyond the frame's own tint.
_COLOUR_STEP = 48
# Least grey level and rise of the body above both flanks (grey levels); then of each core that will
# do its rise, least size in px and as a proportion of the mark, and least proportion of it in
# upright lines. White strokes; then fainter and smoothed ones: speckle looks like them unless there
# is more of it in one place, and diaphragm and capsules do, but those have no upright lines as
# letters have.
_STROKES = (
    (170, 60, ((120, 6, 0.09, 0.0),)),
    (130, 50, ((100, 14, 0.09, 0.15), (80, 14, 0.15, 0.15))),
)
_LEAST_CORE = 80
# Letters of exactly one grey level, however faint: rise above both flanks, px in a row of which
# each has two like it beside it, least proportion of them in upright lines. The rest of a word lies
# within so many px down and across, and rises at least so much.
_EQUAL_RISE, _EQUAL_PX, _EQUAL_UPRIGHT = 30, 8, 0.15
_EQUAL_REACH_PX, _EQUAL_REST = (9, 25), 15
# Painting over: gaps in a word that are painted too, and the size of the pieces of speckle.
_WORD_PX, _PIECE_PX = 7, 8
# How far pieces are fetched, the squares over which the level is taken, and thereby how far from a
# mark a pixel can have a say.
_FARTHEST_PIECE_PX, _MEAN_SIDES_PX = 64, (65, 33, 17)
_REACH_PX = _FARTHEST_PIECE_PX + max(_MEAN_SIDES_PX) // 2
# Text goes on beside a mark: within so many px and almost as bright, less of a rise is enough.
_BESIDE_PX = 9
_BESIDE_RISE, _BESIDE_LEVEL = 45, 0.8
# A ruled line of one grey level: least length in px at 600 rows, flatness and contrast in levels.
# Level lines are longer, because an interface that faces the probe is an even streak of echo.
_UPRIGHT_LINE_PX, _LEVEL_LINE_PX = 25, 40
_LINE_FLATNESS = 3
_LINE_CONTRAST = 12
_LINE_LEVEL = 40
# A run of one level this bright is an echo at the end of the grey scale.
_CLIPPED = 245


def find_overlays(frame: np.ndarray, sector_mask: np.ndarray) -> np.ndarray:
    """Find drawn marks inside the sector.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        sector_mask: `(height, width)` bool, True inside the sector of that frame.

    Returns:
        `(height, width)` bool, True on marks and one px around them; False outside the sector.
        Its mean over the sector is the fraction to report (`overlay_fraction`).

    Raises:
        ValueError: if the frame and the mask differ in size.
    """
    if frame.shape[:2] != sector_mask.shape:
        raise ValueError(
            f"expected a frame of the sector_mask's size {sector_mask.shape}. "
            f"Received: shape={frame.shape}"
        )
    left, top, width, height = cv2.boundingRect(sector_mask.view(np.uint8))
    window = (slice(top, top + height), slice(left, left + width))
    inside = np.ascontiguousarray(sector_mask[window]).view(np.uint8)
    # What lies outside must not decide what is found inside.
    part = cv2.copyTo(frame[window], inside)
    grey = to_grey(part)
    # The sector's own border is a sharp edge too.
    core = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=0)
    dark = cv2.bitwise_not(grey)
    relief = _relief(grey, core)
    marks = _strokes(grey, relief) | _ruled_lines(grey, scale=frame.shape[0] / 600)
    marks |= _level_letters(grey, relief) | _level_letters(dark, _relief(dark, core))
    if part.ndim == 3:
        marks |= _coloured(part, grey, inside)
    found = np.zeros(frame.shape[:2], bool)
    if marks.any():
        grown = cv2.dilate(marks * core, np.ones((3, 3), np.uint8)) * inside
        found[window] = grown.view(bool)
    return found


def overlay_fraction(overlay_mask: np.ndarray, sector_mask: np.ndarray) -> float:
    """Proportion of the sector's pixels that are marks, 0 to 1."""
    return float(np.count_nonzero(overlay_mask & sector_mask) / np.count_nonzero(sector_mask))


def paint_out(
    frame: np.ndarray, sector_mask: np.ndarray, overlay_mask: np.ndarray | None = None
) -> np.ndarray:
    """Put echo in the place of drawn marks, so that no model reads what a person wrote.

    A mark takes the grey level around it and the speckle beside it. Pixels without a mark stay as
    they are, so a frame without marks comes back unchanged.

    Args:
        frame: `(height, width)` or `(height, width, 3)` RGB, uint8.
        sector_mask: `(height, width)` bool, True inside the sector of that frame.
        overlay_mask: what `find_overlays` gave; None finds the marks.

    Returns:
        `(height, width)` uint8 grey; the frame itself if it is grey and has no marks.

    Raises:
        ValueError: as `find_overlays`.
    """
    grey = to_grey(frame)
    if overlay_mask is None:
        overlay_mask = find_overlays(frame, sector_mask)
    if not overlay_mask.any():
        return grey
    # Smoothed letters have a rim, and what was missed inside a word would tell what it was.
    grown = cv2.dilate(overlay_mask.view(np.uint8), np.ones((3, 3), np.uint8))
    around = cv2.morphologyEx(grown, cv2.MORPH_CLOSE, np.ones((_WORD_PX, _WORD_PX), np.uint8))
    painted = around.view(bool) & sector_mask
    echo = sector_mask & ~painted
    mean = float(grey[echo].mean()) if echo.any() else 0.0
    left, top, width, height = cv2.boundingRect(painted.view(np.uint8))
    window = (
        slice(max(0, top - _REACH_PX), top + height + _REACH_PX),
        slice(max(0, left - _REACH_PX), left + width + _REACH_PX),
    )
    filled = grey.copy()
    filled[window] = _filled(grey[window], painted[window], echo[window], mean)
    return filled


def _filled(grey: np.ndarray, painted: np.ndarray, echo: np.ndarray, mean: float) -> np.ndarray:
    """The picture with level and speckle of the echo in the place of what is painted."""
    level = _local_mean(grey, echo.astype(np.float32), mean)
    texture = (grey - level) * echo
    filled = grey.copy()
    rows, columns = np.nonzero(painted)
    # The nearest echo to the left or right, above or below, at the same distance for all pixels of
    # a mark as far as possible: speckle is copied in pieces.
    for step in range(_PIECE_PX, _FARTHEST_PIECE_PX, _PIECE_PX // 2):
        for down, right in ((0, step), (0, -step), (step, 0), (-step, 0)):
            y = np.clip(rows + down, 0, grey.shape[0] - 1)
            x = np.clip(columns + right, 0, grey.shape[1] - 1)
            ready = echo[y, x]
            values = level[rows[ready], columns[ready]] + texture[y[ready], x[ready]]
            filled[rows[ready], columns[ready]] = np.clip(np.round(values), 0, 255)
            rows, columns = rows[~ready], columns[~ready]
    filled[rows, columns] = np.round(level[rows, columns])
    return filled


def _local_mean(grey: np.ndarray, echo: np.ndarray, mean: float) -> np.ndarray:
    """Mean of the echo around each pixel, `(height, width)` float32, wider where it is scarce."""
    level = np.full(grey.shape, mean, np.float32)
    for side in _MEAN_SIDES_PX:
        weight = cv2.blur(echo, (side, side))
        mean_here = cv2.blur(grey * echo, (side, side)) / np.maximum(weight, 1e-6)
        share = np.minimum(4 * weight, 1)
        level = share * mean_here + (1 - share) * level
    return level


class _Relief(NamedTuple):
    """How far each pixel stands out of both its flanks, `(height, width)` uint8, 0 near the border;
    the higher flank across the way left and right, and the lowest such across the other ways."""

    rise: np.ndarray
    beside: np.ndarray
    elsewhere: np.ndarray

    def is_upright(self, places: np.ndarray) -> np.ndarray:
        """Whether pixels (places in the flat picture) rise most across the way left and right."""
        return self.beside.ravel()[places] <= self.elsewhere.ravel()[places]


def _relief(grey: np.ndarray, inside: np.ndarray) -> _Relief:
    step = 3
    padded = cv2.copyMakeBorder(grey, step, step, step, step, cv2.BORDER_REPLICATE)
    height, width = grey.shape

    def flank(down: int, right: int) -> np.ndarray:
        one, other = (
            padded[step + y : step + y + height, step + x : step + x + width]
            for y, x in ((down, right), (-down, -right))
        )
        return np.asarray(cv2.max(one, other))

    beside = flank(0, step)
    elsewhere = flank(step, 0)
    cv2.min(elsewhere, flank(step, step), dst=elsewhere)
    cv2.min(elsewhere, flank(step, -step), dst=elsewhere)
    rise = cv2.subtract(grey, cv2.min(beside, elsewhere))
    rise *= inside
    return _Relief(rise, beside, elsewhere)


def _strokes(grey: np.ndarray, relief: _Relief) -> np.ndarray:
    """Bright strokes up to four px wide with sharp flanks on both sides; uint8 0 or 1."""
    marks = np.zeros_like(grey)
    rise = relief.rise
    places = np.flatnonzero(rise >= _LEAST_CORE)
    grey_there, rise_there = grey.ravel()[places], rise.ravel()[places]
    for level, body, kinds in _STROKES:
        cores = []
        for core, min_px, min_share, min_upright in kinds:
            found = places[(grey_there >= level) & (rise_there >= core)]
            if len(found) >= min_px:
                cores.append((found, min_px, min_share, min_upright))
        if cores:
            marks |= _with_core((grey >= level) & (rise >= body), cores, relief)
    if not marks.any():
        return marks
    level = _BESIDE_LEVEL * np.median(grey[marks > 0])
    beside = cv2.dilate(marks, np.ones((_BESIDE_PX, 2 * _BESIDE_PX + 1), np.uint8)) > 0
    marks |= (beside & (rise >= _BESIDE_RISE) & (grey >= level)).astype(np.uint8)
    # Crossings and corners have no dark flank; they are as bright as the strokes they join.
    filled = cv2.morphologyEx(marks, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return filled * (grey >= level)


def _with_core(
    body: np.ndarray, cores: list[tuple[np.ndarray, int, float, float]], relief: _Relief
) -> np.ndarray:
    """Those strokes of which one of the cores is large enough, and upright enough; uint8 0 or 1."""
    # Dots of a dotted line are one mark.
    joined = cv2.dilate(body.view(np.uint8), np.ones((5, 5), np.uint8))
    num, labels = cv2.connectedComponents(joined, connectivity=8, ltype=cv2.CV_16U)
    labels = labels.ravel()
    keep, size = np.zeros(num, bool), None
    for places, min_px, min_share, min_upright in cores:
        label = labels[places]
        num_core = np.bincount(label, minlength=num)
        num_upright = np.bincount(label[relief.is_upright(places)], minlength=num)
        is_mark = (num_core >= min_px) & (num_upright >= min_upright * num_core)
        if is_mark.any():
            if size is None:  # takes as long as all the rest
                size = np.bincount(labels[np.flatnonzero(joined.view(bool))], minlength=num)
            keep |= is_mark & (num_core >= min_share * size)
    kept = np.zeros_like(joined)
    if keep.any():
        drawn = np.flatnonzero(body)
        kept.ravel()[drawn] = keep[labels[drawn]]
    return kept


def _level_letters(grey: np.ndarray, relief: _Relief) -> np.ndarray:
    """Strokes of exactly one grey level, as letters are drawn and echo never is; uint8 0 or 1."""
    places = _amid_equals(grey, relief.rise >= _EQUAL_RISE)
    if not _has_group(places, grey.shape[1]):
        return np.zeros_like(grey)
    amid = np.zeros_like(grey)
    amid.ravel()[places] = 1
    num, labels = cv2.connectedComponents(amid, connectivity=8, ltype=cv2.CV_32S)
    label, level = labels.ravel()[places], grey.ravel()[places].astype(np.float64)
    size = np.maximum(np.bincount(label, minlength=num), 1)
    mean = np.bincount(label, level, minlength=num) / size
    variance = np.bincount(label, level**2, minlength=num) / size - mean**2
    upright = np.bincount(label, relief.is_upright(places), minlength=num)
    keep = (size >= _EQUAL_PX) & (variance < 1) & (upright >= _EQUAL_UPRIGHT * size)
    keep[0] = False
    if not keep.any():
        return np.zeros_like(grey)
    letters = keep.astype(np.uint8)[labels]
    level_nearby = cv2.dilate(letters * grey, np.ones(_EQUAL_REACH_PX, np.uint8))
    rest = (cv2.absdiff(level_nearby, grey) <= 1) & (relief.rise >= _EQUAL_REST)
    return letters | (rest & (level_nearby > 0)).astype(np.uint8)


def _amid_equals(grey: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """Thin pixels with two or more thin neighbours of the same grey level, as places in the flat
    picture.

    No thin pixel is black, since it rises above its flanks; the others are made so. None lies at
    the rim of the picture, where the neighbours in the flat one are others.
    """
    levels, width = (grey * thin.view(np.uint8)).ravel(), grey.shape[1]
    like = np.zeros_like(levels)
    for step in (1, width - 1, width, width + 1):
        equal = (levels[step:] == levels[:-step]).view(np.uint8)
        like[step:] += equal
        like[:-step] += equal
    return np.flatnonzero((like >= 2) & thin.ravel())


def _has_group(places: np.ndarray, width: int) -> bool:
    """Whether `_EQUAL_PX` pixels that touch can be among them: two by two squares would hold them.

    Labels of the whole picture take five times as long.
    """
    if len(places) < _EQUAL_PX:
        return False
    side = _EQUAL_PX
    rows, columns = np.divmod(places, width)
    shape = (rows[-1] // side + 2, width // side + 2)
    squares = np.bincount(rows // side * shape[1] + columns // side, minlength=shape[0] * shape[1])
    squares = squares.reshape(shape)
    beside = squares[:, 1:] + squares[:, :-1]
    return bool((beside[1:] + beside[:-1]).max() >= _EQUAL_PX)


def _ruled_lines(grey: np.ndarray, scale: float) -> np.ndarray:
    """Upright and level lines of one grey level, darker on both sides; uint8 0 or 1."""
    found = np.zeros_like(grey)
    for turned, line_px in ((False, _UPRIGHT_LINE_PX), (True, _LEVEL_LINE_PX)):
        length = max(12, round(line_px * scale))
        picture = cv2.transpose(grey) if turned else grey
        line = np.ones((length, 1), np.uint8)
        lowest = cv2.erode(picture, line)
        spread = cv2.subtract(cv2.dilate(picture, line), lowest)
        drawn = (spread <= _LINE_FLATNESS) & (lowest >= _LINE_LEVEL - _LINE_FLATNESS)
        if not drawn.any():
            continue
        level = cv2.blur(picture, (1, length))
        drawn &= (level >= _LINE_LEVEL) & (level < _CLIPPED)
        # The darkest of the five px on the left, and of the five on the right.
        side = np.ones((1, 5), np.uint8)
        flank = cv2.max(
            cv2.erode(level, side, anchor=(4, 0)), cv2.erode(level, side, anchor=(0, 0))
        )
        drawn &= cv2.subtract(level, flank) >= _LINE_CONTRAST
        if drawn.any():
            grown = cv2.dilate(drawn.view(np.uint8), line)
            found |= cv2.transpose(grown) if turned else grown
    return found


def _coloured(part: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels with a colour of their own beyond the tint of the whole frame; uint8 0 or 1."""
    red, green, blue = cv2.split(part)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    if chroma.max() <= _COLOUR_STEP:
        return np.zeros_like(grey)
    # Every fourth pixel tells the tint well enough.
    lit = (inside[::4, ::4] > 0) & (grey[::4, ::4] > 40)
    tint = float(np.median(chroma[::4, ::4][lit] / grey[::4, ::4][lit])) if lit.any() else 0.0
    expected = cv2.convertScaleAbs(grey, alpha=tint, beta=_COLOUR_STEP)
    return cv2.medianBlur((chroma > expected).astype(np.uint8), 3)
