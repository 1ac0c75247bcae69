"""Decisions about boxes: kept through crashes, shared between processes, never overwritten."""

import json
import multiprocessing
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from steatosis_tf.cli import main
from steatosis_tf.cohort.decision_store import STORE_NAME, network_notice, read_entries
from steatosis_tf.cohort.decisions import fold_decisions
from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.roi.columns import write_automatic_boxes
from steatosis_tf.roi.review.rules import Decision, keep_persons_boxes
from steatosis_tf.roi.review.store import DecisionStore
from steatosis_tf.roi.sector import Fan
from steatosis_tf.roi.sector.find import persons_fan, sector_cell
from steatosis_tf.roi.views import Rectangle

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
    assert lines[1] == 'a1,f/a1.png,007,Mild,12.50,x,"Lyon, 2",10,20,30,40,auto,0.9,,,,,,'
    assert lines[3].startswith("c3,f/c3.png,008,Severe,70,x,,,,,,auto,0.05,no liver found")


def test_a_decision_is_on_disk_before_it_is_acknowledged(manifest):
    decide(DecisionStore(manifest), "a1", "accept")  # never closed, never folded
    assert "roi_state" not in manifest.read_text()
    assert row(manifest, "a1")["roi_state"] == "accepted"  # whoever reads the manifest knows it
    assert DecisionStore(manifest).cells(0).state == "accepted"
    assert fold_decisions(manifest) == 1
    assert "accepted" in manifest.read_text()
    assert fold_decisions(manifest) == 0


