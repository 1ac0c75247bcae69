"""A study of sixteen simulated patients under a protocol of three folds."""

from pathlib import Path

import pytest

from experiments.table1.study import Study, load_study
from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.config import Config, RoiConfig, SplitConfig
from steatosis_tf.sources.phantom.study import write_phantoms


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifest.csv` of sixteen patients, three or more of every grade, two frames each."""
    folder = tmp_path_factory.mktemp("small_study")
    labels_path = write_phantoms(folder / "phantoms", num_patients=16, frames_per_patient=2, seed=5)
    build_manifest(labels_path, folder / "manifest.csv")
    return folder


@pytest.fixture(scope="session")
def small_study(study_folder: Path) -> Study:
    """Two repeats of three folds."""
    split = SplitConfig(kind="kfold", folds=3, repeats=2)
    config = Config(split=split, roi=RoiConfig(method="sector"))
    return load_study(study_folder / "manifest.csv", study_folder / "runs", config)
