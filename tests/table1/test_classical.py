"""The classical methods of the table on simulated patients, from fit to file and back."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.table1.exported import load_exported
from experiments.table1.method import FoldData, Method
from experiments.table1.papers import chen2008, floors, istepanian2011
from experiments.table1.study import Study

METHODS = [*floors.METHODS, *chen2008.METHODS, *istepanian2011.METHODS]


@pytest.mark.parametrize("task", ["at_least_mild", "four_grades"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_fit_save_and_reload_without_pickle(
    small_study: Study, method: Method, task: str, tmp_path: Path
) -> None:
    part = small_study.partitions[0]
    tested = small_study.rows_of(part.test)
    train, validation = small_study.rows_of(part.train), small_study.rows_of(part.validation)
    fold_data = FoldData(small_study.hiding(tested), train, validation, task, seed=0)
    fitted = method.fit(fold_data, **method.settings)
    probabilities = fitted.probabilities(small_study.rois[tested])
    assert probabilities.shape == (len(tested), fold_data.num_classes)
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    assert fitted.num_parameters > 0
    path = fitted.save(tmp_path, small_study.rois[:4])
    assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".pkl")]
    reloaded = load_exported(path)(small_study.rois[tested])
    np.testing.assert_array_equal(reloaded, probabilities)
    again = method.fit(fold_data, **method.settings).probabilities(small_study.rois[tested])
    np.testing.assert_array_equal(again, probabilities)


def test_texture_systems_tell_flat_from_rough(small_study: Study) -> None:
    """Pictures whose class is their texture, so that a method that can learn must learn it."""
    rng = np.random.default_rng(0)
    labels = small_study.index["label"].to_numpy()
    amplitude = np.where(labels > 0, 60, 10)[:, None, None, None]
    rois = (128 + amplitude * rng.uniform(-1, 1, small_study.rois.shape)).astype(np.uint8)
    study = dataclasses.replace(small_study, rois=rois)
    part = study.partitions[0]
    tested = study.rows_of(part.test)
    train, validation = study.rows_of(part.train), study.rows_of(part.validation)
    fold_data = FoldData(study.hiding(tested), train, validation, "at_least_mild", 0)
    for method in chen2008.METHODS + istepanian2011.METHODS:
        settings = dict(method.settings)
        if "num_neighbours" in settings:
            settings["num_neighbours"] = (1, 3)
        called = method.fit(fold_data, **settings).probabilities(rois[tested]).argmax(axis=1)
        assert (called == (labels[tested] > 0)).all(), method.name
