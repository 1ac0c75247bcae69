"""The simulated scanner and anatomy: probe, liver, vessels, diaphragm, right kidney, near field."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import fft

NUM_DEPTHS = 384
NUM_LINES = 192
# The grid is this much wider than the sector: the lateral filter is circular, and what it wraps
# from one edge to the other must stay outside the picture.
LINE_MARGIN = 1.08

#: Tissues in the label map of a scene.
LIVER, VESSEL, CORTEX, OTHER = 1, 2, 3, 0


@dataclass(frozen=True)
class Scanner:
    """Probe, settings and sector of one patient; grid vectors are float32."""

    near_radius_mm: float
    half_angle: float  # rad
    depth_mm: float
    px_per_mm: float
    apex_x_px: float
    apex_y_px: float
    frequency_mhz: float
    focus_mm: float
    beam_width_mm: float  # standard deviation of the lateral beam profile at the focus
    pulse_samples: float  # standard deviation of the axial pulse
    tgc_db_per_cm: float
    noise_db: float
    dynamic_range_db: float
    mean_grey: float

    @property
    def depths_mm(self) -> np.ndarray:
        """Depth below the probe of each grid row, `(NUM_DEPTHS, 1)` float32."""
        return np.linspace(0, self.depth_mm, NUM_DEPTHS, dtype=np.float32)[:, None]

    @property
    def angles(self) -> np.ndarray:
        """Beam angle of each grid column, `(1, NUM_LINES)` float32, rad, 0 straight down."""
        edge = self.half_angle * LINE_MARGIN
        return np.linspace(-edge, edge, NUM_LINES, dtype=np.float32)[None, :]


@dataclass(frozen=True)
class Scene:
    """Maps on the (depth x angle) grid, `(NUM_DEPTHS, NUM_LINES)`."""

    amplitude: np.ndarray  # float32, scatterer amplitude, renal cortex = 1
    mirror: np.ndarray  # float32, coherent echo of walls and diaphragm
    transfer: np.ndarray  # float32, amplitude left after attenuation, before TGC
    labels: np.ndarray  # uint8, LIVER, VESSEL, CORTEX or OTHER


def draw_scanner(generator: np.random.Generator, size_px: tuple[int, int]) -> Scanner:
    """Draw probe, settings and place in the frame of one patient's scanner."""
    draw = generator.uniform
    near, half_angle, depth = draw(8, 55), math.radians(draw(37, 52)), draw(145, 178)
    height_mm = near + depth - near * math.cos(half_angle)
    width_mm = 2 * (near + depth) * math.sin(half_angle)
    height, width = size_px
    scale = min(0.86 * height / height_mm, 0.92 * width / width_mm) * draw(0.93, 1.0)
    frequency = draw(2.6, 3.4)
    return Scanner(
        near_radius_mm=near,
        half_angle=half_angle,
        depth_mm=depth,
        px_per_mm=scale,
        apex_x_px=width * draw(0.49, 0.51),
        apex_y_px=height * draw(0.02, 0.04) - near * math.cos(half_angle) * scale,
        frequency_mhz=frequency,
        focus_mm=draw(60, 100),
        beam_width_mm=draw(1.0, 1.4),
        pulse_samples=draw(1.2, 1.6),
        tgc_db_per_cm=2 * 0.39 * frequency + generator.normal(0, 0.08),
        noise_db=draw(-74, -68),
        dynamic_range_db=draw(64, 82),
        mean_grey=draw(54, 96),
    )


def amplitude_of(level_db: np.ndarray | float) -> np.ndarray:
    """Amplitude, float32, of a level in dB."""
    return np.exp(np.asarray(level_db, np.float32) * np.float32(math.log(10) / 20))


