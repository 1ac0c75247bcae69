"""The model that comes with the package: whole, small, sparing, and of one opinion with Keras."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from pydicom.data import get_testdata_file

from steatosis_tf.deploy.bundle import SHIPPED, find_faults, open_bundle
from steatosis_tf.deploy.predict import predict
from steatosis_tf.grades import NOTICE
from steatosis_tf.roi.sector import find_sector
from steatosis_tf.roi.views import model_input
from steatosis_tf.sources.images import read_frame


@pytest.fixture(scope="module")
def patients(real_data_dir) -> pd.DataFrame:
    """Path of every frame by patient."""
    table = pd.read_csv(real_data_dir / "byra2018" / "labels.csv")
    table["path"] = [real_data_dir / "byra2018" / path for path in table["path"]]
    return table


def test_it_is_whole_and_answers_as_when_it_was_made():
    bundle = open_bundle()
    assert bundle.about["name"] == "byra2018-joint"
    assert find_faults(bundle) == {}


def test_it_is_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 12e6


def test_its_card_says_what_it_is_and_is_not():
    card = (SHIPPED / "card.md").read_text()
    for words in ("One scanner, one view", "bariatric", "biopsy", "CC BY 4.0", "Apache-2.0", NOTICE,
                  "10.5281/zenodo.1009146", "| Moderate | 6 |"):  # fmt: skip
        assert words in card, words


def test_phantoms_are_refused(phantom_manifest):
    found = predict([phantom_manifest.parent / "phantoms" / "images"])
    assert found.is_shipped
    assert (found.counts["patients"], found.counts["unable"]) == (12, 12)


def test_another_organ_is_refused():
    """A heart by a curved probe, which pydicom brings: no fit has seen it."""
    found = predict([get_testdata_file("examples_ybr_color.dcm", download=False)])
    assert (found.counts["patients"], found.counts["unable"]) == (1, 1)


def test_livers_of_other_scanners_get_a_score_and_no_grade_but_none_upside_down(real_data_dir):
    """Twelve images whose sha256 is odd, so that the rule was not fitted to them."""
    bundle = open_bundle()
    paths = [path for path in sorted((real_data_dir / "aul").rglob("*.jpg"))
             if hashlib.sha256(path.name.encode()).digest()[0] % 2]  # fmt: skip
    looks = [bundle.look(path.name, read_frame(path)) for path in paths[::24][:12]]
    kinds = [bundle.answer("one", [look]).kind for look in looks]
    assert kinds.count("score_only") >= 11
    assert "graded" not in kinds
    for spoilt in (lambda grey: grey[::-1], lambda grey: np.where(grey > 0, 255 - grey, 0)):
        pictures = [spoilt(look.picture).astype(np.uint8) for look in looks]
        found = [
            bundle.answer("one", [dataclasses.replace(look, picture=picture)]).kind
            for look, picture in zip(looks, pictures, strict=True)
        ]
        assert set(found) == {"unable"}


def test_it_answers_as_keras_does_on_real_frames(patients):
    import keras

    from experiments.explanation import explain_places
    from steatosis_tf.model.backbone import LEVEL, at_one_level, roi_input
    from steatosis_tf.model.efficientnet_lite0 import lite0_taps
    from steatosis_tf.model.rules import pool_maps

    bundle = open_bundle()
    paths = patients.drop_duplicates("patient_id")["path"].iloc[::11]
    frames = [read_frame(path) for path in paths]
    pictures = np.stack(
        [model_input(frame, find_sector(frame).fan, view=bundle.roi.view) for frame in frames]
    )
    roi, grey = roi_input((384, 320))
    taps = keras.Model(roi, lite0_taps(at_one_level(grey, LEVEL), "imagenet", 0))
    near, far = (part.numpy() for part in taps(pictures[..., None], training=False))
    said = bundle.run(pictures)
    rule = bundle.joint.parts[0].rule
    np.testing.assert_allclose(said["score"], rule.sqrt_fat(pool_maps(near, far)), atol=1e-4)
    np.testing.assert_allclose(
        said["map"].sum(axis=(1, 2)) + rule.intercept, said["score"], atol=1e-5
    )
    for place in range(len(frames)):
        expected = explain_places(bundle.joint, near[place], far[place])
        np.testing.assert_allclose(said["map"][place], expected, atol=1e-5)


def test_ten_frames_of_one_patient_are_answered_sparingly(patients, tmp_path):
    paths = patients.loc[patients["patient_id"] == "P26", "path"]
    table = pd.DataFrame({"path": paths.astype(str), "patient_id": "P26"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    code = (
        "import re, resource, sys\nfrom steatosis_tf import cli\n"
        "assert cli.main(['predict', sys.argv[1], '--output', sys.argv[2]]) == 0\n"
        "loaded = sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules))\n"
        # Not ru_maxrss: a child starts with its parent's.
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)\n"
        "print(loaded, re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "labels.csv"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("P26: Severe, fat ")
    assert "model: byra2018-joint 3 (comes with the package" in done.stdout
    assert NOTICE in done.stdout
    loaded, kilobytes = lines[-1].rsplit(" ", 1)
    assert loaded == "[]"
    assert int(kilobytes) <= 500_000
    # 2.3 s on an idle core; a busy one counts more for the same work.
    assert float(lines[-2]) <= 5
    (patient,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["patients"]
    assert patient["num_used"] == 10
