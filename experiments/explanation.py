"""Is the map that explains the network more than a picture? Sanity figures on patients left out.

    python -m experiments.explanation --data DATA_DIR --out runs/explanation

DATA_DIR holds `byra2018/` (see docs/data.md). The map of the pooled linear head is exact: its sum
and a constant are the score. That does not make it true to the liver, so it is put to the tests
that maps fail (Arun et al. 2021, doi 10.1148/ryai.2021200267; Adebayo et al. 2018, arXiv
1810.03292): cascading randomisation of the weights, agreement over a patient's frames, deletion of
the strongest places against random patches, and how much of it lies inside liver, kidney and
diaphragm. Every map is of a rule fitted to the patients of four other folds; the backbone is
frozen and has seen no patient.

Time: about 6 minutes of processor time. Result: docs/research/explanation.md holds the table that
it leaves in `table.md`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pandas as pd
from onnx import numpy_helper
from tqdm import tqdm

from steatosis_tf.cohort.manifest import build_manifest, frame_path, read_manifest
from steatosis_tf.deploy.bundle import NETWORK_NAME, open_bundle
from steatosis_tf.deploy.bundle_write import taps_of
from steatosis_tf.deploy.frames import Look, look_at
from steatosis_tf.files import replacing
from steatosis_tf.grades import NOTICE
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.model.rules import NUM_BANDS, band_rows, pool_maps
from steatosis_tf.roi.sector import Fan
from steatosis_tf.roi.views import depth_length_px, to_frame
from steatosis_tf.sources.images import read_frame

FRAMES = (0, 3, 6, 9)
NUM_FOLDS = 5
#: Proportion of the places that is deleted, and how many random patches it is held against.
DELETED, NUM_RANDOM = 0.05, 5
#: Of each patient's frames, the first goes through deletion and randomisation.
STAGES = ("rule", "last fifth", "last two fifths", "last three fifths", "last four fifths", "all")
_DIAPHRAGM_SHARE = 0.08


def explain_places(model: JointModel, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """What each place of a frame adds to the network's prediction.

    Args:
        model: whose network part reads the features of `steatosis_tf.model.rules.pool_maps`.
        near: first tap of the frame, `(rows, columns, channels)`.
        far: second tap, `(rows / 2, columns / 2, channels)`.

    Returns:
        `(rows, columns)` float32, square root of fat percent; the sum and the rule's intercept
        make the network's prediction exactly. 0 is the mean training patient's place.

    Raises:
        ValueError: if the model has no such part, or the maps do not fit.
    """
    rules = [part.rule for part in model.parts if part.name == NETWORK]
    depth = NUM_BANDS * near.shape[2]
    fits = near.shape[:2] == (2 * far.shape[0], 2 * far.shape[1])
    if not rules or not fits or len(rules[0].weights) != depth + far.shape[2]:
        raise ValueError(
            "Expected a model with a network part and the two maps of one frame. Received: "
            f"parts={[part.name for part in model.parts]} near.shape={near.shape} "
            f"far.shape={far.shape}."
        )
    slope, centre = rules[0].weights / rules[0].scale, rules[0].centre
    places = np.empty(near.shape[:2])
    for band, (first, end) in enumerate(band_rows(near.shape[0])):
        of = slice(band * near.shape[2], (band + 1) * near.shape[2])
        share = (near[first:end] - centre[of]) @ slope[of]
        places[first:end] = share / share.size
    coarse = (far - centre[depth:]) @ slope[depth:]
    return (places + np.kron(coarse / (4 * coarse.size), np.ones((2, 2)))).astype(np.float32)


class Taps:
    """The frozen backbone as the shipped bundle holds it, with weights that can be randomised."""

    def __init__(self, network: bytes) -> None:
        self._proto = taps_of(network)
        self._session = self._opened(self._proto)

    def __call__(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both maps of pictures `(n, depth, beams)` uint8."""
        parts = [
            self._session.run(["near", "far"], {"roi": pictures[at : at + 8, ..., None]})
            for at in range(0, len(pictures), 8)
        ]
        near, far = (np.concatenate(maps) for maps in zip(*parts, strict=True))
        return near, far

    def randomised(self, share: float, generator: np.random.Generator) -> "Taps":
        """A copy whose last convolutions, this proportion of them, have their weights shuffled."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        weights = {one.name: one for one in proto.graph.initializer if len(one.dims) == 4}
        # In the order of the network; a scale per channel is kept beside whole numbers.
        used = dict.fromkeys(name for node in proto.graph.node for name in node.input)
        known = [weights[name] for name in used if name in weights]
        ordered = [one for one in known if max(one.dims[1:]) > 1]
        for tensor in ordered[round(len(ordered) * (1 - share)) :]:
            values = numpy_helper.to_array(tensor)
            mixed = generator.permutation(values.reshape(-1)).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(mixed, tensor.name))
        copy = Taps.__new__(Taps)
        copy._proto, copy._session = proto, self._opened(proto)
        return copy

    @staticmethod
    def _opened(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )


@dataclass(frozen=True)
class Shown:
    """One frame of the study: what was found in it, its maps, and its patient."""

    look: Look
    fan: Fan
    near: np.ndarray
    far: np.ndarray
    patient: str
    shape: tuple[int, int]


def read_study(byra_dir: Path, out_dir: Path) -> tuple[list[Shown], np.ndarray, Taps]:
    """Frames with taps, fat percent of each, and the backbone."""
    build_manifest(byra_dir / "labels.csv", out_dir / "manifest.csv")
    table = read_manifest(out_dir / "manifest.csv")
    place = table.groupby("patient_id").cumcount()
    table = table[place.isin(FRAMES)]
    bundle = open_bundle()
    taps = Taps(bundle.files[NETWORK_NAME])
    shown, fat = [], []
    for row in tqdm(table.itertuples(), "frames", len(table), file=sys.stderr):
        frame = read_frame(frame_path(out_dir / "manifest.csv", row.path))
        look = look_at(row.frame_id, frame, bundle.roi.view)
        if look.picture is None or look.fan is None:
            continue
        near, far = taps(look.picture[None])
        shown.append(Shown(look, look.fan, near[0], far[0], row.patient_id, frame.shape[:2]))
        fat.append(row.fat_percent)
    return shown, np.array(fat, float), taps


def left_out_rules(shown: Sequence[Shown], fat: np.ndarray) -> dict[str, JointModel]:
    """For each patient a rule fitted to the patients of the other folds."""
    ids = np.array([one.patient for one in shown])
    features = np.concatenate([pool_maps(one.near[None], one.far[None]) for one in shown])
    patients = np.random.default_rng(0).permutation(np.unique(ids))
    found = {}
    for fold in range(NUM_FOLDS):
        mine = np.isin(ids, patients[fold::NUM_FOLDS])
        rule = fit_joint(
            [Part(NETWORK)], {NETWORK: features[~mine]}, ids[~mine].tolist(),
            fat_percent=fat[~mine].tolist(),
        )  # fmt: skip
        found |= dict.fromkeys(patients[fold::NUM_FOLDS].tolist(), rule)
    return found


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two maps, each scaled to a largest value of 1."""
    one, other = (part / max(float(np.abs(part).max()), 1e-12) for part in (first, second))

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values.astype(np.float64), (0, 0), 1.5))

    a, b = mean(one), mean(other)
    spread = mean(one**2) - a**2, mean(other**2) - b**2
    joint = mean(one * other) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    above = (2 * a * b + c1) * (2 * joint + c2)
    return float((above / ((a**2 + b**2 + c1) * (spread[0] + spread[1] + c2))).mean())


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, over the places."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def score_of(model: JointModel, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """The network's square root of fat percent `(n,)`."""
    return model.score({NETWORK: pool_maps(near, far)})