def _axial_filter(field: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Convolve with the pulse along depth; white noise keeps its power."""
    kernel = cv2.getGaussianKernel(11, scanner.pulse_samples, cv2.CV_32F)
    pairs = field.view(np.float32).reshape(NUM_DEPTHS, NUM_LINES, 2)
    one = np.ones((1, 1), np.float32)
    filtered = cv2.sepFilter2D(pairs, -1, one, kernel / np.linalg.norm(kernel))
    return filtered.reshape(NUM_DEPTHS, -1).view(np.complex64)


def _white_noise(generator: np.random.Generator) -> np.ndarray:
    """Circular complex Gaussian noise of power 1 on the grid, complex64."""
    pairs = generator.standard_normal((NUM_DEPTHS, 2 * NUM_LINES), np.float32)
    return (pairs * np.float32(math.sqrt(0.5))).view(np.complex64)


def echoes_of(generator: np.random.Generator, scene: Scene, scanner: Scanner) -> np.ndarray:
    """Scatterers and mirrors through the point-spread function, then attenuated; complex64.

    The lateral filter is applied per row in the frequency domain, because the beam is narrowest
    at the focus; speckle power is the same at every depth.
    """
    depths = scanner.depths_mm
    spread = np.sqrt(1 + np.square((depths - scanner.focus_mm) / 65))
    line_mm = (depths + scanner.near_radius_mm) * (2 * scanner.half_angle * LINE_MARGIN / NUM_LINES)
    width_lines = np.clip(scanner.beam_width_mm * spread / line_mm, 0.9, 16)
    frequencies = fft.fftfreq(NUM_LINES).astype(np.float32)
    response = np.exp(-2 * np.square(np.float32(math.pi) * width_lines * frequencies))
    response /= np.sqrt(np.mean(np.square(response), axis=1, keepdims=True))
    field = _white_noise(generator) * scene.amplitude + scene.mirror
    blurred = fft.ifft(fft.fft(field, axis=1) * response.astype(np.float32), axis=1)
    return scene.transfer * _axial_filter(np.ascontiguousarray(blurred), scanner)


def _tgc(scanner: Scanner) -> np.ndarray:
    return amplitude_of(scanner.depths_mm * np.float32(scanner.tgc_db_per_cm / 10))


def _decibel(amplitude: np.ndarray) -> np.ndarray:
    return np.float32(20) * np.log10(np.maximum(amplitude, np.float32(1e-6)))


def usual_gain_db(still: np.ndarray, scanner: Scanner) -> float:
    """Gain in dB that brings the sector to the mean grey this sonographer likes."""
    noise = amplitude_of(scanner.noise_db)
    level_db = _decibel(np.maximum(np.abs(still), noise) * _tgc(scanner))
    area = scanner.depths_mm[:, 0] + scanner.near_radius_mm
    wanted_db = scanner.mean_grey * scanner.dynamic_range_db / 255
    return wanted_db - float(np.average(level_db.mean(axis=1), weights=area))


def acquire(
    generator: np.random.Generator, looks: list[tuple[np.ndarray, np.ndarray]], scanner: Scanner
) -> np.ndarray:
    """One frame on the grid, dB before gain, float32: tissue has moved, noise is new.

    Args:
        generator: source of motion and noise.
        looks: echoes of the scatterers in the plane, and of others that enter it by motion.
        scanner: settings.
    """
    lines, samples = generator.normal(0, 0.8, 2)
    motion = np.array([[1, 0, lines], [0, 1, samples]])
    turn = math.radians(abs(generator.normal(0, 14)))
    noise = _axial_filter(_white_noise(generator), scanner) * amplitude_of(scanner.noise_db)
    power = np.zeros(noise.shape, np.float32)
    for still, other in looks:
        tissue = np.float32(math.cos(turn)) * still + np.float32(math.sin(turn)) * other
        pairs = tissue.view(np.float32).reshape(NUM_DEPTHS, NUM_LINES, 2)
        moved = cv2.warpAffine(
            pairs, motion, (NUM_LINES, NUM_DEPTHS), None, cv2.INTER_CUBIC, cv2.BORDER_REFLECT
        )
        received = moved.reshape(NUM_DEPTHS, -1).view(np.complex64) + noise
        power += np.square(received.real) + np.square(received.imag)
        # Moved by half the grid, the noise is as good as new and cheaper.
        noise = np.roll(noise, NUM_LINES // 2, axis=1)
    return _decibel(np.sqrt(power / len(looks)) * _tgc(scanner))


def scan_conversion(
    scanner: Scanner, size_px: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid column and row of each pixel (float32, for cv2.remap) and the sector (bool)."""
    height, width = size_px
    scale = np.float32(1 / scanner.px_per_mm)
    x = (np.arange(width, dtype=np.float32) - np.float32(scanner.apex_x_px)) * scale
    y = (np.arange(height, dtype=np.float32) - np.float32(scanner.apex_y_px)) * scale
    angles = np.arctan2(x[None, :], y[:, None])
    depths = np.hypot(x[None, :], y[:, None]) - np.float32(scanner.near_radius_mm)
    inside = (np.abs(angles) <= scanner.half_angle) & (depths >= 0) & (depths <= scanner.depth_mm)
    edge = scanner.half_angle * LINE_MARGIN
    columns = (angles + np.float32(edge)) * np.float32((NUM_LINES - 1) / (2 * edge))
    rows = depths * np.float32((NUM_DEPTHS - 1) / scanner.depth_mm)
    return columns, rows, inside


def draw_marks(
    generator: np.random.Generator, scanner: Scanner, size_px: tuple[int, int]
) -> np.ndarray:
    """What a scanner burns in: SIMULATED, a grey bar, depth ticks each cm, a frame number."""
    height, width = size_px
    canvas = np.zeros(size_px, np.uint8)
    unit = height / 434

    def write(text: str, x: float, y: float, scale: float) -> None:
        place = round(x), round(y)
        size = max(scale * unit, 0.3)
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, 200, 1, cv2.LINE_AA)

    write("SIMULATED", 8 * unit, 20 * unit, 0.5)
    write(f"{generator.integers(50, 95)} FR", width - 62 * unit, height - 8 * unit, 0.4)
    bar_height, bar_width = round(100 * unit), round(18 * unit)
    top, left = round(26 * unit), width - round(26 * unit)
    bar = np.linspace(210, 10, bar_height).astype(np.uint8)
    canvas[top : top + bar_height, left : left + bar_width] = bar[:, None]
    sine, cosine = math.sin(scanner.half_angle), math.cos(scanner.half_angle)
    for centimetre in range(1, int(scanner.depth_mm / 10) + 1):
        radius = (scanner.near_radius_mm + 10 * centimetre) * scanner.px_per_mm
        x, y = scanner.apex_x_px - radius * sine, scanner.apex_y_px + radius * cosine
        long = 8 if centimetre % 5 == 0 else 3
        start = round(x - 4 * cosine), round(y - 4 * sine)
        end = round(x - (4 + long) * cosine), round(y - (4 + long) * sine)
        cv2.line(canvas, start, end, 180, 1, cv2.LINE_AA)
        if centimetre % 5 == 0:
            write(str(centimetre), x - 34 * unit * cosine, y - 14 * unit * sine, 0.35)
    return canvas


