"""No verb loses what a person has decided about a frame."""

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from steatosis_tf.cli import main
from steatosis_tf.cohort.decisions import manifest_lock
from steatosis_tf.cohort.manifest import frame_id_of, read_manifest
from steatosis_tf.records.builder import usable_rows
from steatosis_tf.roi.review.rules import Decision
from steatosis_tf.roi.review.store import DecisionStore
from steatosis_tf.roi.views import Rectangle

NUM_FRAMES = 12
WANTED = {"accepted": 2, "corrected": 2, "rejected": 2, "": NUM_FRAMES - 6}


def call(*words: object) -> int:
    return main([str(word) for word in words])


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(20, 200, (96, 128)).astype(np.uint8)
    cv2.imwrite(str(path), noise)


def write_labels(folder: Path, paths: list[str], with_boxes: bool = True) -> Path:
    grades = ("Normal", "Mild", "Moderate", "Severe")
    lines = ["path,patient_id,grade" + ",roi_top,roi_left,roi_height,roi_width" * with_boxes]
    for at, path in enumerate(paths):
        box = ",10,10,40,50" if with_boxes else ""
        lines.append(f"{path},P{at},{grades[at % 4]}{box}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A manifest of twelve frames of twelve patients: two accepted, corrected and rejected each."""
    paths = [f"f/{at}.png" for at in range(NUM_FRAMES)]
    for at, path in enumerate(paths):
        draw(tmp_path / path, at)
    manifest = tmp_path / "manifest.csv"
    assert call("manifest", write_labels(tmp_path, paths), "--output", manifest) == 0
    decide(manifest)
    return manifest


def decide(manifest: Path) -> None:
    store = DecisionStore(manifest)
    for at, action in enumerate(("accept", "accept", "correct", "correct", "reject", "reject")):
        box = Rectangle(at, 2, 30, 40) if action == "correct" else None
        revision = store.cells(at).revision
        wanted = Decision(store.frame_id(at), revision, action, box, "shadow")
        assert store.decide(wanted, reviewer="AB").saved
    store.close()


def states(manifest: Path) -> dict[str, int]:
    return dict(read_manifest(manifest)["roi_state"].value_counts())


def test_a_manifest_made_again_holds_every_decision(study):
    before = read_manifest(study)
    assert call("manifest", study.with_name("labels.csv"), "--output", study) == 0
    assert states(study) == WANTED
    after = read_manifest(study)
    for name in ("roi_top", "roi_height", "roi_reason", "roi_reviewer", "roi_reviewed_at"):
        assert after[name].equals(before[name]), name
    assert ",rejected,AB," in study.read_text()  # and whoever opens the CSV sees them


def test_rejected_frames_do_not_come_back_into_training(study):
    assert call("manifest", study.with_name("labels.csv"), "--output", study) == 0
    assert call("split", study, "--set", "split.kind=kfold", "split.folds=2") == 0
    rows = usable_rows(read_manifest(study))
    assert len(rows) == NUM_FRAMES - 2
    assert "rejected" not in set(rows["roi_state"])


def test_an_older_manifest_put_back_is_split_and_read_with_the_decisions(study):
    fresh = study.with_name("fresh.csv")
    write_labels(study.parent, [f"f/{at}.png" for at in range(NUM_FRAMES)])
    text = "\n".join(
        ",".join(line.split(",")[:10]) for line in study.read_text().splitlines()
    )  # as `manifest` wrote it, before anybody reviewed
    fresh.write_text(text + "\n")
    fresh.replace(study)
    assert call("split", study, "--set", "split.kind=kfold", "split.folds=2") == 0
    assert states(study) == WANTED
    assert call("leaks", study) == 0
    assert states(study) == WANTED


def test_frames_under_new_names_keep_their_decisions(study):
    paths = [f"moved/{at}.png" for at in range(NUM_FRAMES)]
    (study.parent / "f").rename(study.parent / "moved")
    assert call("manifest", write_labels(study.parent, paths), "--output", study) == 0
    assert read_manifest(study)["frame_id"].tolist() == list(map(frame_id_of, paths))
    assert states(study) == WANTED
    store = DecisionStore(study)
    assert store.num_decisions(4) == 1  # undo goes on
    revision = store.cells(4).revision
    store.decide(Decision(store.frame_id(4), revision, "undo"), reviewer="CD")
    store.close()
    assert states(study) == {"accepted": 2, "corrected": 2, "rejected": 1, "": NUM_FRAMES - 5}


def test_names_that_move_along_take_their_decisions_with_them(study):
    folder = study.parent / "f"
    for at in reversed(range(NUM_FRAMES)):
        (folder / f"{at}.png").rename(folder / f"{at + 1}.png")
    draw(folder / "0.png", 99)
    labels = write_labels(study.parent, [f"f/{at}.png" for at in range(NUM_FRAMES + 1)])
    before = read_manifest(study)["roi_state"].tolist()
    assert call("manifest", labels, "--output", study) == 0
    assert read_manifest(study)["roi_state"].tolist() == ["", *before]


def test_another_manifest_of_the_same_frames_holds_the_decisions(study):
    other = study.with_name("other.csv")
    assert call("manifest", study.with_name("labels.csv"), "--output", other) == 0
    assert states(other) == WANTED


def test_a_reviewed_manifest_without_its_store_keeps_its_decisions(study):
    for path in study.parent.glob("*.sqlite"):
        path.unlink()
    assert call("manifest", study.with_name("labels.csv"), "--output", study) == 0
    assert states(study) == WANTED


def test_a_decision_about_one_of_two_exact_copies_stays_with_that_one(tmp_path):
    for path in ("f/a.png", "f/b.png"):
        draw(tmp_path / path, 0)
    manifest = tmp_path / "manifest.csv"
    labels = write_labels(tmp_path, ["f/a.png", "f/b.png"])
    assert call("manifest", labels, "--output", manifest) == 0
    store = DecisionStore(manifest)
    store.decide(
        Decision(store.frame_id(1), store.cells(1).revision, "reject", None, "x"), reviewer="AB"
    )
    store.close()
    assert call("manifest", labels, "--output", manifest) == 0
    assert read_manifest(manifest)["roi_state"].tolist() == ["", "rejected"]


def test_copies_under_new_names_stop_the_verb(tmp_path, capsys):
    for path in ("f/a.png", "f/b.png", "g/a.png", "g/b.png"):
        draw(tmp_path / path, 0)
    manifest = tmp_path / "manifest.csv"
    labels = write_labels(tmp_path, ["f/a.png", "f/b.png"])
    assert call("manifest", labels, "--output", manifest) == 0
    store = DecisionStore(manifest)
    store.decide(
        Decision(store.frame_id(1), store.cells(1).revision, "reject", None, "x"), reviewer="AB"
    )
    store.close()
    before = manifest.read_bytes()
    labels = write_labels(tmp_path, ["g/a.png", "g/b.png"])
    assert call("manifest", labels, "--output", manifest) == 1
    assert f"without 1 frame (frame_id {frame_id_of('f/b.png')})" in capsys.readouterr().err
    assert manifest.read_bytes() == before


def test_a_frame_left_out_of_the_labels_stops_the_verb(study, capsys):
    before = study.read_bytes()
    labels = write_labels(study.parent, [f"f/{at}.png" for at in range(1, NUM_FRAMES)])
    assert call("manifest", labels, "--output", study) == 1
    error = capsys.readouterr().err
    assert f"without 1 frame (frame_id {frame_id_of('f/0.png')})" in error
    assert study.read_bytes() == before
    assert call("manifest", labels, "--output", study.parent / "new" / "manifest.csv") == 0


def test_new_pixels_under_an_old_name_stop_every_verb_until_reviewed(study, capsys):
    draw(study.with_name("f") / "4.png", 99)  # a rejected frame
    labels = study.with_name("labels.csv")
    assert call("manifest", labels, "--output", study) == 1
    assert "with other pixels for them" in capsys.readouterr().err
    study.unlink()
    for path in study.parent.glob("*.sqlite"):
        path.rename(path.with_suffix(".aside"))
    assert call("manifest", labels, "--output", study) == 0
    for path in study.parent.glob("*.aside"):
        path.rename(path.with_suffix(".sqlite"))
    out = study.parent
    for words in (
        ("split", study),
        ("leaks", study),
        ("roi", study),
        ("records", study, "--output", out / "records"),
        ("export-boxes", study, "--output", out / "boxes.json"),
    ):
        assert call(*words) == 1, words
        assert "decided about with other pixels" in capsys.readouterr().err, words
    store = DecisionStore(study)
    assert store.cells(4).state == ""
    revision = store.cells(4).revision
    store.decide(Decision(store.frame_id(4), revision, "reject", None, "dark"), reviewer="AB")
    store.close()
    assert states(study) == WANTED


def test_dropping_a_copy_that_a_person_decided_about_is_refused(tmp_path, capsys):
    paths = [f"f/{at}.png" for at in range(NUM_FRAMES)]
    for at, path in enumerate(paths):
        draw(tmp_path / path, at)
    draw(tmp_path / "f/4.png", 0)  # a copy of the first, of another patient with the same grade
    manifest = tmp_path / "manifest.csv"
    assert call("manifest", write_labels(tmp_path, paths), "--output", manifest) == 0
    table = read_manifest(manifest)
    (tmp_path / "split.csv").write_text(
        "patient_id,split\n"
        + "".join(
            f"{patient},{('train', 'test', 'validation')[at // 4]}\n"
            for at, patient in enumerate(table["patient_id"])
        )
    )
    assert call("split", manifest, "--import", tmp_path / "split.csv") == 0
    store = DecisionStore(manifest)
    store.decide(
        Decision(store.frame_id(4), store.cells(4).revision, "reject", None, "x"), reviewer="AB"
    )
    store.close()
    before = manifest.read_bytes()
    capsys.readouterr()
    assert call("leaks", manifest, "--drop-copies") == 1
    assert f"without 1 frame (frame_id {frame_id_of('f/4.png')})" in capsys.readouterr().err
    assert manifest.read_bytes() == before


def test_split_waits_for_whoever_rewrites_the_manifest(study):
    held, seconds = threading.Event(), 1.0

    def hold() -> None:
        with manifest_lock(study):
            held.set()
            time.sleep(seconds)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    begin = time.monotonic()
    assert call("split", study, "--set", "split.kind=kfold", "split.folds=2") == 0
    assert time.monotonic() - begin > seconds / 2
    holder.join()
