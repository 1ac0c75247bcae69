"""Counts of a flow diagram worked out by hand, and a picture that holds them."""

import re
import xml.etree.ElementTree as ElementTree

import cv2
import pandas as pd
import pytest

from steatosis_tf.cohort.flow import Count, count_flow, write_flow
from steatosis_tf.cohort.manifest import build_manifest, read_manifest
from steatosis_tf.cohort.partition import Partition
from steatosis_tf.cohort.splits import make_partitions
from steatosis_tf.config import SplitConfig
from steatosis_tf.grades import NOTICE
from steatosis_tf.sources.tables import kinds_of, read_rejected


@pytest.fixture
def flow_of_a_study(study, tmp_path):
    rows = [
        "a.png,P1,Normal", "b.png,P1,Normal", "c.png,P2,Mild", "d.png,P3,Severe",
        "e.png,P4,", "f.png,P5,Mild",
        "gone.png,P2,Mild", "lost.png,P6,Mild", "x.png,P7,Grave",
    ]  # fmt: skip
    labels = study("path,patient_id,grade\n" + "\n".join(rows), [*(f"{c}.png" for c in "abcdefx")])
    build_manifest(labels, tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    table["roi_height"] = pd.array([100, None, 100, 100, 100, 100], dtype="Int64")
    table["roi_code"] = ["", "two_pictures", "", "", "", ""]
    rejected = pd.read_csv(tmp_path / "manifest.rejected.csv", dtype=str, keep_default_na=False)
    partition = Partition(
        "holdout", frozenset({"P1"}), frozenset({"P2"}), frozenset({"P3"}), frozenset({"P5"})
    )
    return count_flow(table, rejected, [partition])


def test_counts_by_hand(flow_of_a_study):
    flow = flow_of_a_study
    assert flow.found == Count("Found", 7, 9)
    assert flow.rejected == (
        Count("missing or unreadable file", 2, 2),
        Count("unknown grade", 1, 1),
    )
    assert flow.in_manifest == Count("In the manifest", 5, 6)
    assert flow.left_aside == (
        Count("in no part of the split", 1, 1),
        Count("no grade", 1, 1),
        Count("split screen", 1, 1),
    )
    assert flow.analysed == Count("Analysed", 3, 3)
    assert [part.total for part in flow.parts] == [
        Count("Train", 1, 1), Count("Validation", 1, 1), Count("Test", 1, 1),
    ]  # fmt: skip
    assert flow.parts[2].per_grade[3] == Count("Severe", 1, 1)
    assert not flow.simulated


def test_frames_add_up(flow_of_a_study):
    flow = flow_of_a_study
    frames = sum(count.num_frames for count in flow.rejected) + flow.in_manifest.num_frames
    assert frames == flow.found.num_frames
    kept = sum(count.num_frames for count in flow.left_aside) + flow.analysed.num_frames
    assert kept == flow.in_manifest.num_frames
    assert sum(part.total.num_frames for part in flow.parts) == flow.analysed.num_frames


def test_rows_are_counted_by_code_whatever_their_words(study, tmp_path):
    """Two grades of other names are one line, a missing and a broken file two."""
    rows = ["a.png,P1,Grave", "b.png,P2,Bad", "c.png,P3,Mild", "d.png,P4,Mild", "e.png,P5,Mild",
            "e.png,P6,Mild", "f.png,P7,Mild"]  # fmt: skip
    labels = study(
        "path,patient_id,grade\n" + "\n".join(rows), ["a.png", "b.png", "e.png", "f.png"]
    )
    (labels.parent / "d.png").write_bytes(b"no picture")
    build_manifest(labels, tmp_path / "manifest.csv")
    rejected = read_rejected(tmp_path / "manifest.rejected.csv")
    assert rejected["reason"].nunique() > 4
    assert kinds_of(rejected).value_counts().to_dict() == {
        "unknown grade": 2, "missing or unreadable file": 1, "not a readable image": 1,
        "duplicate path under several patients": 2,
    }  # fmt: skip


def test_a_file_without_codes_is_counted_by_its_reasons():
    table = pd.DataFrame({"patient_id": ["P1", "P2"], "reason": ["colour Doppler region"] * 2})
    assert kinds_of(table).tolist() == ["colour Doppler region"] * 2


def test_cross_validation_says_how_often_each_is_tested(real_data_dir, tmp_path):
    build_manifest(real_data_dir / "byra2018" / "labels.csv", tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    rejected = pd.read_csv(tmp_path / "manifest.rejected.csv", dtype=str)
    once = count_flow(table, rejected, make_partitions(table, SplitConfig(kind="kfold")))
    assert [part.total for part in once.parts] == [Count("Tested once each, in 5 folds", 44, 440)]
    assert [c.num_patients for c in once.parts[0].per_grade] == [14, 16, 6, 8]


def test_the_picture_holds_every_number_and_the_notice(flow_of_a_study, tmp_path):
    svg, png = tmp_path / "figures" / "flow.svg", tmp_path / "figures" / "flow.png"
    write_flow(flow_of_a_study, tmp_path / "figures" / "flow")
    words = " ".join(ElementTree.fromstring(svg.read_text()).itertext())
    for text in (
        "7 patients, 9 frames", "Rejected: 3 frames",
        "missing or unreadable file: 2 patients, 2",
        "5 patients, 6 frames", "Left aside: 3 frames", "no grade: 1 patient, 1 frame",
        "3 patients, 3 frames", "Validation", "Severe: 1 patient, 1 frame", NOTICE,
    ):  # fmt: skip
        assert text in re.sub(r"\s+", " ", words)
    picture = cv2.imread(str(png))
    assert min(picture.shape[:2]) > 600
    before = svg.read_bytes(), png.read_bytes()
    write_flow(flow_of_a_study, tmp_path / "figures" / "flow")
    assert (svg.read_bytes(), png.read_bytes()) == before


def test_simulated_studies_say_so(flow_of_a_study, tmp_path, study):
    labels = study("path,patient_id,grade,simulated\na.png,P1,Mild,True\n", ["a.png"])
    build_manifest(labels, tmp_path / "manifest.csv")
    table = read_manifest(tmp_path / "manifest.csv")
    partition = Partition("holdout", frozenset({"P1"}), frozenset(), frozenset())
    flow = count_flow(table, pd.DataFrame(columns=["patient_id", "reason"]), [partition])
    write_flow(flow, tmp_path / "flow")
    assert "SIMULATED" in (tmp_path / "flow.svg").read_text()