@dataclass(frozen=True)
class Tissue:
    """What fat does to one liver, its scatter between patients drawn."""

    fat: float  # 0 to 1
    hepatorenal_db: float
    attenuation_db_per_cm: float


def draw_tissue(generator: np.random.Generator, fat_percent: float, scanner: Scanner) -> Tissue:
    """Draw the tissue of a liver with so much fat (0 to 100 percent)."""
    fat = fat_percent / 100
    per_mhz = 0.53 + 0.34 * fat**0.8 + generator.normal(0, 0.02)  # dB / cm / MHz, one way
    return Tissue(
        fat=fat,
        hepatorenal_db=0.8 + 11 * fat**0.7 + generator.normal(0, 1),
        attenuation_db_per_cm=2 * per_mhz * scanner.frequency_mhz,
    )


def draw_scene(generator: np.random.Generator, tissue: Tissue, scanner: Scanner) -> Scene:
    """Draw the anatomy of one patient on the scanner's grid."""
    ranges = scanner.depths_mm + np.float32(scanner.near_radius_mm)
    x = ranges * np.sin(scanner.angles)
    z = ranges * np.cos(scanner.angles) - np.float32(scanner.near_radius_mm)
    echo = np.float32(tissue.hepatorenal_db) + np.float32(0.3) * _smooth_noise(generator, 14, 9)
    mirror = np.zeros_like(echo)
    labels = np.full(echo.shape, LIVER, np.uint8)
    maps = (echo, mirror, labels)
    loss = np.full_like(echo, tissue.attenuation_db_per_cm)
    _add_vessels(generator, tissue, x, z, maps)
    _add_diaphragm(generator, tissue, x, z, maps)
    beyond = labels == OTHER
    kidney = _add_kidney(generator, x, z, maps)
    _add_near_field(generator, scanner, maps)
    loss[kidney | beyond] = 2 * 0.65 * scanner.frequency_mhz
    step_cm = scanner.depth_mm / 10 / (NUM_DEPTHS - 1)
    lost_db = np.cumsum(loss, axis=0) * np.float32(step_cm)
    # No truth box behind the kidney, whose loss differs, nor in the dim edges.
    labels[np.logical_or.accumulate(kidney) & (labels == LIVER)] = OTHER
    # Uneven contact of the probe: fine in the middle, poor at the edges.
    edge = np.clip(np.abs(scanner.angles) / np.float32(scanner.half_angle) - 0.78, 0, None)
    contact = 0.15 * _smooth_noise(generator, 1, 9) - edge * generator.uniform(5, 60, 2)[
        (scanner.angles > 0).astype(int)
    ].astype(np.float32)
    labels[:, edge[0] > 0] = OTHER
    return Scene(
        amplitude=amplitude_of(echo),
        mirror=mirror,
        transfer=amplitude_of(contact - lost_db),
        labels=labels,
    )


