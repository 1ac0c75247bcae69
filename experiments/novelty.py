"""Are pictures that a grade makes no sense of told from those that it does?

    python -m experiments.novelty --data DATA_DIR --out runs/joint

after `experiments/joint.py` with the same folders. The distance of `joint.Novelty`, fitted to the
44 patients of byra2018 with limits from left-out ones, on: those patients, each by a fit without
it; their frames upside down, mirrored in depth, with settings turned; fans of theirs filled with
photographs, one grey, noise; ultrasound of other organs that pydicom brings; `aul`, livers of many
scanners. Photographs: those in the packages scikit-image, scikit-learn and matplotlib, in squares.

Time: 6 minutes of processor time. Result: docs/research/best.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from experiments.joint import SETTING_STEP, load
from experiments.joint_features import BEAMS, SETTINGS, View, pooled, row_means, taps_of
from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.rules import Novelty, fit_novelty
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import model_input
from steatosis_tf.sources.images import read_frame, to_grey

_SQUARE_PX = 200
_NUM_FILLED = 100
_SEED = 7

Pictures = Iterator[tuple[str, np.ndarray]]


def photographs() -> list[np.ndarray]:
    """Squares of photographs, grey uint8, in an order that the seed shuffles."""
    import matplotlib as mpl
    import skimage.data
    import sklearn.datasets

    names = "astronaut camera chelsea coffee coins rocket moon hubble_deep_field motorcycle_left"
    folder = Path(skimage.data.__file__).parent
    paths = [next(folder.glob(f"{name}.*")) for name in names.split()]
    paths.append(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    paths += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    squares = []
    for path in paths:
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for top in range(0, grey.shape[0] - _SQUARE_PX + 1, _SQUARE_PX):
            for left in range(0, grey.shape[1] - _SQUARE_PX + 1, _SQUARE_PX):
                squares.append(grey[top : top + _SQUARE_PX, left : left + _SQUARE_PX])
    order = np.random.default_rng(_SEED).permutation(len(squares))
    return [squares[place] for place in order]


def filled(frames: list[np.ndarray], fill: Callable[[int, tuple], np.ndarray]) -> Pictures:
    """The sectors of frames, filled with something else."""
    for place in range(_NUM_FILLED):
        frame = to_grey(frames[place % len(frames)])
        mask = find_sector(frame).mask
        yield f"{place}", np.where(mask, fill(place, frame.shape), 0).astype(np.uint8)


def mirrored(frame: np.ndarray) -> np.ndarray:
    """The frame whose every beam runs backwards: the sector stays where it is."""
    fan, shape = find_sector(frame).fan, frame.shape[:2]
    depth = fan.far_px - fan.near_px - fan.depth_px(shape)
    angle = np.radians(fan.angle_deg(shape))
    x = fan.apex_x_px + (fan.near_px + depth) * np.sin(angle)
    y = fan.apex_y_px + fan.row_stretch * (fan.near_px + depth) * np.cos(angle)
    turned = cv2.remap(to_grey(frame), x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)
    return np.where(fan.mask(shape), turned, 0).astype(np.uint8)


def dicom_frames() -> Pictures:
    """First frame of every ultrasound file that pydicom brings."""
    import pydicom
    from pydicom.data import get_testdata_files
    from pydicom.pixels import convert_color_space

    for path in sorted(get_testdata_files("*.dcm")):
        try:
            dataset = pydicom.dcmread(path)
            if dataset.get("Modality") != "US":
                continue
            pixels = dataset.pixel_array
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
                pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
            elif dataset.PhotometricInterpretation.startswith("YBR"):
                pixels = convert_color_space(pixels, dataset.PhotometricInterpretation, "RGB")
        except (
            ValueError, RuntimeError, NotImplementedError, AttributeError,
            pydicom.errors.InvalidDicomError,
        ) as error:  # fmt: skip
            print(f"{Path(path).name}: {error}", file=sys.stderr)
            continue
        frame = pixels[0] if int(dataset.get("NumberOfFrames", 1)) > 1 else pixels
        yield Path(path).name, np.ascontiguousarray(frame)


def sets_of(frames: list[np.ndarray], aul_dir: Path) -> dict[str, Callable[[], Pictures]]:
    """Name -> pictures as they would be uploaded."""
    squares = photographs()
    random = np.random.default_rng(_SEED)

    def photograph(place: int, shape: tuple) -> np.ndarray:
        return cv2.resize(squares[place % len(squares)], shape[::-1])

    def one_grey(place: int, shape: tuple) -> np.ndarray:
        return np.full(shape, 10 + 2.4 * place)

    def noise(place: int, shape: tuple) -> np.ndarray:
        spread = (8, 20, 40, 80)[place % 4]
        coarse = random.normal(
            60 + 60 * (place % 3), spread, [side // (1 + place % 5) for side in shape]
        )
        return np.clip(cv2.resize(coarse, shape[::-1]), 1, 255)

    paths = sorted((aul_dir).rglob("*.jpg"))
    return {
        "photographs in a fan": lambda: filled(frames, photograph),
        "one grey in a fan": lambda: filled(frames, one_grey),
        "noise in a fan": lambda: filled(frames, noise),
        "upside down": lambda: ((str(i), cv2.flip(one, 0)) for i, one in enumerate(frames)),
        "mirrored in depth": lambda: ((str(i), mirrored(one)) for i, one in enumerate(frames)),
        "other organs (pydicom)": dicom_frames,
        "aul": lambda: ((path.name, read_frame(path)) for path in paths),
    }


def features_of(
    name: str, make: Callable[[], Pictures], store: Path
) -> tuple[list[str], np.ndarray]:
    """Names and features of what has a sector; a name alone, with NaN, of what has none."""
    path = store / f"{name.replace(' ', '_')}.npz"
    if not path.is_file():
        names, pictures, places = [], [], []
        for place, (one, frame) in enumerate(tqdm(make(), name, file=sys.stderr)):
            names.append(one)
            try:
                pictures.append(model_input(frame, find_sector(frame).fan, view=BEAMS))
                places.append(place)
            except ValueError:
                continue
        values = np.full((len(names), 640), np.nan)
        if pictures:
            values[places] = pooled(taps_of(pictures, View(name)))
        store.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, names=np.array(names), values=values)
    with np.load(path) as stored:
        return stored["names"].tolist(), stored["values"]


def kinds(novelty: Novelty, values: np.ndarray) -> np.ndarray:
    """0 graded, 1 score only, 2 unable, for features; what has no sector is unable."""
    known = ~np.isnan(values).any(axis=1)
    found = np.full(len(values), 2)
    distance = novelty.distance(values[known])
    limits = np.array([novelty.score_limit, novelty.unable_limit])
    found[known] = (distance[:, None] > limits).sum(axis=1)
    return found


def left_out_kinds(features: np.ndarray, ids: np.ndarray) -> list[int]:
    """Kind of each patient's answer by a fit without it: graded if half of its frames are."""
    answers = []
    for patient in tqdm(np.unique(ids), "left-out patients", file=sys.stderr):
        mine = ids == patient
        of_frames = kinds(fit_novelty(features[~mine], ids[~mine]), features[mine])
        usable = of_frames[of_frames < 2]
        graded = len(usable) and 2 * (usable == 0).sum() >= len(usable)
        answers.append(2 if not len(usable) else 0 if graded else 1)
    return answers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds byra2018/ and aul/")
    parser.add_argument("--out", type=Path, required=True, help="folder of experiments/joint.py")
    arguments = parser.parse_args(argv)
    study, store = load(arguments.data / "byra2018", arguments.out), arguments.out / "novelty"
    maps = row_means(
        View("beam space"), study.frames, study.manifest_path, arguments.out / "features"
    )
    features = pooled(maps)
    first = study.frames[study.frames["frame_index"].astype(int) == 0]
    frames = [read_frame(frame_path(study.manifest_path, one)) for one in first["path"]]
    novelty = fit_novelty(features, study.ids)
    rows = [("byra2018, patients left out", np.array(left_out_kinds(features, study.ids)), None)]
    for name, make in sets_of(frames, arguments.data / "aul").items():
        names, values = features_of(name, make, store)
        rows.append((name, kinds(novelty, values), values))
        if name.startswith("other"):
            print(dict(zip(names, rows[-1][1].tolist(), strict=True)))
    for setting, change in SETTINGS.items():
        few = study.frames[study.frames["frame_index"].astype(int) % SETTING_STEP == 0]
        view = View(setting, change=change)
        turned = row_means(
            view, few.reset_index(drop=True), study.manifest_path, arguments.out / "features"
        )
        rows.append((setting, kinds(novelty, pooled(turned)), pooled(turned)))
    lines = ["| | number | graded | score only | unable | of these no sector | distance, median |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, of, values in rows:
        counts = " | ".join(str(int((of == kind).sum())) for kind in range(3))
        known = np.empty((0, 0)) if values is None else values[~np.isnan(values).any(axis=1)]
        middle = f"{np.median(novelty.distance(known)):.2f}" if len(known) else "-"
        absent = 0 if values is None else len(values) - len(known)
        lines.append(f"| {name} | {len(of)} | {counts} | {absent} | {middle} |")
    text = (
        f"Grades to a distance of {novelty.score_limit:.2f}, scores to {novelty.unable_limit:.2f} "
        "left-out patients.\n\n" + "\n".join(lines) + "\n"
    )
    with replacing(arguments.out / "novelty.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
