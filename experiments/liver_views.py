"""Which pictures show a liver, whatever the scanner? Fits what the shipped model tells them by.

    python -m experiments.liver_views --data DATA_DIR --out runs/ship

DATA_DIR holds `byra2018/` and `aul/`. The rule is a logistic regression on the 640 features of the
shipped network, whose picture is beam space. Livers: `byra2018`, and `aul`, which is of many
scanners; some of them blurred or with settings turned. Not livers: fans of these frames filled with
photographs, one grey, ramps, noise, clouds and plain speckle; livers whose beams run backwards, or
with white and black changed; and simulated phantoms, which a model of patients should refuse. Each
kind counts alike. Beside it the distance from these livers, as they are, by the same eight
directions as the distance from the training patients; no example of anything else enters it.

A picture whose group (patient, image, photograph) has an odd sha256 is kept aside. The photographs
are others than those that `experiments/novelty.py` shows. `ship_byra2018.py` calls `with_rule`; the
command judges what is shipped on what was kept aside, on kinds that no fit has seen, and with rules
that had not seen one kind at all.

Time: 6 minutes of processor time, nearly all of it features, which are kept. Result:
docs/research/best.md.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from steatosis_tf.deploy.bundle import open_bundle
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.rules import Novelty, fit_novelty
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import beam_space, input_shape, model_input
from steatosis_tf.sources.images import read_frame, to_grey
from steatosis_tf.sources.phantom.study import simulate_patient

#: Of the regression on standardised features; ten times more and ten times less gave the same.
STRENGTH = 0.01
_SEED = 11
# Grey levels per dB where a display of 60 dB fills 0 to 255.
_GREY_PER_DB = 255 / 60
_VIEW = "beamspace 384 x 320"
# One in a hundred livers of other scanners may be refused by distance. Half and twice as many, and
# none, were looked at, and some twenty distances (docs/research/best.md).
_NEAR_ENOUGH = 0.99
_LIVERS = ("byra2018", "aul")
#: Not shown by `experiments/novelty.py`.
_PHOTOGRAPHS = (
    "brick", "cell", "clock_motion", "grass", "gravel", "horse", "ihc", "microaneurysms", "page",
    "retina", "text",
)  # fmt: skip

Pictures = Iterator[tuple[str, np.ndarray]]
#: Of pictures `(n, depth, beams)` uint8, `(n, width)`.
Features = Callable[[np.ndarray], np.ndarray]
Kind = tuple[np.ndarray, np.ndarray, np.ndarray]


def is_held_out(group: str) -> bool:
    """Whether a patient, image or photograph is kept aside for judging."""
    return hashlib.sha256(group.encode()).digest()[0] % 2 == 1


def kinds_of(data_dir: Path) -> dict[str, Callable[[], Pictures]]:
    """Kind -> group and picture in beam space of each; livers first, as they are and changed."""
    byra_dir, aul = data_dir / "byra2018", sorted((data_dir / "aul").rglob("*.jpg"))
    labels = pd.read_csv(byra_dir / "labels.csv")
    first = labels.loc[labels["frame_index"] == 0]
    byra = [(row.patient_id, byra_dir / row.path) for row in first.itertuples()]
    every = labels.loc[labels["frame_index"] % 3 == 0]
    whole = [(row.patient_id, byra_dir / row.path) for row in every.itertuples()]
    images = [(path.name, path) for path in aul]
    few = [*byra, *images[::4]]

    def changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], Pictures]:
        return lambda: ((group, change(picture)) for group, picture in _shown(few))

    return {
        "byra2018": lambda: _shown(whole),
        "aul": lambda: _shown(images),
        **{f"livers, {name}": changed(change) for name, change in _CHANGES.items()},
        "livers, beams backwards": changed(lambda picture: picture[::-1]),
        "livers, inverted": lambda: _inverted(few),
        **{name: (lambda fill=fill: _filled(few, fill)) for name, fill in _FILLS.items()},
        "photographs": lambda: _photographs(few),
        "phantoms": _phantoms,
    }


def never_fitted(data_dir: Path) -> dict[str, Callable[[], Pictures]]:
    """Kinds that no fit sees: livers of `aul` that are kept aside, spoilt in other ways."""
    paths = [path for path in sorted((data_dir / "aul").rglob("*.jpg")) if is_held_out(path.name)]
    frames = [(path.name, path) for path in paths[::5]]

    def spoilt(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], Pictures]:
        return lambda: ((group, change(picture)) for group, picture in _shown(frames))

    return {f"aul, {name}": spoilt(change) for name, change in _SPOILT.items()}


def with_rule(novelty: Novelty, data_dir: Path, features_of: Features, store: Path) -> Novelty:
    """The novelty with rule and distance of livers, fitted to what is not kept aside, and with a
    limit of its own distance at the farthest liver among that."""
    kinds = measured(kinds_of(data_dir), features_of, store)
    weights, intercept = fit(kinds)
    groups, livers = (
        np.concatenate([kinds[name][part][~kinds[name][1]] for name in _LIVERS]) for part in (0, 2)
    )
    return replace(
        novelty, unable_limit=float(novelty.distance(livers).max()),
        liver_weights=weights, liver_intercept=intercept,
        livers=fit_novelty(livers, groups.tolist(), quantile=_NEAR_ENOUGH),
    )  # fmt: skip


def measured(
    kinds: dict[str, Callable[[], Pictures]], features_of: Features, store: Path
) -> dict[str, Kind]:
    """Kind -> group of each picture, whether it is kept aside, and its features `(n, 640)`."""
    found = {}
    for name, make in kinds.items():
        path = store / "liver_views" / f"{name.replace(' ', '_')}.npz"
        if not path.is_file():
            groups, pictures = zip(*tqdm(make(), name, file=sys.stderr), strict=True)
            values = features_of(np.stack(pictures))
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, groups=groups, values=values)
        with np.load(path) as stored:
            held = np.array([is_held_out(group) for group in stored["groups"].tolist()])
            found[name] = stored["groups"], held, stored["values"].astype(float)
    return found


def fit(kinds: dict[str, Kind], without: str = "") -> tuple[np.ndarray, float]:
    """Weights and intercept of the rule; livers as they are and changed weigh as much together as
    all that is none, each kind of this alike.

    Args:
        kinds: of `measured`.
        without: a kind that it shall not see.
    """
    is_liver = {name: _is_liver(name) for name in kinds}
    values, truth, weights = [], [], []
    for name, (_, held, features) in kinds.items():
        if name == without or held.all():
            continue
        seen = features[~held]
        alike = sum(is_liver[other] == is_liver[name] for other in kinds)
        values.append(seen)
        truth += [is_liver[name]] * len(seen)
        # As many changed livers as unchanged ones would count too much.
        share = 4.0 if name in _LIVERS else 1.0
        weights += [share / alike / len(seen)] * len(seen)
    stacked = np.concatenate(values)
    centre, scale = stacked.mean(axis=0), np.maximum(stacked.std(axis=0), 1e-6)
    rule = LogisticRegression(C=STRENGTH, max_iter=5000)
    scaled = np.array(weights) * len(weights) / sum(weights)
    rule.fit((stacked - centre) / scale, truth, sample_weight=scaled)
    slope = rule.coef_[0] / scale
    return slope, float(rule.intercept_[0] - centre @ slope)


def _is_liver(kind: str) -> bool:
    return kind in _LIVERS or kind.removeprefix("livers, ") in _CHANGES


def _shown(frames: Sequence[tuple[str, Path]]) -> Pictures:
    for group, path in frames:
        frame = read_frame(path)
        yield group, model_input(frame, find_sector(frame).fan, view=_VIEW)


def _levels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of grey levels, where there is echo."""

    def changed(picture: np.ndarray) -> np.ndarray:
        grey = np.clip(np.round(change(picture.astype(np.float32))), 1, 255)
        return np.where(picture > 0, grey, 0).astype(np.uint8)

    return changed


