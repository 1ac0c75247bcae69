"""Decisions about boxes: kept through crashes, shared between processes, never overwritten."""

import json
import multiprocessing
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.roi.crop import Rectangle
from steatosis_tf.roi.decision_rules import Decision
from steatosis_tf.roi.decisions import DecisionStore
from steatosis_tf.roi.fold import fold_decisions, journal_of, write_automatic_boxes
from steatosis_tf.roi.roi_cells import keep_persons_boxes

HEADER = (
    "frame_id,path,patient_id,grade,fat_percent,pixels_sha256,site,"
    "roi_top,roi_left,roi_height,roi_width,roi_source,roi_quality,roi_reason\n"
)
ROWS = (
    'a1,f/a1.png,007,Mild,12.50,x,"Lyon, 2",10,20,30,40,auto,0.9,\n'
    "b2,f/b2.png,007,,,x,NA,11,21,31,41,auto,0.2,\n"
    "c3,f/c3.png,008,Severe,70,x,,,,,,auto,0.05,no liver found\n"
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three frames: two with a proposal, one without."""
    path = tmp_path / "manifest.csv"
    path.write_text(HEADER + ROWS)
    return path


def decide(store: DecisionStore, frame_id: str, action: str, **more: object):
    revision = store.cells(store.position(frame_id)).revision
    return store.decide(Decision(frame_id, revision, action, **more), reviewer="AB")


def row(path: Path, frame_id: str) -> dict:
    return read_manifest(path).set_index("frame_id").loc[frame_id].to_dict()


def box(path: Path, frame_id: str) -> tuple:
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("frame_id")
    return tuple(table.loc[frame_id, ["roi_top", "roi_left", "roi_height", "roi_width"]])


def test_accept_correct_and_reject_reach_the_manifest(manifest):
    store = DecisionStore(manifest)
    assert decide(store, "a1", "accept").saved
    assert decide(store, "b2", "correct", rectangle=Rectangle(1, 2, 50, 60), reason="vessel").saved
    assert decide(store, "c3", "reject", reason="no liver in view").saved
    store.close()

    accepted, corrected, rejected = (row(manifest, name) for name in ("a1", "b2", "c3"))
    assert (accepted["roi_state"], accepted["roi_source"], accepted["roi_reviewer"]) == (
        "accepted",
        "auto",
        "AB",
    )
    assert box(manifest, "a1") == ("10", "20", "30", "40")
    assert (corrected["roi_state"], corrected["roi_source"]) == ("corrected", "person")
    assert (box(manifest, "b2"), corrected["roi_reason"]) == (("1", "2", "50", "60"), "vessel")
    assert (rejected["roi_state"], rejected["roi_reason"]) == ("rejected", "no liver in view")
    assert box(manifest, "c3") == ("", "", "", "")
    when = pd.Timestamp(accepted["roi_reviewed_at"])
    assert when.utcoffset().total_seconds() == 0
    assert abs(pd.Timestamp.now("UTC") - when) < pd.Timedelta(minutes=1)


def test_cells_that_nobody_decided_about_stay_as_they_were_written(manifest):
    store = DecisionStore(manifest)
    decide(store, "b2", "accept")
    store.close()
    lines = manifest.read_text().splitlines()
    # 12.50 keeps its zero and 007 its zeros: the file is copied, not parsed and printed again.
    assert lines[1] == 'a1,f/a1.png,007,Mild,12.50,x,"Lyon, 2",10,20,30,40,auto,0.9,,,,'
    assert lines[3].startswith("c3,f/c3.png,008,Severe,70,x,,,,,,auto,0.05,no liver found")


def test_a_decision_is_on_disk_before_it_is_acknowledged(manifest):
    decide(DecisionStore(manifest), "a1", "accept")  # never closed, never folded
    assert "roi_state" not in read_manifest(manifest).columns
    assert DecisionStore(manifest).cells(0).state == "accepted"
    assert fold_decisions(manifest) == 1
    assert row(manifest, "a1")["roi_state"] == "accepted"
    assert fold_decisions(manifest) == 0


def test_a_stump_of_a_killed_writer_is_ignored_and_removed(manifest):
    decide(DecisionStore(manifest), "a1", "accept")
    journal = journal_of(manifest).path
    with journal.open("ab") as stream:
        stream.write(b'{"frame_id":"b2","after":{"recta')
    store = DecisionStore(manifest)
    assert store.cells(1).state == ""
    decide(store, "b2", "reject", reason="dark")
    assert [json.loads(line)["frame_id"] for line in journal.read_text().splitlines()] == [
        "a1",
        "b2",
    ]


def test_a_broken_journal_line_names_its_place(manifest):
    journal_of(manifest).path.write_text("{}\nnonsense\n".replace("{}", '{"folded_to":0}'))
    with pytest.raises(
        ValueError, match=r"manifest\.csv\.review\.jsonl with a broken line at byte 16"
    ):
        fold_decisions(manifest)


def test_a_crash_between_rewrite_and_marker_folds_twice_without_harm(manifest):
    store = DecisionStore(manifest)
    decide(store, "a1", "correct", rectangle=Rectangle(5, 6, 70, 80))
    store.close()
    journal = journal_of(manifest).path
    decision, _marker = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(decision)  # as if killed before the marker was written
    before = manifest.read_bytes()
    assert fold_decisions(manifest) == 1
    assert manifest.read_bytes() == before


def test_undo_steps_back_and_reopen_returns_to_the_proposal(manifest):
    store = DecisionStore(manifest)
    proposal = store.cells(0)
    decide(store, "a1", "correct", rectangle=Rectangle(1, 1, 20, 20))
    decide(store, "a1", "correct", rectangle=Rectangle(2, 2, 22, 22))
    decide(store, "a1", "reject", reason="dark")
    store.close()

    later = DecisionStore(manifest)  # undo works after a restart, too
    assert decide(later, "a1", "undo").cells.rectangle == Rectangle(2, 2, 22, 22)
    assert decide(later, "a1", "undo").cells.rectangle == Rectangle(1, 1, 20, 20)
    assert decide(later, "a1", "accept").cells.state == "accepted"
    assert decide(later, "a1", "reopen").cells == proposal
    later.close()
    assert box(manifest, "a1") == ("10", "20", "30", "40")
    assert row(manifest, "a1")["roi_source"] == "auto"
    with pytest.raises(ValueError, match="no decision to take back"):
        decide(later, "a1", "undo")


def test_a_manifest_that_has_no_roi_columns_yet_gets_them(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text("frame_id,path,patient_id,grade,fat_percent,pixels_sha256\na1,f/a.png,1,,,x\n")
    store = DecisionStore(path)
    assert store.cells(0).rectangle is None
    decide(store, "a1", "correct", rectangle=Rectangle(1, 2, 30, 40))
    store.close()
    assert path.read_text().splitlines()[0] == (
        "frame_id,path,patient_id,grade,fat_percent,pixels_sha256,roi_top,roi_left,roi_height,"
        "roi_width,roi_source,roi_reason,roi_state,roi_reviewer,roi_reviewed_at"
    )
    assert box(path, "a1") == ("1", "2", "30", "40")


def test_two_reviewers_do_not_overwrite_each_other(manifest):
    first, second = DecisionStore(manifest), DecisionStore(manifest)
    seen = second.cells(0).revision
    decide(first, "a1", "correct", rectangle=Rectangle(1, 2, 30, 40))
    outcome = second.decide(Decision("a1", seen, "reject", reason="dark"), reviewer="CD")
    assert not outcome.saved
    assert (outcome.cells.rectangle, outcome.cells.reviewer) == (Rectangle(1, 2, 30, 40), "AB")
    assert decide(second, "b2", "accept").saved
    first.close()
    second.close()
    assert [row(manifest, name)["roi_state"] for name in ("a1", "b2")] == ["corrected", "accepted"]


def _decide_many(path: str, start: int, step: int) -> None:
    store = DecisionStore(path)
    store.start_folding()
    for at in range(start, len(store), step):
        cells = store.cells(at)
        wanted = Decision(store.frame_id(at), cells.revision, "correct", Rectangle(at, 1, 20, 20))
        store.decide(wanted, reviewer=f"R{start}")
    store.close()


def test_processes_that_decide_and_fold_at_once_lose_nothing(tmp_path):
    path = tmp_path / "manifest.csv"
    rows = [f"f{at:03},p/{at}.png,1,,,x,,1,1,20,20,auto,0.5,\n" for at in range(120)]
    path.write_text(HEADER + "".join(rows))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_decide_many, args=(str(path), at, 3)) for at in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    table = read_manifest(path)
    assert (table["roi_top"] == range(120)).all()
    assert (table["roi_reviewer"] == [f"R{at % 3}" for at in range(120)]).all()


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path = tmp_path / "manifest.csv"
    rows = [f"f{at:04},p/{at}.png,1,,,x,,1,1,20,20,auto,0.5,\n" for at in range(5000)]
    path.write_text(HEADER + "".join(rows))
    program = (
        "import sys\n"
        "from steatosis_tf.roi.decisions import DecisionStore\n"
        "from steatosis_tf.roi.decision_rules import Decision\n"
        "store = DecisionStore(sys.argv[1])\n"
        "store.start_folding()\n"
        "for at in range(len(store)):\n"
        "    cells = store.cells(at)\n"
        "    store.decide(Decision(store.frame_id(at), cells.revision, 'accept'), reviewer='K')\n"
        "    print(at, flush=True)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    acknowledged = -1
    deadline = time.monotonic() + 20
    while acknowledged < 60 and time.monotonic() < deadline:
        acknowledged = int(worker.stdout.readline())
    worker.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, worker.stdout.read().split())])
    worker.wait()

    fold_decisions(path)
    accepted = read_manifest(path)["roi_state"] == "accepted"
    assert acknowledged >= 60
    assert accepted[: acknowledged + 1].all()
    assert len(read_manifest(path)) == 5000


def test_an_automatic_run_leaves_decided_rows_alone(manifest):
    store = DecisionStore(manifest)
    decide(store, "a1", "accept")
    decide(store, "c3", "correct", rectangle=Rectangle(1, 2, 30, 40))
    new = read_manifest(manifest)
    new[["roi_top", "roi_left", "roi_height", "roi_width"]] = 99
    new["roi_quality"], new["roi_reason"] = 0.77, "newer proposer"
    write_automatic_boxes(manifest, new)  # the decisions are still in the journal only
    assert box(manifest, "a1") == ("10", "20", "30", "40")
    assert box(manifest, "b2") == ("99", "99", "99", "99")
    assert box(manifest, "c3") == ("1", "2", "30", "40")
    assert row(manifest, "b2")["roi_quality"] == 0.77
    assert row(manifest, "a1")["roi_quality"] == 0.9
    store.refresh()
    assert store.cells(1).rectangle == Rectangle(99, 99, 99, 99)


def test_keep_persons_boxes_with_tables_of_different_columns_and_order():
    old = pd.DataFrame(
        {
            "frame_id": ["a", "b", "c"],
            "roi_top": pd.array([1, 2, None], dtype="Int64"),
            "roi_left": pd.array([1, 2, None], dtype="Int64"),
            "roi_height": pd.array([1, 2, None], dtype="Int64"),
            "roi_width": pd.array([1, 2, None], dtype="Int64"),
            "roi_source": ["person", "auto", "person"],
            "roi_state": ["corrected", "", "rejected"],
            "roi_reason": ["", "", "dark"],
        }
    )
    new = pd.DataFrame({"frame_id": ["c", "b", "a", "d"]})
    for name in ("roi_top", "roi_left", "roi_height", "roi_width"):
        new[name] = pd.array([7, 7, 7, 7], dtype="Int64")
    new["roi_source"], new["roi_quality"] = "auto", 0.5
    merged = keep_persons_boxes(old, new)
    assert merged["frame_id"].tolist() == ["c", "b", "a", "d"]
    assert merged["roi_top"].tolist() == [pd.NA, 7, 1, 7]
    assert merged["roi_source"].tolist() == ["person", "auto", "person", "auto"]
    assert merged["roi_state"].tolist() == ["rejected", "", "corrected", ""]
    assert merged["roi_quality"].isna().tolist() == [True, False, True, False]


def test_a_manifest_that_was_replaced_meanwhile_is_seen(manifest):
    store = DecisionStore(manifest)
    seen = store.cells(0).revision
    table = read_manifest(manifest)
    table.loc[0, "roi_top"] = 77
    write_manifest(table, manifest)
    outcome = store.decide(Decision("a1", seen, "accept"), reviewer="AB")
    assert not outcome.saved
    assert outcome.cells.rectangle == Rectangle(77, 20, 30, 40)


@pytest.mark.parametrize(
    ("action", "more", "message"),
    [
        ("approve", {}, "Expected an action out of accept, .*'approve'"),
        ("correct", {}, "Expected the corrected box"),
        ("reject", {}, "Expected a reason"),
        ("reject", {"reason": "x" * 201}, "at most 200 characters. Received: 201"),
        ("undo", {}, "no decision to take back"),
    ],
)
def test_impossible_decisions_say_why_and_save_nothing(manifest, action, more, message):
    store = DecisionStore(manifest)
    with pytest.raises(ValueError, match=message):
        decide(store, "a1", action, **more)
    assert not journal_of(manifest).path.exists()


def test_a_frame_without_a_box_cannot_be_accepted(manifest):
    with pytest.raises(ValueError, match="no box to accept"):
        decide(DecisionStore(manifest), "c3", "accept")


def test_an_unknown_frame_is_named(manifest):
    with pytest.raises(ValueError, match="frame_id='zz'"):
        DecisionStore(manifest).position("zz")


def test_a_full_disk_refuses_the_decision_and_keeps_the_journal_whole(manifest):
    store = DecisionStore(manifest)
    decide(store, "a1", "accept")
    journal = journal_of(manifest).path
    whole = journal.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 30, limits[1]))
    try:
        with pytest.raises(OSError, match="only 30 of"):
            decide(store, "b2", "accept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.read_bytes() == whole
    assert store.cells(1).state == ""
    assert decide(store, "b2", "accept").saved


def test_order_filter_and_progress(manifest):
    store = DecisionStore(manifest)
    queue = store.queue
    go = {"filter_by": "to_review", "order": "worst", "count": 5, "step": 1}
    # The frame without a box comes first, then quality 0.2, then 0.9.
    assert queue.following(None, **go) == [2, 1, 0]
    assert queue.following(1, **go) == [0, 2]
    assert queue.following(1, **{**go, "step": -1}) == [2, 0]
    decide(store, "b2", "accept")
    assert queue.following(None, **go) == [2, 0]
    assert queue.following(None, **{**go, "filter_by": "no_box"}) == [2]
    assert queue.following(None, **{**go, "filter_by": "all", "order": "file"}) == [0, 1, 2]
    assert queue.counts() == {
        "to_review": 2,
        "no_box": 1,
        "accepted": 1,
        "corrected": 0,
        "rejected": 0,
        "all": 3,
    }


def test_decisions_change_no_place_in_the_worst_first_order(tmp_path):
    path = tmp_path / "manifest.csv"
    unrated = "d4,f/d4.png,009,Severe,70,x,,1,2,30,40,auto,,\n"
    hopeless = "e5,f/e5.png,010,Severe,70,x,,,,,,auto,,no sector found\n"
    path.write_text(HEADER + ROWS + unrated + hopeless)
    store = DecisionStore(path)
    decide(store, "a1", "reject", reason="shadow")
    decide(store, "e5", "correct", rectangle=Rectangle(1, 2, 50, 60))
    store.close()  # the decisions are in the manifest now
    for opened in (store, DecisionStore(path)):
        ranks = [opened.queue.rank(opened.position(at), "worst") for at in ("e5", "c3", "b2")]
        assert ranks == [0, 1, 2]
        assert opened.queue.rank(opened.position("a1"), "worst") == 3
        assert opened.queue.rank(opened.position("d4"), "worst") == 4