def old_journal(manifest: Path, *lines: dict) -> Path:
    """A journal as the first releases kept it, with a stump that a killed writer left."""
    path = manifest.with_name(f"{manifest.name}.review.jsonl")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"frame_id":"b2","after":{"recta')
    return path


def old_cells(top: int | None = None, **more: object) -> dict:
    box = None if top is None else {"top": top, "left": 1, "height": 30, "width": 30}
    cells = dict.fromkeys(("source", "reason", "state", "reviewer", "reviewed_at"), "")
    return cells | {"rectangle": box, "quality": 0.9} | more


def test_an_old_journal_is_taken_over_with_its_undo(manifest):
    line = {"frame_id": "a1", "at": "2026-01-02T03:04:05.000Z", "by": "XY"}
    corrected = old_cells(5, source="person", state="corrected", reviewer="XY")
    rejected = old_cells(source="person", state="rejected", reason="dark", reviewer="XY")
    path = old_journal(
        manifest,
        {**line, "action": "correct", "before": old_cells(10, source="auto"), "after": corrected},
        {**line, "action": "reject", "before": corrected, "after": rejected},
        {"folded_to": 10**6, "from": [1, 2, 3], "to": [4, 5, 6]},  # says it is in the manifest
    )
    whole = path.read_bytes()
    assert row(manifest, "a1")["roi_state"] == "rejected"  # only read: nothing is written yet
    assert not manifest.with_name(STORE_NAME).exists()
    store = DecisionStore(manifest)
    store.refresh()
    assert store.num_decisions(0) == 2
    assert decide(store, "b2", "accept").saved
    assert store.num_decisions(0) == 2
    assert decide(store, "a1", "undo").cells.rectangle == Rectangle(5, 1, 30, 30)
    store.close()
    assert box(manifest, "a1") == ("5", "1", "30", "30")
    assert [entry.action for entry in read_entries(manifest)][:4] == [
        "correct", "reject", "accept", "undo",
    ]  # fmt: skip
    assert path.read_bytes() == whole


def test_a_broken_line_of_an_old_journal_is_named(manifest):
    manifest.with_name("manifest.csv.review.jsonl").write_text('{"folded_to":0}\nnonsense\n')
    with pytest.raises(ValueError, match=r"review\.jsonl with a broken line, number 2"):
        read_manifest(manifest)


def test_a_damaged_store_is_named(manifest):
    manifest.with_name(STORE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match=rf"{STORE_NAME}, which is damaged"):
        read_manifest(manifest)


def test_an_older_manifest_put_back_holds_every_decision(manifest):
    older = manifest.read_bytes()
    store = DecisionStore(manifest)
    decide(store, "a1", "correct", rectangle=Rectangle(5, 6, 70, 80))
    decide(store, "b2", "reject", reason="dark")
    store.close()
    newer = manifest.read_bytes()
    manifest.write_bytes(older)
    assert [row(manifest, name)["roi_state"] for name in ("a1", "b2")] == ["corrected", "rejected"]
    assert pd.isna(row(manifest, "b2")["roi_height"])
    assert DecisionStore(manifest).num_decisions(0) == 1
    assert fold_decisions(manifest) == 2
    assert manifest.read_bytes() == newer


def test_a_clock_that_goes_wrong_makes_no_decision_win(manifest):
    store = DecisionStore(manifest)
    decide(store, "a1", "correct", rectangle=Rectangle(1, 1, 20, 20))
    decide(store, "a1", "reject", reason="dark")
    store.close()
    assert row(manifest, "a1")["roi_state"] == "rejected"
    # The other reviewer's machine, on the same folder, is a year behind.
    with closing(sqlite3.connect(manifest.with_name(STORE_NAME))) as connection, connection:
        connection.execute(
            "INSERT INTO decisions SELECT NULL, manifest, frame_id, pixels_sha256, num_copies, "
            "'2001-01-01T00:00:00.000Z', 'CD', 'undo', after, before FROM decisions "
            "WHERE action = 'reject'"
        )
    assert row(manifest, "a1")["roi_state"] == "corrected"
    assert fold_decisions(manifest) == 1
    assert box(manifest, "a1") == ("1", "1", "20", "20")


def test_a_box_of_the_label_table_stays_a_persons(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(
        "frame_id,path,patient_id,grade,fat_percent,pixels_sha256,roi_top,roi_left,roi_height,"
        "roi_width\na1,f/a.png,1,,,x,1,2,30,40\nb2,f/b.png,1,,,y,,,,\nc3,f/c.png,1,,,z,,,,\n"
    )
    decide(DecisionStore(path), "c3", "reject", reason="dark")
    assert read_manifest(path)["roi_source"].tolist() == ["person", "", "person"]
    assert fold_decisions(path) == 1
    assert path.read_text().splitlines()[1:3] == [
        "a1,f/a.png,1,,,x,1,2,30,40,person,,,,,,",
        "b2,f/b.png,1,,,y,,,,,,,,,,,",
    ]


def test_decisions_are_exported_as_csv(manifest, tmp_path):
    store = DecisionStore(manifest)
    decide(store, "a1", "correct", rectangle=Rectangle(5, 6, 70, 80), reason="vessel, big")
    decide(store, "a1", "undo")
    store.close()
    words = ("export-boxes", manifest, "--format", "csv", "--output", tmp_path / "decisions.csv")
    assert main([str(word) for word in words]) == 0
    table = pd.read_csv(tmp_path / "decisions.csv", keep_default_na=False)
    assert table["action"].tolist() == ["correct", "undo"]
    assert table["reviewer"].tolist() == ["AB", "AB"]
    assert table["roi_top"].tolist() == [5, 10]
    assert table["roi_reason"].tolist() == ["vessel, big", ""]


def test_a_network_folder_is_warned_of(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/home {tmp_path} nfs4 rw 0 0\n/dev/a / ext4 rw 0 0\n")
    assert "nfs4" in network_notice(tmp_path / "study", str(mounts))
    assert network_notice(tmp_path.parent, str(mounts)) == ""


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
        "roi_width,roi_source,roi_reason,roi_state,roi_reviewer,roi_reviewed_at,roi_view,roi_sector"
    )
    assert box(path, "a1") == ("1", "2", "30", "40")


def test_a_fan_is_corrected_and_comes_back_by_undo(manifest):
    table = read_manifest(manifest).assign(roi_view="beamspace 384 x 320", roi_sector="0.1.0 x ...")
    write_manifest(table, manifest)
    store = DecisionStore(manifest)
    fan = Fan("convex", 50.0, -20.0, -30.0, 30.0, 30.0, 90.0)
    cell = sector_cell(fan, "x", by_person=True)
    with pytest.raises(ValueError, match="a corrected fan where the frame is seen in beam space"):
        decide(store, "a1", "correct", rectangle=Rectangle(1, 2, 30, 40))
    decide(store, "a1", "correct", rectangle=Rectangle(1, 2, 30, 40), sector=cell)
    assert row(manifest, "a1")["roi_sector"] == cell
    assert row(manifest, "a1")["roi_source"] == "person"
    assert persons_fan("x", cell) == fan
    decide(store, "a1", "undo")
    assert row(manifest, "a1")["roi_sector"] == "0.1.0 x ..."
    decide(store, "b2", "reject", reason="no liver")
    assert row(manifest, "b2")["roi_view"] == "beamspace 384 x 320"
    store.close()


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
        "from steatosis_tf.roi.review.store import DecisionStore\n"
        "from steatosis_tf.roi.review.rules import Decision\n"
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
    write_automatic_boxes(manifest, new)  # the decisions are still in the store only
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
    assert read_entries(manifest) == []


def test_a_frame_without_a_box_cannot_be_accepted(manifest):
    with pytest.raises(ValueError, match="no box to accept"):
        decide(DecisionStore(manifest), "c3", "accept")


def test_an_unknown_frame_is_named(manifest):
    with pytest.raises(ValueError, match="frame_id='zz'"):
        DecisionStore(manifest).position("zz")


def test_a_full_disk_refuses_the_decision_and_keeps_the_store_whole(manifest):
    store = DecisionStore(manifest)
    decide(store, "a1", "accept")
    before = read_entries(manifest)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{STORE_NAME} cannot be used"):
            decide(store, "b2", "accept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_entries(manifest) == before
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
