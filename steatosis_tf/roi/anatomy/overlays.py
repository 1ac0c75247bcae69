"""Find what a scanner drew over the echo: calipers, lines, text, body marks, colour.

A drawn stroke differs from an echo in three ways: it has a colour, or it rises from its
neighbourhood within one or two px where the beam would blur it, or it keeps one grey level along
a line where an echo would speckle.
"""

import cv2
import numpy as np

from steatosis_tf.sources.images import to_grey

# Grey levels by which a coloured pixel's channels differ beyond the frame's own tint.
_COLOUR_STEP = 48
# Least grey level, rise of the body and of the core above both flanks (grey levels), least core in
# px and as a share of the mark, least share of it in upright lines. White strokes; then
# fainter and smoothed ones: speckle looks like them unless there is more of it in one place, and
# diaphragm and capsules do, but those have no upright lines as letters have.
_STROKES = (
    (170, 60, 120, 6, 0.09, 0.0),
    (130, 50, 100, 14, 0.09, 0.15),
    (130, 50, 80, 14, 0.15, 0.15),
)
# Letters of exactly one grey level, however faint: rise above both flanks, px in a row of which
# each has two like it beside it, least share of them in upright lines. The rest of a word lies
# within so many px down and across, and rises at least so much.
_EQUAL_RISE, _EQUAL_PX, _EQUAL_UPRIGHT = 30, 8, 0.15
_EQUAL_REACH_PX, _EQUAL_REST = (9, 25), 15
# Painting over: gaps in a word that are painted too, and the size of the pieces of speckle.
_WORD_PX, _PIECE_PX = 7, 8
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
    top, left, height, width = _bounds(sector_mask)
    window = (slice(top, top + height), slice(left, left + width))
    inside = sector_mask[window].astype(np.uint8)
    # What lies outside must not decide what is found inside.
    part = cv2.copyTo(np.ascontiguousarray(frame[window]), inside)
    grey = to_grey(part)
    # The sector's own border is a sharp edge too.
    core = cv2.erode(inside, np.ones((5, 5), np.uint8), borderValue=0)
    rise, across = _rise(grey, core)
    marks = _strokes(grey, rise, across) | _ruled_lines(grey, scale=frame.shape[0] / 600)
    marks |= _level_letters(grey, rise, across)
    dark = cv2.bitwise_not(grey)
    marks |= _level_letters(dark, *_rise(dark, core))
    if part.ndim == 3:
        marks |= _coloured(part, grey, inside)
    found = np.zeros(frame.shape[:2], bool)
    found[window] = (cv2.dilate(marks * core, np.ones((3, 3), np.uint8)) * inside).astype(bool)
    return found