_Maps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _smooth_noise(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Noise of standard deviation about 1 with `rows` x `columns` bumps over the grid."""
    coarse = generator.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (NUM_LINES, NUM_DEPTHS), interpolation=cv2.INTER_CUBIC)


def _ellipse_distance(
    x: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    tilt: float,
) -> np.ndarray:
    """About the distance in mm to an ellipse, negative inside; exact on the border."""
    cosine, sine = np.float32(math.cos(tilt)), np.float32(math.sin(tilt))
    dx, dz = x - np.float32(centre[0]), z - np.float32(centre[1])
    along = (dx * cosine + dz * sine) / np.float32(axes[0])
    across = (dz * cosine - dx * sine) / np.float32(axes[1])
    radius = cv2.magnitude(_aligned(along), _aligned(across), _aligned(along))
    return (radius - 1) * np.float32(min(axes))


def _aligned(values: np.ndarray) -> np.ndarray:
    """A copy, float32, that begins at 64 bytes: where in memory they lie, OpenCV rounds by."""
    buffer = np.empty(values.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + values.nbytes].view(np.float32).reshape(values.shape)
    copy[:] = values
    return copy


def _covered(distance: np.ndarray, blur_mm: float) -> np.ndarray:
    """1 inside (negative distance), 0 outside, a ramp of `blur_mm` between."""
    return np.clip(0.5 - distance / np.float32(blur_mm), 0, 1)


def _line(distance: np.ndarray, width_mm: float) -> np.ndarray:
    return np.exp(-np.square(distance / np.float32(width_mm)))


def _facing(distance: np.ndarray) -> np.ndarray:
    """How squarely a surface meets the beam, 0 to 1: a mirror seen from aside returns nothing."""
    along_beam = np.abs(np.diff(distance, axis=0, append=distance[-1:]))
    return (along_beam / max(float(along_beam.max()), 1e-6)) ** 3


def _add_vessels(
    generator: np.random.Generator, tissue: Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> None:
    echo, mirror, labels = maps
    wall = 0.5 * 10 ** (tissue.hepatorenal_db / 20) * (1 - 0.9 * tissue.fat)
    # A strip beside the kidney stays free of vessels, so that a deep truth box always fits.
    strip = (np.abs(x - np.float32(generator.uniform(22, 28))) < 15) & (z < 110)
    for has_wall in generator.random(generator.integers(8, 15)) < 0.5:
        side = (-45, 8) if generator.random() < 0.6 else (42, 75)
        centre = generator.uniform(*side), generator.uniform(30, 115)
        axes = generator.uniform(3, 20), generator.uniform(1.8, 3.8)
        distance = _ellipse_distance(x, z, centre, axes, generator.uniform(-1.2, 1.2))
        if (strip & (distance < 4)).any():
            continue
        echo -= (22 - 9 * tissue.fat) * _covered(distance, 1 + 5 * tissue.fat)
        if has_wall:
            mirror += wall * _facing(distance) * _line(distance, 0.8 + 1.5 * tissue.fat)
        labels[distance < 4] = VESSEL


def _add_diaphragm(
    generator: np.random.Generator, tissue: Tissue, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> None:
    echo, mirror, labels = maps
    dome_x, dome_z = generator.uniform(-15, 10), generator.uniform(130, 150)
    aside = x - np.float32(dome_x)
    radius = np.where(aside > 0, np.float32(generator.uniform(75, 110)), np.float32(300))
    distance = z - np.float32(dome_z) + np.square(aside) / (2 * radius)
    level = generator.uniform(-6, 0) + 2 * _smooth_noise(generator, 14, 8)
    level += generator.uniform(2, 7) * np.clip(-aside / 30, 0, 1)  # fat and muscle behind kidney
    distance += 0.7 * _smooth_noise(generator, 1, 18)
    covered = _covered(-distance, 1.5 + 6 * tissue.fat)
    echo += (level - echo) * covered
    strength = generator.uniform(4, 7) * (1 - 0.85 * tissue.fat)
    streaks = np.clip(1 + 0.5 * _smooth_noise(generator, 2, 20), 0, None)
    mirror += strength * _facing(distance) * streaks * _line(distance, 1.3 + 3 * tissue.fat)
    labels[distance > -4] = OTHER


def _add_kidney(
    generator: np.random.Generator, x: np.ndarray, z: np.ndarray, maps: _Maps
) -> np.ndarray:
    """Draw the kidney; returns where it lies, bool."""
    echo, mirror, labels = maps
    centre = generator.uniform(-38, -22), generator.uniform(86, 102)
    axes, tilt = (
        (generator.uniform(48, 56), generator.uniform(24, 28)),
        generator.uniform(0.1, 0.45),
    )
    border = _ellipse_distance(x, z, centre, axes, tilt)
    medulla = border + 0.46 * min(axes)
    sinus_axes = axes[0] * generator.uniform(0.5, 0.6), axes[1] * generator.uniform(0.32, 0.42)
    sinus = _ellipse_distance(x, z, centre, sinus_axes, tilt)
    blotches = _smooth_noise(generator, 36, 18)
    layers = (
        (border - 2.5, 3 + 2 * blotches),  # perirenal fat
        (border, np.float32(0)),
        (medulla, -1.5 + 1.5 * blotches),
        (sinus + 2 * blotches, 8 + 3 * blotches),
    )
    for distance, level in layers:
        echo += (level - echo) * _covered(distance, 1.2)
    mirror *= 1 - _covered(border, 1.2)
    streaks = np.clip(1 + 0.6 * _smooth_noise(generator, 2, 14), 0, None)
    mirror += generator.uniform(0.8, 2.5) * _facing(border) * streaks * _line(border, 0.8)
    labels[border < 4.5] = OTHER
    # Only the near side counts: the far one lies behind the whole kidney.
    near_side = z < centre[1] + math.tan(tilt) * (x - centre[0])
    labels[(border < -2) & (medulla > 0.8) & near_side] = CORTEX
    return border < 0


def _add_near_field(generator: np.random.Generator, scanner: Scanner, maps: _Maps) -> None:
    echo, mirror, labels = maps
    thickness = generator.uniform(16, 30) + 2 * _smooth_noise(generator, 1, 5)
    distance = scanner.depths_mm - thickness.astype(np.float32)
    level = generator.uniform(0, 4) + 3.5 * _smooth_noise(generator, 90, 5)
    echo += (level - echo) * _covered(distance, 3)
    mirror *= distance > 0
    mirror += generator.uniform(0.3, 1.5) * _line(distance, 0.6)
    mirror += 0.8 * _line(scanner.depths_mm, 1.0)
    labels[distance < 4] = OTHER
