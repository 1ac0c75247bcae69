"""What does the joint system reach on the 44 biopsied patients, and what does each choice bring?

    python -m experiments.joint --data DATA_DIR --out runs/joint

DATA_DIR holds `byra2018/` (see docs/data.md). Leave-one-patient-out: every number below is fitted,
and every penalty, share and decision rule chosen, without the patient who is asked about. Measured
features come from `experiments/byra.py`, whose kidney finder is fitted anew without the patient's
fold; the liver network and ImageNet saw none of the patients.

Prints and writes to `table.md`: one table in which one factor of the network's part changes at a
time; the joint system and its parts; what the training patients would have chosen of the first
table; how far scores move when gain, slope of time gain or dynamic range are turned.

Time: 12 minutes of processor time, 10 of them for features, which are kept. Result:
docs/research/best.md, which also says what was looked at on the way.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtr
from scipy.stats import spearmanr
from sklearn.cross_decomposition import PLSRegression
from tqdm import tqdm

from experiments import byra
from experiments.fat_rules.comparison import RANKINGS, markdown
from experiments.joint_features import SETTINGS, View, pooled, row_means
from steatosis_tf.evaluation.metrics.intervals import bootstrap_intervals, paired_bootstrap
from steatosis_tf.files import replacing
from steatosis_tf.grades import GRADES, NOTICE, SCORE_COLUMNS, grade_from_fat_percent, label_of
from steatosis_tf.model.heads import grade_probabilities
from steatosis_tf.model.joint import NETWORK, JointModel, decide
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.model.rules import fit_linear_rule, patient_means
from steatosis_tf.quantitative.measure import FAT_SIGNS

SIGNS = byra.SIGNS
MEASURED = Part("measured", SIGNS, tuple(FAT_SIGNS[name] for name in SIGNS))
JOINT = (Part(NETWORK), MEASURED)
SYSTEMS = {
    "measured features alone": (MEASURED,),
    "network alone": (Part(NETWORK),),
    "joint": JOINT,
}
GRADINGS = {"kappa": "ordinal.quadratic_kappa", "accuracy": "accuracy"}
# Any width ranks patients by predicted fat alike.
_WIDTH = 1.5
_NUM_COMPONENTS = 6
#: What lines and text inside the sector gave away; nobody may choose it.
MARKS = "marks not painted out"
#: Frames of a patient whose settings are turned.
SETTING_STEP = 4


@dataclass(frozen=True)
class Study:
    """The frames, what is known of their patients, and what was measured.

    Attributes:
        frames: manifest rows.
        manifest_path: of them.
        ids: of the frames.
        patients: sorted ids.
        fat: of the patients, percent.
        measured: `(num_frames, 3)`.
    """

    frames: pd.DataFrame
    manifest_path: Path
    ids: np.ndarray
    patients: np.ndarray
    fat: np.ndarray
    measured: np.ndarray


def load(byra_dir: Path, out_dir: Path) -> Study:
    found = byra.measured(byra_dir, out_dir / "byra")
    frames = found.frames
    ids = frames["patient_id"].to_numpy()
    of_patient = frames.groupby("patient_id")["fat_percent"].first()
    return Study(
        frames, found.manifest_path, ids, of_patient.index.to_numpy(), of_patient.to_numpy(float),
        found.features[list(SIGNS)].to_numpy(float),
    )  # fmt: skip


def network_variants(study: Study, store: Path) -> dict[str, np.ndarray]:
    """The recipe's features of the frames, then those with one factor changed."""

    def maps(view: View) -> tuple[np.ndarray, np.ndarray]:
        return row_means(view, study.frames, study.manifest_path, store)

    recipe = maps(View("beam space"))
    boxes = maps(View("bounding box", view=""))
    return {
        "recipe": pooled(recipe),
        "view: the sector's bounding box, 224 px": pooled(boxes),
        "weights: random": pooled(maps(View("random weights", weights="random"))),
        MARKS: pooled(maps(View("marks not painted out", paint_out=False))),
        "gain not normalised": pooled(maps(View("gain not normalised", normalize_gain=False))),
        "pooling: global": pooled(recipe, near_bands=1),
        "taps: 112 channels alone": pooled(recipe, far=False),
        "taps: 192 channels alone": pooled(recipe, near_bands=0),
    }