def randomisation(
    shown: Sequence[Shown], maps: Sequence[np.ndarray], rules: dict[str, JointModel], taps: Taps
) -> dict[str, np.ndarray]:
    """Stage -> similarity of each frame's map to its own after the stage was randomised."""
    generator = np.random.default_rng(0)
    pictures = np.stack([one.look.picture for one in shown])
    found = {}
    for number, stage in enumerate(tqdm(STAGES, "randomised", file=sys.stderr)):
        stirred = taps.randomised(number / 5, generator) if number else taps
        near, far = stirred(pictures)
        found[stage] = np.array([
            similarity(own, explain_places(shuffled(rules[one.patient], generator), *pair))
            for one, own, *pair in zip(shown, maps, near, far, strict=True)
        ])  # fmt: skip
    return found


def shuffled(model: JointModel, generator: np.random.Generator) -> JointModel:
    """The same rule with its weights in another order."""
    content = model.to_json()
    copy = JointModel.from_json(content)
    copy.parts[0].rule.weights[:] = generator.permutation(copy.parts[0].rule.weights)
    return copy


def agreement(shown: Sequence[Shown], maps: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of maps of one patient's frames, mean of each patient, and of two patients'."""
    table = pd.Series(range(len(shown))).groupby([one.patient for one in shown]).apply(list)
    own = [
        np.mean([correlation(maps[a], maps[b]) for at, a in enumerate(rows) for b in rows[:at]])
        for rows in table if len(rows) > 1
    ]  # fmt: skip
    firsts = [rows[0] for rows in table]
    others = [correlation(maps[a], maps[b]) for at, a in enumerate(firsts) for b in firsts[:at]]
    return np.array(own), np.array(others)


def deletion(
    shown: Sequence[Shown], maps: Sequence[np.ndarray], rules: dict[str, JointModel], taps: Taps
) -> dict[str, np.ndarray]:
    """How far the score moves, square root of percent, when places are blurred away."""
    generator = np.random.default_rng(1)
    found: dict[str, list[float]] = {"strongest": [], "random": [], "predicted": []}
    for one, places in tqdm(list(zip(shown, maps, strict=True)), "deleted", file=sys.stderr):
        picture = one.look.picture
        if picture is None:
            continue
        rows, columns = places.shape
        inside = cv2.resize((picture > 0).astype(np.float32), (columns, rows),
                            interpolation=cv2.INTER_AREA) > 0.5  # fmt: skip
        num = max(1, round(DELETED * inside.sum()))
        strength = np.where(inside, np.abs(places), -1)
        masks = [strength >= np.sort(strength.ravel())[-num]]
        masks += [_patch(inside, num, generator) for _ in range(NUM_RANDOM)]
        near, far = taps(np.stack([picture, *(_blurred(picture, mask) for mask in masks)]))
        scores = score_of(rules[one.patient], near, far)
        moved = np.abs(scores[1:] - scores[0])
        found["strongest"].append(float(moved[0]))
        found["random"].append(float(moved[1:].mean()))
        found["predicted"].append(float(abs(places[masks[0]].sum())))
    return {name: np.array(values) for name, values in found.items()}


def _patch(inside: np.ndarray, num: int, generator: np.random.Generator) -> np.ndarray:
    """The `num` places inside the sector nearest to one drawn at random."""
    places = np.argwhere(inside)
    middle = places[generator.integers(len(places))]
    chosen = places[np.argsort(((places - middle) ** 2).sum(axis=1), kind="stable")[:num]]
    mask = np.zeros_like(inside)
    mask[tuple(chosen.T)] = True
    return mask


def _blurred(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with the places of a mask replaced by a wide blur: no edge, no texture."""
    size = picture.shape[::-1]
    wide = cv2.GaussianBlur(picture, (0, 0), 24)
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    soft = cv2.GaussianBlur(soft, (0, 0), 3)
    return np.asarray(picture * (1 - soft) + wide * soft).round().astype(np.uint8)


def places_of(one: Shown) -> dict[str, np.ndarray]:
    """Masks over the frame: liver, kidney, diaphragm (the liver's deep end), elsewhere."""
    answer, fan = one.look.answer, one.fan
    sector = fan.mask(one.shape)
    liver = np.zeros(one.shape, np.uint8)
    if len(answer.liver):
        cv2.fillPoly(liver, [np.rint(answer.liver).astype(np.int32)], 1)
    kidney = np.zeros(one.shape, bool)
    if "kidney" in answer.boxes:
        top, left, height, width = answer.boxes["kidney"]
        # The box lies in the cortex; the kidney around it is about three times as wide and high.
        down = slice(max(top - height, 0), top + 2 * height)
        kidney[down, max(left - width, 0) : left + 2 * width] = True
    depth = fan.depth_px(one.shape) / (fan.far_px - fan.near_px)
    end = np.quantile(depth[liver > 0], 0.98) if liver.any() else 2.0
    deep = (np.abs(depth - end) < _DIAPHRAGM_SHARE) & ~kidney & sector
    inside = (liver > 0) & sector & ~kidney & ~deep
    kidney &= sector
    return {"liver": inside, "kidney": kidney, "diaphragm": deep,
            "elsewhere": sector & ~inside & ~kidney & ~deep}  # fmt: skip


def shares(shown: Sequence[Shown], maps: Sequence[np.ndarray]) -> pd.DataFrame:
    """Place -> mean proportion of the map's strength, and of the area, over the frames."""
    rows = []
    for one, places in zip(shown, maps, strict=True):
        drawn = np.abs(to_frame(places, one.fan, one.shape))
        masks = places_of(one)
        whole = sum(drawn[mask].sum() for mask in masks.values())
        area = sum(np.count_nonzero(mask) for mask in masks.values())
        rows += [
            (name, drawn[mask].sum() / whole, mask.sum() / area) for name, mask in masks.items()
        ]
    table = pd.DataFrame(rows, columns=["place", "map", "area"])
    return table.groupby("place", sort=False).mean()


def mean_text(values: np.ndarray, digits: int = 2) -> str:
    """Mean with a 95 % interval over patients (percentile bootstrap)."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{values.mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shown, fat, taps = read_study(arguments.data / "byra2018", arguments.out)
    rules = left_out_rules(shown, fat)
    maps = [explain_places(rules[one.patient], one.near, one.far) for one in shown]
    rest = [
        abs(places.sum() + rules[one.patient].parts[0].rule.intercept
            - score_of(rules[one.patient], one.near[None], one.far[None])[0])
        for one, places in zip(shown, maps, strict=True)
    ]  # fmt: skip
    first = list({one.patient: at for at, one in reversed(list(enumerate(shown)))}.values())
    few, their = [shown[at] for at in first], [maps[at] for at in first]
    height_px = np.median([depth_length_px(one.fan) / len(maps[0]) for one in few])
    own, others = agreement(shown, maps)
    moved = deletion(few, their, rules, taps)
    found = {
        "sum of the map and the constant less the score, largest": f"{max(rest):.1e}",
        **{f"similarity (SSIM) after randomising: {stage}": mean_text(values)
           for stage, values in randomisation(few, their, rules, taps).items()},
        "correlation, two frames of a patient": mean_text(own),
        "correlation, frames of two patients": f"{others.mean():.2f}",
        f"score moved by deleting the strongest {DELETED:.0%}": mean_text(moved["strongest"]),
        "as the map says it would": mean_text(moved["predicted"]),
        "score moved by a random patch as large": mean_text(moved["random"]),
        "patients in whom the strongest places move it more":
            f"{(moved['strongest'] > moved['random']).sum()} of {len(few)}",
        **{f"part of the map, and of the area: {place}": f"{row['map']:.2f}, {row['area']:.2f}"
           for place, row in shares(few, their).iterrows()},
        "cells of the map, and height of one":
            f"{maps[0].shape[0]} x {maps[0].shape[1]}, {height_px:.0f} of {few[0].shape[0]} px",
    }  # fmt: skip
    head = f"{len(few)} patients, {len(shown)} frames, {NUM_FOLDS} folds."
    rows = [f"| {name} | {value} |" for name, value in found.items()]
    lines = [head, "", "| Test | Found |", "|---|---|", *rows]
    text = "\n".join(lines) + "\n"
    with replacing(arguments.out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