def overlay_fraction(overlay_mask: np.ndarray, sector_mask: np.ndarray) -> float:
    """Share of the sector's pixels that are marks, 0 to 1."""
    return float(overlay_mask[sector_mask].mean())


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
    marks = overlay_mask.astype(np.uint8)
    if not marks.any():
        return grey
    # Smoothed letters have a rim, and what was missed inside a word would tell what it was.
    around = cv2.morphologyEx(cv2.dilate(marks, np.ones((3, 3), np.uint8)), cv2.MORPH_CLOSE,
                              np.ones((_WORD_PX, _WORD_PX), np.uint8))  # fmt: skip
    painted = (around > 0) & sector_mask
    echo = (sector_mask & ~painted).astype(np.float32)
    level = _local_mean(grey, echo)
    texture = (grey - level) * echo
    filled = grey.copy()
    rows, columns = np.nonzero(painted)
    # The nearest echo to the left or right, above or below, at the same distance for all pixels of
    # a mark as far as possible: speckle is copied in pieces.
    for step in range(_PIECE_PX, 8 * _PIECE_PX, _PIECE_PX // 2):
        for down, right in ((0, step), (0, -step), (step, 0), (-step, 0)):
            y = np.clip(rows + down, 0, grey.shape[0] - 1)
            x = np.clip(columns + right, 0, grey.shape[1] - 1)
            ready = echo[y, x] > 0
            values = level[rows[ready], columns[ready]] + texture[y[ready], x[ready]]
            filled[rows[ready], columns[ready]] = np.clip(np.round(values), 0, 255)
            rows, columns = rows[~ready], columns[~ready]
    filled[rows, columns] = np.round(level[rows, columns])
    return filled


def _local_mean(grey: np.ndarray, echo: np.ndarray) -> np.ndarray:
    """Mean of the echo around each pixel, `(height, width)` float32, wider where it is scarce."""
    level = np.full(grey.shape, float(grey[echo > 0].mean()) if echo.any() else 0.0, np.float32)
    for side in (65, 33, 17):
        weight = cv2.blur(echo, (side, side))
        mean = cv2.blur(grey * echo, (side, side)) / np.maximum(weight, 1e-6)
        share = np.minimum(4 * weight, 1)
        level = share * mean + (1 - share) * level
    return level


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return top, left, height, width


def _rise(grey: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel stands out of both its flanks, `(height, width)` uint8; and the same
    across each of four ways, `(4, height, width)`: left and right, above and below, diagonals."""
    step = 3
    padded = cv2.copyMakeBorder(grey, step, step, step, step, cv2.BORDER_REPLICATE)
    height, width = grey.shape

    def shifted(down: int, right: int) -> np.ndarray:
        return padded[step + down : step + down + height, step + right : step + right + width]

    across = np.empty((4, height, width), np.uint8)
    for risen, (down, right) in zip(
        across, ((0, step), (step, 0), (step, step), (step, -step)), strict=True
    ):
        cv2.subtract(grey, cv2.max(shifted(down, right), shifted(-down, -right)), dst=risen)
    rise = cv2.max(cv2.max(across[0], across[1]), cv2.max(across[2], across[3]))
    return rise * inside, across


def _ways(across: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Across which of the four ways pixels (places in the flat picture) rise most; for few."""
    return np.asarray(across.reshape(4, -1)[:, places].argmax(axis=0))


def _strokes(grey: np.ndarray, rise: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Bright strokes up to four px wide with sharp flanks on both sides; uint8 0 or 1."""
    marks = np.zeros_like(grey)
    for level, body, core, min_px, *shares in _STROKES:
        bright = grey >= level
        risen = bright & (rise >= core)
        if np.count_nonzero(risen) >= min_px:
            marks |= _with_core(bright & (rise >= body), risen, across, min_px, *shares)
    if not marks.any():
        return marks
    level = _BESIDE_LEVEL * np.median(grey[marks > 0])
    beside = cv2.dilate(marks, np.ones((_BESIDE_PX, 2 * _BESIDE_PX + 1), np.uint8)) > 0
    marks |= (beside & (rise >= _BESIDE_RISE) & (grey >= level)).astype(np.uint8)
    # Crossings and corners have no dark flank; they are as bright as the strokes they join.
    filled = cv2.morphologyEx(marks, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return filled * (grey >= level)


def _with_core(
    body: np.ndarray,
    core: np.ndarray,
    across: np.ndarray,
    min_px: int,
    min_share: float,
    min_upright: float,
) -> np.ndarray:
    """Those strokes whose core is large enough, and upright enough; uint8 0 or 1."""
    strokes = body.astype(np.uint8)
    # Dots of a dotted line are one mark.
    joined = cv2.dilate(strokes, np.ones((5, 5), np.uint8))
    num, labels = cv2.connectedComponents(joined, connectivity=8, ltype=cv2.CV_16U)
    places = np.flatnonzero(core)
    label_of_core = labels.ravel()[places]
    num_core = np.bincount(label_of_core, minlength=num)
    size = np.bincount(labels.ravel()[np.flatnonzero(joined.view(bool))], minlength=num)
    ways = np.bincount(label_of_core * 4 + _ways(across, places), minlength=4 * num).reshape(num, 4)
    keep = (num_core >= min_px) & (num_core >= min_share * size)
    keep &= ways[:, 0] >= min_upright * num_core
    keep[0] = False
    kept, drawn = np.zeros_like(strokes), np.flatnonzero(body)
    kept.ravel()[drawn] = keep[labels.ravel()[drawn]]
    return kept


def _level_letters(grey: np.ndarray, rise: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Strokes of exactly one grey level, as letters are drawn and echo never is; uint8 0 or 1."""
    amid = _amid_equals(grey, rise >= _EQUAL_RISE)
    places = np.flatnonzero(amid.view(bool))
    if len(places) < _EQUAL_PX:
        return np.zeros_like(grey)
    num, labels = cv2.connectedComponents(amid, connectivity=8, ltype=cv2.CV_32S)
    label, level = labels.ravel()[places], grey.ravel()[places].astype(np.float64)
    size = np.maximum(np.bincount(label, minlength=num), 1)
    mean = np.bincount(label, level, minlength=num) / size
    variance = np.bincount(label, level**2, minlength=num) / size - mean**2
    upright = np.bincount(label, _ways(across, places) == 0, minlength=num)
    keep = (size >= _EQUAL_PX) & (variance < 1) & (upright >= _EQUAL_UPRIGHT * size)
    keep[0] = False
    if not keep.any():
        return np.zeros_like(grey)
    letters = keep.astype(np.uint8)[labels]
    level_nearby = cv2.dilate(letters * grey, np.ones(_EQUAL_REACH_PX, np.uint8))
    rest = (cv2.absdiff(level_nearby, grey) <= 1) & (rise >= _EQUAL_REST)
    return letters | (rest & (level_nearby > 0)).astype(np.uint8)


def _amid_equals(grey: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """1 on thin pixels with two or more thin neighbours of the same grey level; uint8.

    A few in a hundred pixels are thin, so they are looked at one by one. None of them is black,
    since it rises above its flanks; the others are made so.
    """
    levels = cv2.copyMakeBorder(grey * thin, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    flat, width = levels.ravel(), levels.shape[1]
    places = np.flatnonzero(flat > 0)
    own = flat[places]
    like = np.zeros(len(places), np.uint8)
    for step in (1, width - 1, width, width + 1):
        like += flat[places + step] == own
        like += flat[places - step] == own
    amid = np.zeros_like(levels)
    amid.ravel()[places[like >= 2]] = 1
    return np.ascontiguousarray(amid[1:-1, 1:-1])


def _ruled_lines(grey: np.ndarray, scale: float) -> np.ndarray:
    """Upright and level lines of one grey level, darker on both sides; uint8 0 or 1."""
    found = np.zeros_like(grey)
    for turned, line_px in ((False, _UPRIGHT_LINE_PX), (True, _LEVEL_LINE_PX)):
        length = max(12, round(line_px * scale))
        picture = cv2.transpose(grey) if turned else grey
        line = np.ones((length, 1), np.uint8)
        spread = cv2.subtract(cv2.dilate(picture, line), cv2.erode(picture, line))
        level = cv2.blur(picture, (1, length))
        drawn = (spread <= _LINE_FLATNESS) & (level >= _LINE_LEVEL) & (level < _CLIPPED)
        if not drawn.any():
            continue
        # The darkest of the five px on the left, and of the five on the right.
        side = np.ones((1, 5), np.uint8)
        flank = cv2.max(
            cv2.erode(level, side, anchor=(4, 0)), cv2.erode(level, side, anchor=(0, 0))
        )
        drawn &= cv2.subtract(level, flank) >= _LINE_CONTRAST
        if drawn.any():
            grown = cv2.dilate(drawn.astype(np.uint8), line)
            found |= cv2.transpose(grown) if turned else grown
    return found


def _coloured(part: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels with a colour of their own beyond the tint of the whole frame; uint8 0 or 1."""
    red, green, blue = cv2.split(part)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    # Every fourth pixel tells the tint well enough.
    lit = (inside[::4, ::4] > 0) & (grey[::4, ::4] > 40)
    tint = float(np.median(chroma[::4, ::4][lit] / grey[::4, ::4][lit])) if lit.any() else 0.0
    expected = cv2.convertScaleAbs(grey, alpha=tint, beta=_COLOUR_STEP)
    return cv2.medianBlur((chroma > expected).astype(np.uint8), 3)