def left_out_rule(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction for each patient by a ridge fitted to the others, and in row i the left-out
    predictions among those others, by which its penalty was chosen."""
    predicted, inner = np.empty(len(target)), np.full((len(target), len(target)), np.nan)
    for patient in range(len(target)):
        others = np.arange(len(target)) != patient
        rule, left_out = fit_linear_rule(features[others], target[others])
        predicted[patient] = rule.sqrt_fat(features[[patient]])[0]
        inner[patient, others] = left_out
    return predicted, inner


def left_out_components(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same by partial least squares, the number of components chosen inside."""

    def paths(values: np.ndarray, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        centre, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
        fitted = PLSRegression(_NUM_COMPONENTS, scale=False).fit((values - centre) / scale, known)
        weights = np.cumsum(fitted.x_rotations_ * fitted.y_loadings_[0], axis=1)
        return known.mean() + ((asked - centre) / scale) @ weights

    predicted = np.empty(len(target))
    for patient in tqdm(range(len(target)), "partial least squares", file=sys.stderr):
        others = np.flatnonzero(np.arange(len(target)) != patient)
        inner = np.array([
            paths(features[rest], target[rest], features[[one]])[0]
            for one in others if (rest := others[others != one]).size
        ])  # fmt: skip
        best = int(np.square(inner - target[others, None]).mean(axis=0).argmin())
        predicted[patient] = paths(features[others], target[others], features[[patient]])[0, best]
    return predicted


def left_out_models(
    study: Study, parts: Sequence[Part], inputs: Mapping[str, np.ndarray], name: str
) -> list[JointModel]:
    """One model per patient, fitted to the frames of all others."""
    fat = study.frames["fat_percent"].to_numpy(float)
    models = []
    for patient in tqdm(study.patients, name, file=sys.stderr):
        others = study.ids != patient
        seen = {part.name: inputs[part.name][others] for part in parts}
        models.append(fit_joint(parts, seen, study.ids[others], fat_percent=fat[others]))
    return models


def tables(study: Study, models: Sequence[JointModel], inputs: Mapping[str, np.ndarray]) -> dict:
    """Patient tables: "fat" ranks by predicted fat, "graded" holds the decided grade."""
    means = {name: patient_means(numbers, study.ids) for name, numbers in inputs.items()}
    scores, labels = np.empty(len(models)), np.empty(len(models), int)
    for place, model in enumerate(models):
        mine = {name: rows[[place]] for name, rows in means.items()}
        scores[place] = model.score(mine)[0]
        chances = model.probabilities(scores[[place]])
        labels[place] = decide(chances, model.decision_rule)[0]
    graded = np.eye(len(GRADES))[labels]
    return {"scores": scores, "fat": ranked(study, scores), "graded": patient_table(study, graded)}


def ranked(study: Study, scores: np.ndarray) -> pd.DataFrame:
    """Patient table whose probabilities rank exactly by the score."""
    chances = grade_probabilities(scores[:, None], _WIDTH, ndtr)
    return patient_table(study, chances / chances.sum(axis=1, keepdims=True))


def patient_table(study: Study, chances: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(chances, columns=list(SCORE_COLUMNS))
    grades = [grade_from_fat_percent(percent) for percent in study.fat]
    return table.assign(
        patient_id=study.patients, fold=np.arange(len(study.patients)), grade=grades,
        fat_percent=study.fat, num_frames=1,
        predicted=np.array(GRADES, object)[chances.argmax(axis=1)],
    )  # fmt: skip


def row(found: dict, baseline: dict | None = None) -> dict[str, dict]:
    """Heading -> value and interval, or difference to the baseline."""
    entries: dict[str, dict] = {}
    for kind, headings in (("fat", RANKINGS), ("graded", GRADINGS)):
        if kind in found:
            of = (
                bootstrap_intervals(found[kind])
                if baseline is None
                else paired_bootstrap(found[kind], baseline[kind])
            )
            entries |= {heading: of[metric] for heading, metric in headings.items()}
    return entries


def chosen_inside(
    study: Study, variants: Mapping[str, tuple[np.ndarray, np.ndarray]], measured: tuple
) -> tuple[np.ndarray, dict[str, int]]:
    """Joint score where each patient's training patients choose the variant, and how often each."""
    target = np.sqrt(study.fat)
    names, scores = list(variants), np.empty(len(target))
    counts = dict.fromkeys(names, 0)
    for patient in range(len(target)):
        others = np.arange(len(target)) != patient
        errors = [
            np.square((inner[patient] + measured[1][patient])[others] / 2 - target[others]).mean()
            for _, inner in variants.values()
        ]
        name = names[int(np.argmin(errors))]
        counts[name] += 1
        scores[patient] = (variants[name][0][patient] + measured[0][patient]) / 2
    return scores, counts


def setting_rows(study: Study, store: Path) -> list[str]:
    """How scores move by settings, per tap; with gain not normalised, by gain alone."""
    few = study.frames["frame_index"].astype(int) % SETTING_STEP == 0
    frames = study.frames[few].reset_index(drop=True)
    ids = frames["patient_id"].to_numpy()

    def moves(normalize: bool, bands: int, far: bool) -> Iterator[str]:
        suffix = "" if normalize else ", gain not normalised"
        base = View("beam space" if normalize else "gain not normalised", normalize_gain=normalize)
        plain = row_means(base, study.frames, study.manifest_path, store)
        rule, _ = fit_linear_rule(
            patient_means(pooled(plain, bands, far), study.ids), np.sqrt(study.fat)
        )
        few_plain = tuple(one[few.to_numpy()] for one in plain)
        before = patient_means(rule.sqrt_fat(pooled(few_plain, bands, far))[:, None], ids)[:, 0]
        for setting, change in SETTINGS.items():
            if not normalize and not setting.startswith("gain"):
                yield "-"
                continue
            view = View(f"{setting}{suffix}", change=change, normalize_gain=normalize)
            turned = pooled(row_means(view, frames, study.manifest_path, store), bands, far)
            after = patient_means(rule.sqrt_fat(turned)[:, None], ids)[:, 0]
            moved, order = (after - before) / before.std(), spearmanr(before, after)[0]
            yield f"{moved.mean():+.2f} ({moved.std():.2f}), {order:.3f}"

    kinds = {
        "both taps": (True, 4, True),
        "112 channels": (True, 4, False),
        "192 channels": (True, 0, True),
        "both taps, gain not normalised": (False, 4, True),
    }
    return [f"| {name} | {' | '.join(moves(*kind))} |" for name, kind in kinds.items()]


def factor_table(study: Study, store: Path, measured: tuple) -> str:
    """One factor at a time, and the joint score as training patients choose among them."""
    target = np.sqrt(study.fat)
    features = network_variants(study, store)
    means = {name: patient_means(rows, study.ids) for name, rows in features.items()}
    found = {
        name: left_out_rule(rows, target)
        for name, rows in tqdm(means.items(), "variants", file=sys.stderr)
    }
    alone = {name: predicted for name, (predicted, _) in found.items()}
    alone["head: partial least squares"] = left_out_components(means["recipe"], target)
    rows, joint = {}, {}
    for name, predicted in alone.items():
        rows[name] = row({"fat": ranked(study, predicted)})
        joint[name] = row({"fat": ranked(study, (predicted + measured[0]) / 2)})
    allowed = {name: one for name, one in found.items() if name != MARKS}
    scores, counts = chosen_inside(study, allowed, measured)
    joint["chosen by the training patients"] = row({"fat": ranked(study, scores)})
    picked = ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
    headings = tuple(RANKINGS)
    return (
        f"The network's part alone:\n\n{markdown(rows, headings)}\n\n"
        f"Its mean with the measured features' prediction:\n\n{markdown(joint, headings)}\n\n"
        f"Of {len(target)} sets of training patients, chosen: {picked}.\n"
    )


def system_table(study: Study, inputs: Mapping[str, np.ndarray]) -> str:
    """The joint system and its parts, with paired differences to the measured features."""
    models = {name: left_out_models(study, parts, inputs, name) for name, parts in SYSTEMS.items()}
    found = {name: tables(study, of, inputs) for name, of in models.items()}
    rows = {name: row(one) for name, one in found.items()}
    first = next(iter(SYSTEMS))
    differences = {name: row(one, found[first]) for name, one in found.items() if name != first}
    headings = (*RANKINGS, *GRADINGS)
    shares = [model.parts[0].share for model in models["joint"]]
    rules = pd.Series([model.decision_rule for model in models["joint"]]).value_counts()
    grades = [label_of(grade) for grade in found["joint"]["graded"]["predicted"]]
    truth = [label_of(grade_from_fat_percent(percent)) for percent in study.fat]
    confusion = pd.crosstab(pd.Series(truth), pd.Series(grades)).reindex(
        index=range(4), columns=range(4), fill_value=0
    )
    return (
        f"{markdown(rows, headings)}\n\nDifference to `{first}`:\n\n"
        f"{markdown(differences, headings, sign='+')}\n\n"
        f"The network's share: {min(shares):.2f} to {max(shares):.2f}. Decision rule chosen: "
        f"{', '.join(f'{name} {count}' for name, count in rules.items())}. Biopsy grade (rows) "
        f"against grade (columns): {confusion.to_numpy().tolist()}.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds byra2018/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    arguments = parser.parse_args(argv)
    out, store = arguments.out, arguments.out / "features"
    study = load(arguments.data / "byra2018", out)
    recipe = row_means(View("beam space"), study.frames, study.manifest_path, store)
    inputs = {NETWORK: pooled(recipe), MEASURED.name: study.measured}
    text = (
        f"Leave-one-patient-out, {len(study.patients)} patients, {len(study.frames)} frames; 95 % "
        f"intervals over patients.\n\n{system_table(study, inputs)}"
    )
    means = patient_means(study.measured, study.ids)
    alone = np.empty(len(study.fat)), np.full((len(study.fat), len(study.fat)), np.nan)
    for patient in range(len(study.fat)):
        others = np.arange(len(study.fat)) != patient
        rule, inner = fit_linear_rule(
            means[others], np.sqrt(study.fat[others]), signs=MEASURED.signs
        )
        alone[0][patient], alone[1][patient, others] = rule.sqrt_fat(means[[patient]])[0], inner
    text += f"\n{factor_table(study, store, alone)}\n"
    text += "\n".join([
        "Moved score in standard deviations between patients: mean (spread over patients), rank "
        "correlation with the score before:\n",
        f"| | {' | '.join(SETTINGS)} |", "|---" * (len(SETTINGS) + 1) + "|",
        *setting_rows(study, store), "",
    ])  # fmt: skip
    with replacing(out / "table.md") as temporary:
        temporary.write_text(text)
    print(f"{text}\n{NOTICE}")


if __name__ == "__main__":
    main()