#: What scanners and archives do to a liver that stays one.
_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gain -6 dB": _levels(lambda grey: grey - 6 * _GREY_PER_DB),
    "dynamic range 50 dB": _levels(lambda grey: 255 - (255 - grey) * 60 / 50),
    "brighter greys": _levels(lambda grey: 255 * (grey / 255) ** 0.7),
    "blurred": lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.2),
    "median of 5 px": lambda picture: cv2.medianBlur(picture, 5),
    "left and right changed": lambda picture: picture[:, ::-1],
}


def _shuffled(picture: np.ndarray) -> np.ndarray:
    """64 blocks in another order: texture without anatomy."""
    blocks = [block for row in np.split(picture, 8) for block in np.split(row, 8, axis=1)]
    order = np.random.default_rng(_SEED).permutation(len(blocks)).reshape(8, 8)
    return np.block([[blocks[place] for place in row] for row in order])


def _rows_lost(picture: np.ndarray) -> np.ndarray:
    """Every fourth sixteenth of the depth is black, the next one a copy of the first."""
    parts = np.split(picture, 16)
    return np.concatenate(
        [0 * part if place % 4 == 1 else parts[0] if place % 4 == 2 else part
         for place, part in enumerate(parts)]
    )  # fmt: skip


def _edges(picture: np.ndarray) -> np.ndarray:
    slopes = (cv2.Sobel(picture, cv2.CV_32F, *axes) for axes in ((1, 0), (0, 1)))
    return np.where(picture > 0, np.clip(np.hypot(*slopes) / 4, 1, 255), 0).astype(np.uint8)


