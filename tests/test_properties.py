"""What holds for every input, tried on what hypothesis makes up; the same examples each time."""

import csv
import string
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import SplitConfig
from steatosis_tf.evaluation.metrics.registry import compute_metrics
from steatosis_tf.evaluation.metrics.scores import patient_scores, score_table
from steatosis_tf.files import as_cell, from_cell
from steatosis_tf.grades import GRADES
from steatosis_tf.roi.sector.find import kept_fan, sector_cell
from steatosis_tf.roi.sector.geometry import Fan
from steatosis_tf.roi.views import beam_space, to_frame

SHAPE = (240, 320)
tried = settings(max_examples=20, deadline=None, derandomize=True, database=None)


@st.composite
def fans(draw) -> Fan:
    """A fan that a frame of `SHAPE` holds most of."""
    half_deg = draw(st.floats(20, 40))
    near = draw(st.floats(5, 60))
    return Fan(
        "convex", draw(st.floats(140, 180)), draw(st.floats(-40, 0)), -half_deg, half_deg,
        near, near + draw(st.floats(120, 180)), row_stretch=draw(st.sampled_from([1.0, 16 / 15])),
    )  # fmt: skip


@st.composite
def scored(draw) -> tuple[np.ndarray, np.ndarray]:
    """Labels `(N,)` and probabilities `(N, 4)` of up to 30 patients."""
    number = draw(st.integers(4, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.permutation(np.resize(np.arange(4), number))
    return labels, rng.dirichlet(np.ones(4), number)


@tried
@given(scored(), st.randoms(use_true_random=False))
def test_metrics_know_no_order_and_equal_scikit_learn(pair, random) -> None:
    labels, probabilities = pair
    order = random.sample(range(len(labels)), len(labels))
    metrics = compute_metrics(labels, probabilities)
    again = compute_metrics(labels[order], probabilities[order])
    predicted = probabilities.argmax(axis=1)
    assert metrics["accuracy"] == again["accuracy"] == np.mean(labels == predicted)
    assert metrics["confusion_matrix"] == again["confusion_matrix"]
    kappa = cohen_kappa_score(labels, predicted, weights="quadratic")
    assert _all(metrics, "quadratic")[0] == pytest.approx(kappa, abs=1e-12)
    area = roc_auc_score(labels > 0, 1 - probabilities[:, 0])
    ours = [value for value in _all(metrics, "auc") if isinstance(value, float)]
    assert min(abs(value - area) for value in ours) < 1e-12


def _all(nested: object, word: str, path: str = "") -> list:
    """Values below every name that holds the word."""
    if isinstance(nested, dict):
        return [v for key, part in nested.items() for v in _all(part, word, f"{path}.{key}")]
    return [nested] if word in path else []


@tried
@given(scored())
def test_grades_read_from_the_other_end_agree_as_much(pair) -> None:
    labels, probabilities = pair
    metrics = compute_metrics(labels, probabilities)
    turned = compute_metrics(3 - labels, probabilities[:, ::-1])
    assert turned["accuracy"] == metrics["accuracy"]
    assert _all(turned, "quadratic") == pytest.approx(_all(metrics, "quadratic"), abs=1e-12)
    assert np.array_equal(
        np.array(turned["confusion_matrix"])[::-1, ::-1], metrics["confusion_matrix"]
    )


@tried
@given(scored(), st.sampled_from(["mean", "log_odds", "median", "trimmed_mean", "vote"]))
def test_a_patients_score_knows_no_order_of_frames(pair, rule) -> None:
    labels, probabilities = pair
    frames = np.arange(len(labels))
    index = pd.DataFrame({
        "frame_id": [f"f{at:03d}" for at in frames],
        "patient_id": [f"p{label}{at % 2}" for label, at in zip(labels, frames, strict=True)],
        "label": labels, "fat_percent": np.nan,
    })  # fmt: skip
    table = score_table(index, probabilities, 0)
    whole = patient_scores(table, rule)
    turned = patient_scores(table.iloc[::-1].reset_index(drop=True), rule)
    pd.testing.assert_frame_equal(whole, turned)
    sums = whole[[column for column in whole if column.startswith("p_")]].sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-9)


@tried
@given(
    st.lists(st.integers(6, 12), min_size=4, max_size=4), st.integers(1, 3),
    st.integers(0, 1000), st.sampled_from(["holdout", "kfold"]),
)  # fmt: skip
def test_every_patient_is_on_one_side_in_whatever_order_rows_come(counts, frames, seed, kind):
    rows = [
        {
            "patient_id": f"{grade}-{number}",
            "grade": GRADES[grade],
            "frame_id": f"{grade}-{number}-{at}",
        }
        for grade, count in enumerate(counts)
        for number in range(count)
        for at in range(frames)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    config = SplitConfig(kind=kind, folds=3, split_seed=seed)
    parts = make_partitions(table, config)
    turned = make_partitions(table.sample(frac=1, random_state=seed).reset_index(drop=True), config)
    assert parts == turned
    everybody = set(table["patient_id"])
    for part in parts:
        assert part.train | part.validation | part.test | part.left_out == everybody
        sides = (part.train, part.validation, part.test, part.left_out)
        assert sum(map(len, sides)) == len(everybody)
    if kind == "kfold":
        assert sorted(name for part in parts for name in part.test) == sorted(everybody)


@tried
@given(fans(), st.floats(0.3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_a_fan_comes_back(fan, factor, right, down) -> None:
    back = fan.scaled(factor).scaled(1 / factor)
    np.testing.assert_allclose(back.corners(), fan.corners(), atol=1e-6)
    np.testing.assert_allclose(
        fan.moved(right, down).corners(), fan.corners() + np.array([right, down]), atol=1e-9
    )
    np.testing.assert_allclose(fan.with_corners(fan.corners()).corners(), fan.corners(), atol=1e-6)
    digest = "0123456789abcdef" * 4
    assert kept_fan(digest, sector_cell(fan, digest)) == fan


@tried
@given(fans(), st.integers(0, 2**32 - 1))
def test_beam_space_sees_nothing_outside_and_draws_nothing_there(fan, seed) -> None:
    rng = np.random.default_rng(seed)
    frame = cv2.GaussianBlur(rng.integers(0, 256, SHAPE, np.uint8), (0, 0), 4)
    beams = beam_space(frame, fan, 64, 48)
    assert beams.shape == (64, 48)
    assert beams.dtype == np.uint8
    outside = np.where(fan.mask(SHAPE), frame, 255).astype(np.uint8)
    np.testing.assert_array_equal(beam_space(outside, fan, 64, 48), beams)
    drawn = to_frame(np.ones((4, 4)), fan, SHAPE)
    assert set(np.unique(drawn)) <= {0, 1}
    assert not drawn[~fan.mask(SHAPE)].any()


@tried
@given(st.text(max_size=12))
def test_a_cell_says_what_it_said(text) -> None:
    assert from_cell(as_cell(text)) == text
    assert not as_cell(text).startswith(("=", "@", "\t", "\r"))


@pytest.fixture(scope="module")
def frames_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for at in range(4):
        cv2.imwrite(str(folder / f"{at}.png"), rng.integers(0, 256, (64, 64), np.uint8))
    return folder


_WORDS = st.text(string.ascii_letters + string.digits + " =+-@,;\"'äéß漢\t", max_size=8)


@tried
@given(
    st.lists(_WORDS.map(str.strip), min_size=4, max_size=4),
    st.lists(st.sampled_from([*GRADES, "S0", "S1", "moderate", "grade 2"]), min_size=4, max_size=4),
    st.permutations(range(4)),
)
def test_a_manifest_keeps_every_word_in_whatever_order_rows_come(
    frames_folder, words, grades, order
) -> None:
    def built(places) -> pd.DataFrame:
        with (frames_folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["path", "patient_id", "grade", "scanner"])
            table.writerows([f"{at}.png", f"p{at}", grades[at], words[at]] for at in places)
        build_manifest(frames_folder / "labels.csv", frames_folder / "manifest.csv")
        return read_manifest(frames_folder / "manifest.csv").set_index("frame_id").sort_index()

    straight, turned = built(range(4)), built(order)
    pd.testing.assert_frame_equal(straight, turned, check_like=True)
    by_patient = straight.set_index("patient_id")
    assert [by_patient["scanner"][f"p{at}"] for at in range(4)] == words
