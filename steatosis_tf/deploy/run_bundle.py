"""The bundle of a run whose rule reads features: what was evaluated is what it gives."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.cohort.near_duplicates import training_hashes
from steatosis_tf.config import BACKBONES, Config
from steatosis_tf.deploy.bundle import (
    NETWORK_NAME,
    Bundle,
    copy_bundle,
    is_bundle,
    open_bundle,
    write_bundle,
)
from steatosis_tf.deploy.bundle_network import convert_taps, taps_of
from steatosis_tf.deploy.onnx_file import BATCH
from steatosis_tf.files import file_sha256
from steatosis_tf.grades import GRADES
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.pooling import pool_maps
from steatosis_tf.unfinished import refuse_unfinished

#: How far a network score of the bundle may lie from Keras', square root of fat percent (or
#: grades): the weights are kept in 16 bits.
MAX_DIFFERENCE = 0.05

_PACKAGES = ("tensorflow", "keras", "onnx", "onnxruntime", "scikit-learn", "opencv-python")


def write_run_bundle(
    run_dir: Path, joint: JointModel, config: Config, rois: np.ndarray, cache_dir: Path
) -> float:
    """Write `bundle/` and `bundle.zip` into a run directory.

    Args:
        run_dir: evaluated, with `manifest.csv`, `split.csv` and `metrics.json`.
        joint: the rule that was evaluated, or for a cross-validated run the one fitted to all.
        config: of the run.
        rois: `(num_frames, depth, beams, 1)` uint8, on which Keras and ONNX are compared.
        cache_dir: keeps the converted backbone.

    Returns:
        largest difference of a network score between the bundle and Keras.

    Raises:
        RuntimeError: if they differ by more than `MAX_DIFFERENCE`.
    """
    from steatosis_tf.model.backbone import build_taps  # brings TensorFlow

    taps = build_taps(config.model, rois.shape[1:3])
    folder = run_dir / "bundle"
    write_bundle(
        folder,
        convert_taps(taps, cache_dir),
        joint,
        config.roi,
        name=run_dir.parent.name.lower(),
        version="1",
        training=_training(run_dir),
        card=_card(run_dir, config),
        licences={"code": "Apache-2.0", "weights and data": "not stated: see who trained it"},
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A few frames at a time: the maps of all layers of 64 frames take 12 GB.
    near, far = taps.predict(rois, batch_size=BATCH, verbose=0)
    difference = _difference(joint, pool_maps(near, far), open_bundle(folder), rois)
    if difference > MAX_DIFFERENCE:
        raise RuntimeError(
            f"Expected the bundle within {MAX_DIFFERENCE} of Keras on {len(rois)} frames. "
            f"Received: a difference of {difference:.3g}. It must not be used."
        )
    return difference


def export_bundle(run_dir: str | Path, folder: str | Path, *, leak_hashes: bool = False) -> Bundle:
    """Write the bundle of a run somewhere else, as a folder and as a zip beside it.

    Args:
        run_dir: of a run that has come to its end.
        folder: to create; an earlier bundle there is replaced, anything else is left alone.
        leak_hashes: also keep hashes of the run's frames, by which `validate` finds them.

    Returns:
        the bundle, byte for byte that of the run; with hashes, other in `bundle.json` alone.

    Raises:
        ValueError: if the run has no bundle or a damaged one, or something else is in the way.
    """
    run_dir, folder = Path(run_dir), Path(folder)
    refuse_unfinished(run_dir)
    source = run_dir / "bundle"
    if not is_bundle(source):
        raise ValueError(
            f"Expected a run with a bundle, as recipe joint trains it. Received: {run_dir.name!r} "
            "without one: its model grades frames alone. Write it as one file: --output FILE.onnx."
        )
    archive = folder.with_name(f"{folder.name}.zip")
    taken = folder.is_dir() and any(folder.iterdir()) and not is_bundle(folder)
    if taken or folder.resolve() == source.resolve() or archive.exists() > is_bundle(archive):
        raise ValueError(
            "Expected a new folder for the bundle, or that of an earlier one with its zip. "
            f"Received: {folder.name!r}, where something else is. Give --output another name."
        )
    bundle = open_bundle(source)
    if leak_hashes:
        # Of validation and test frames too: a study that chose anything is no stranger to it.
        path = run_dir / "manifest.csv"
        return add_training(
            bundle, folder, {"leak_hashes": training_hashes(read_manifest(path), path)}
        )
    copy_bundle(bundle, folder)
    return bundle


def add_training(bundle: Bundle, folder: str | Path, more: dict[str, Any]) -> Bundle:
    """Seal a bundle again with more said of its training.

    Args:
        bundle: that stays as it is.
        folder: of the new one; a zip is written beside it.
        more: joins `training` of `bundle.json`.
    """
    about = bundle.about
    write_bundle(
        folder, taps_of(bundle.files[NETWORK_NAME]), bundle.joint, bundle.roi, name=about["name"],
        version=about["version"], training=about["training"] | more, card=about["card"],
        licences=about["licences"], versions=about["versions"],
        recalibration=about.get("recalibration"),
    )  # fmt: skip
    return open_bundle(folder)


def _difference(joint: JointModel, features: np.ndarray, bundle: Bundle, rois: np.ndarray) -> float:
    (rule,) = (part.rule for part in joint.parts if part.name == NETWORK)
    found = bundle.run(rois[..., 0])["score"]
    return float(np.abs(rule.sqrt_fat(features) - found).max())


def _training(run_dir: Path) -> dict[str, Any]:
    """Who the model learned from."""
    frames = read_manifest(run_dir / "manifest.csv")
    split = pd.read_csv(run_dir / "split.csv", dtype=str)
    learned = set(split.loc[split["split"].isin(["train", "test"]), "patient_id"])
    frames = frames.loc[frames["patient_id"].isin(learned)]
    patients = frames.drop_duplicates("patient_id")
    unknown = pd.Series("not stated", patients.index)
    scanner = patients.get("scanner", unknown).replace("", None).fillna("not stated")
    repeated = json.loads((run_dir / "metrics.json").read_text()).get("repeatability")
    return {
        **({"repeatability": repeated} if repeated else {}),
        "num_patients": len(patients),
        "num_frames": len(frames),
        "by_grade": {grade: int((patients["grade"] == grade).sum()) for grade in GRADES},
        "by_scanner": scanner.value_counts().to_dict(),
        "manifest_sha256": file_sha256(run_dir / "manifest.csv"),
        "split_sha256": file_sha256(run_dir / "split.csv"),
    }


def _card(run_dir: Path, config: Config) -> dict[str, Any]:
    metrics = json.loads((run_dir / "metrics.json").read_text())["patient"]
    ordinal = metrics["ordinal"]
    told = {
        "AUC of Mild or worse": ordinal["auc_at_least_mild"],
        "quadratic kappa": ordinal["quadratic_kappa"],
        "accuracy": metrics["accuracy"],
    }
    figures = ", ".join(f"{name} {value:.3f}" for name, value in told.items() if value is not None)
    return {
        "summary": f"Trained by `steatosis train` ({run_dir.parent.name}): "
        f"{BACKBONES[config.model.backbone].title} with weights `{config.model.weights}`, and "
        "measured features, joined in closed form.",
        "reference_standard": "the grades or fat percent of the manifest",
        "performance": f"{config.split.kind}, {metrics['n']} patients tested: {figures}. The "
        "report of the run has intervals.",
        "provider": "whoever trained it",
        "intended_view": "as in the training data",
        "groups": "see subgroups in the report of the run",
        "datasets": ["the manifest of the run"],
        "limits": [
            "It was tested on patients of its own study only.",
            "On other scanners ranks may hold and thresholds not: `steatosis recalibrate`.",
        ],
    }
