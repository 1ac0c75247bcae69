"""The classical systems of the table on simulated patients, from fit to file and back."""

import dataclasses
import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

from steatosis_tf.table1.exported import load_exported
from steatosis_tf.table1.study import Study
from steatosis_tf.table1.system import Lesson, System

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "table1"


def systems_of(name: str) -> tuple[System, ...]:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SYSTEMS


SYSTEMS = [one for name in ("floors", "chen2008", "istepanian2011") for one in systems_of(name)]


@pytest.mark.parametrize("task", ["at_least_mild", "four_grades"])
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_fit_save_and_reload_without_pickle(
    small_study: Study, system: System, task: str, tmp_path: Path
) -> None:
    part = small_study.partitions[0]
    tested = small_study.rows_of(part.test)
    train, validation = small_study.rows_of(part.train), small_study.rows_of(part.validation)
    lesson = Lesson(small_study.hiding(tested), train, validation, task, seed=0)
    fitted = system.fit(lesson, **system.settings)
    probabilities = fitted.probabilities(small_study.rois[tested])
    assert probabilities.shape == (len(tested), lesson.num_classes)
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    assert fitted.num_parameters > 0
    path = fitted.save(tmp_path, small_study.rois[:4])
    assert not [name for name in zipfile.ZipFile(path).namelist() if name.endswith(".pkl")]
    reloaded = load_exported(path)(small_study.rois[tested])
    np.testing.assert_array_equal(reloaded, probabilities)
    again = system.fit(lesson, **system.settings).probabilities(small_study.rois[tested])
    np.testing.assert_array_equal(again, probabilities)


def test_texture_systems_tell_flat_from_rough(small_study: Study) -> None:
    """Pictures whose class is their texture, so that a system that can learn must learn it."""
    rng = np.random.default_rng(0)
    labels = small_study.index["label"].to_numpy()
    amplitude = np.where(labels > 0, 60, 10)[:, None, None, None]
    rois = (128 + amplitude * rng.uniform(-1, 1, small_study.rois.shape)).astype(np.uint8)
    study = dataclasses.replace(small_study, rois=rois)
    part = study.partitions[0]
    tested = study.rows_of(part.test)
    train, validation = study.rows_of(part.train), study.rows_of(part.validation)
    lesson = Lesson(study.hiding(tested), train, validation, "at_least_mild", 0)
    for system in systems_of("chen2008") + systems_of("istepanian2011"):
        settings = dict(system.settings)
        if "num_neighbours" in settings:
            settings["num_neighbours"] = (1, 3)
        called = system.fit(lesson, **settings).probabilities(rois[tested]).argmax(axis=1)
        assert (called == (labels[tested] > 0)).all(), system.name
