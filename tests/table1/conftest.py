"""A study of twelve simulated patients under a protocol of three folds."""

import pytest

from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.config import Config, RoiConfig, SplitConfig
from steatosis_tf.sources.phantom import write_phantoms
from steatosis_tf.table1.study import Study, load_study


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three patients or more of every grade, two frames each, two repeats of three folds."""
    folder = tmp_path_factory.mktemp("small_study")
    labels_path = write_phantoms(folder / "phantoms", num_patients=16, frames_per_patient=2, seed=5)
    build_manifest(labels_path, folder / "manifest.csv")
    split = SplitConfig(kind="kfold", folds=3, repeats=2)
    config = Config(split=split, roi=RoiConfig(method="sector"))
    return load_study(folder / "manifest.csv", folder / "runs", config)