def _enlarged(top: int) -> Callable[[np.ndarray], np.ndarray]:
    """A quarter of the depth and half of the beams fill the sector: no organ in view as a whole."""
    return lambda picture: cv2.resize(picture[top : top + 96, 80:240], picture.shape[::-1])


_SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "blocks in another order": _shuffled,
    "rows lost": _rows_lost,
    "edges alone": _edges,
    "depth and beams changed": lambda picture: cv2.resize(picture.T, picture.shape[::-1]),
    "smeared": lambda picture: cv2.GaussianBlur(picture, (0, 0), 7),
    "the skin, enlarged": _enlarged(0),
    "the deepest quarter, enlarged": _enlarged(288),
}


def _grey(place: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    return np.full(shape, random.uniform(5, 250))


def _ramp(place: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j]
    turn = random.uniform(0, 2 * np.pi)
    ramp = x * np.cos(turn) + y * np.sin(turn)
    low, high = np.sort(random.uniform(0, 255, 2))
    return low + (high - low) * (ramp - ramp.min()) / np.ptp(ramp)


def _noise(place: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    coarse = [side // (1 + place % 5) for side in shape]
    grey = random.normal(60 + 60 * (place % 3), (8, 20, 40, 80)[place % 4], coarse)
    return cv2.resize(grey, shape[::-1])


def _cloud(place: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(random.normal(size=(512, 512)))
    cloud = np.fft.ifft2(spectrum * frequency ** -random.uniform(1, 2.5)).real
    cloud = random.uniform(40, 160) + random.uniform(15, 60) * cloud / cloud.std()
    return cv2.resize(cloud, shape[::-1])


def _speckle(place: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Fully developed speckle without anatomy, on a logarithmic scale."""
    down, across = 1 + place % 3, 1 + place // 3 % 4
    parts = [cv2.GaussianBlur(random.normal(size=shape), (0, 0), across, sigmaY=down)
             for _ in range(2)]  # fmt: skip
    echo = np.hypot(*parts)
    decibel = 20 * np.log10(echo / echo.mean() + 1e-3)
    return random.uniform(60, 150) + decibel * 255 / random.uniform(50, 80)


_FILLS = {"one grey": _grey, "ramps": _ramp, "noise": _noise, "clouds": _cloud,
          "plain speckle": _speckle}  # fmt: skip


def _filled(
    frames: Sequence[tuple[str, Path]],
    fill: Callable[[int, tuple[int, int], np.random.Generator], np.ndarray],
) -> Pictures:
    """Every third frame's fan with something else in it; the group is the frame's."""
    random = np.random.default_rng(_SEED)
    for place, (group, path) in enumerate(frames[::3]):
        frame = to_grey(read_frame(path))
        fan = find_sector(frame).fan
        grey = np.clip(fill(place, frame.shape, random), 0, 255).astype(np.uint8)
        yield group, beam_space(grey, fan, *input_shape(_VIEW))


def _inverted(frames: Sequence[tuple[str, Path]]) -> Pictures:
    """White and black changed inside the fan."""
    for group, path in frames:
        grey = to_grey(read_frame(path))
        sector = find_sector(grey)
        yield group, model_input(np.where(sector.mask, 255 - grey, 0), sector.fan, view=_VIEW)


def _photographs(frames: Sequence[tuple[str, Path]]) -> Pictures:
    """Squares of photographs in the fans; the group is the photograph."""
    import skimage.data

    random = np.random.default_rng(_SEED)
    folder = Path(skimage.data.__file__).parent
    for place, (_, path) in enumerate(frames[::2]):
        name = _PHOTOGRAPHS[place % len(_PHOTOGRAPHS)]
        picture = cv2.imread(str(next(folder.glob(f"{name}.*"))), cv2.IMREAD_GRAYSCALE)
        side = int(random.integers(min(100, *picture.shape), min(picture.shape) + 1))
        top, left = (int(random.integers(0, most - side + 1)) for most in picture.shape)
        frame = read_frame(path)
        square = picture[top : top + side, left : left + side]
        grey = cv2.resize(square, frame.shape[1::-1])
        yield name, beam_space(grey, find_sector(frame).fan, *input_shape(_VIEW))


def _phantoms() -> Pictures:
    for place in range(40):
        random = np.random.default_rng(1000 + place)
        frame = simulate_patient(random.uniform(0, 90), num_frames=1, generator=random)[0][0]
        yield f"phantom {place}", model_input(frame, find_sector(frame).fan, view=_VIEW)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds byra2018/ and aul/")
    parser.add_argument("--out", type=Path, required=True, help="folder of ship_byra2018.py")
    arguments = parser.parse_args(argv)
    bundle = open_bundle()
    novelty = bundle.joint.novelty
    if novelty is None:
        raise ValueError("Expected a shipped model that looks at novelty. Received: one without.")
    look: Features = lambda pictures: bundle.run(pictures)["features"]  # noqa: E731
    kinds = measured(kinds_of(arguments.data), look, arguments.out)
    lines = [
        "| | kept aside | pass | of these, by the rule alone | not seen at all: pass |"
        " by the rule alone |",
        "|---" * 6 + "|",
    ]
    others = measured(never_fitted(arguments.data), look, arguments.out)
    for name, (_, held, values) in (kinds | others).items():
        aside = values[held]
        by_rule = int((novelty.log_odds(aside) >= 0).sum())
        cells = [str(len(aside)), str(int(novelty.shows_liver(aside).sum())), str(by_rule)]
        if name in others or _is_liver(name):
            cells += ["", ""]
        else:
            weights, intercept = fit(kinds, without=name)
            unseen = replace(novelty, liver_weights=weights, liver_intercept=intercept)
            cells += [f"{unseen.shows_liver(values).sum()} of {len(values)}",
                      str(int((unseen.log_odds(values) >= 0).sum()))]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    with replacing(arguments.out / "liver_views.md") as temporary:
        temporary.write_text(text)
    print(f"Scores to a distance of {novelty.unable_limit:.2f}.\n\n{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
