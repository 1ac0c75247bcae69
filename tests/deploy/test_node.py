"""The worker beside a real Orthanc: studies in by C-STORE, answers out by QIDO and C-STORE."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="needs the extra pacs")
pytest.importorskip("pynetdicom", reason="needs the extra dev")

from pydicom import dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt

from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.bare_network import BareNetwork
from steatosis_tf.deploy.node import Orthanc, OrthancAway, Worker, resubmit_failed
from steatosis_tf.deploy.sr import PacsAnswer, pacs_answer
from steatosis_tf.deploy.study import read_study
from steatosis_tf.model.answer import REASONS, PatientAnswer
from steatosis_tf.sources.phantom.study import simulate_patient
from tests.deploy.real_orthanc import RealOrthanc, free_port, until
from tests.sources.dicom.made_dicom import UID_ROOT, file_bytes, made_dataset

MODEL = BareNetwork("phantom 1", "ab" * 32, session=None, roi=RoiConfig())


def image(number: int, study: int = 1, **changes):
    """A still of a study; its patient too has the study's number."""
    return made_dataset(
        number=100 * study + number,
        StudyInstanceUID=f"{UID_ROOT}.1.{study}",
        SeriesInstanceUID=f"{UID_ROOT}.2.{study}",
        PatientID=f"MRN {study}",
        **changes,
    )


def study_uid(study: int = 1) -> str:
    return f"{UID_ROOT}.1.{study}"


def unable(folder: Path) -> PacsAnswer:
    """The answer of a model that sees no liver in a study."""
    study = read_study(folder)
    answer = PatientAnswer(study.uid, "unable", "no_liver", REASONS["no_liver"])
    return pacs_answer(study, answer, MODEL)


def c_store(orthanc: RealOrthanc, *datasets) -> None:
    """Send as a scanner would, and check each status."""
    scanner = AE("SCANNER")
    scanner.requested_contexts = AllStoragePresentationContexts[:100]
    for dataset in datasets:
        scanner.add_requested_context(dataset.SOPClassUID)
    link = scanner.associate("127.0.0.1", orthanc.dicom_port, ae_title="STEATOSIS")
    assert link.is_established
    try:
        for dataset in datasets:
            assert link.send_c_store(dataset).Status == 0x0000
    finally:
        link.release()


class StandInPacs:
    """A storage SCP that keeps what it is sent, or refuses it.

    Attributes:
        status: what it answers: 0x0000 success, 0xA900 refused.
        received: SOPInstanceUIDs that it took.
    """

    def __init__(self, port: int):
        self.port, self.status, self.received, self.refused = port, 0x0000, [], 0
        ae = AE("PACS")
        ae.supported_contexts = AllStoragePresentationContexts
        self._server = ae.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )

    def _store(self, event) -> int:
        if self.status == 0x0000:
            self.received.append(event.request.AffectedSOPInstanceUID)
        else:
            self.refused += 1
        return self.status

    def close(self) -> None:
        self._server.shutdown()


class Node:
    """`steatosis node` as a process of its own."""

    def __init__(self, orthanc: RealOrthanc, folder: Path, model: Path):
        self._folder = folder
        self._args = [
            sys.executable, "-m", "steatosis_tf.cli", "node",
            "--orthanc", orthanc.url, "--state", str(folder / "state"), "--model", str(model),
        ]  # fmt: skip
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._args, stdout=log, stderr=log, env=env)

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(with_signal)
            self._process.wait(30)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def work(self) -> int:
        """When the folder of the study in work was last changed; 0 without one."""
        try:
            return (self._folder / "state" / "work").stat().st_ctime_ns
        except FileNotFoundError:
            return 0

    def last(self) -> int:
        """Sequence number of the change that it is done with."""
        path = self._folder / "state" / "place.json"
        return json.loads(path.read_text())["last"] if path.is_file() else 0


@pytest.fixture
def pacs():
    server = StandInPacs(free_port())
    yield server
    server.close()


@pytest.fixture
def orthanc(tmp_path, pacs):
    server = RealOrthanc(tmp_path / "orthanc", pacs.port)
    yield server
    server.stop()


@pytest.fixture
def node(tmp_path, orthanc, phantom_bundle):
    worker = Node(orthanc, tmp_path / "node", phantom_bundle)
    yield worker
    worker.stop(signal.SIGKILL)


@pytest.fixture
def worker(tmp_path, orthanc):
    """A worker in this process, driven step by step."""
    return Worker(Orthanc(orthanc.url), tmp_path / "state", unable)


def changed(orthanc: RealOrthanc, number: int = 1) -> bool:
    """Whether so many stable studies have been told of."""
    changes = orthanc.get("/changes", limit="1000")["Changes"]
    return sum(change["ChangeType"] == "StableStudy" for change in changes) >= number


def work_off(worker: Worker) -> None:
    while worker.step():
        pass


def predecessors(report) -> list[str]:
    return [
        item.ReferencedSOPInstanceUID
        for study in report.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ]


def reports(orthanc: RealOrthanc, study: int = 1) -> list:
    """Our reports of a study, whole, from the REST interface."""
    from io import BytesIO

    from tests.deploy.real_orthanc import SESSION

    found = []
    for series in orthanc.get("/series", expand=""):
        tags = series["MainDicomTags"]
        if (tags.get("Manufacturer"), tags["Modality"]) == ("steatosis_tf", "SR"):
            for instance in series["Instances"]:
                data = SESSION.get(f"{orthanc.url}/instances/{instance}/file", timeout=30).content
                found.append(dcmread(BytesIO(data)))
    return [one for one in found if one.StudyInstanceUID == study_uid(study)]


def test_a_study_sent_by_c_store_gets_an_answer_and_late_images_a_second_one(orthanc, node, pacs):
    frames, _ = simulate_patient(
        60.0, num_frames=2, generator=np.random.default_rng(5), size_px=(240, 320)
    )
    clip = made_dataset(
        np.stack(frames), number=101, PatientID="MRN 1", SequenceOfUltrasoundRegions=None
    )
    node.start()
    c_store(orthanc, clip, image(2))
    (first,) = until(lambda: orthanc.answers(study_uid(), "SR"))
    (key,) = orthanc.answers(study_uid(), "OT")
    until(lambda: len(pacs.received) == 2)
    assert set(pacs.received) == {first["00080018"]["Value"][0], key["00080018"]["Value"][0]}

    c_store(orthanc, image(3))
    until(lambda: len(orthanc.answers(study_uid(), "SR")) == 2)
    one, other = sorted(reports(orthanc), key=lambda report: len(predecessors(report)))
    assert "Severity" in str(one)  # graded by the clip; the still shows no liver
    assert predecessors(one) == []
    assert predecessors(other) == [one.SOPInstanceUID]
    # Its own answers made the study stable once more: nothing more comes of that.
    seen = orthanc.get("/changes", last="")["Last"]
    until(lambda: orthanc.get("/changes", last="")["Last"] == node.last() >= seen)
    assert len(orthanc.answers(study_uid(), "SR")) == 2
    assert "MRN" not in node.log
    assert "Doe" not in node.log


@pytest.mark.parametrize(
    "num_kills", [2, pytest.param(10, marks=pytest.mark.slow)], ids=["two", "ten"]
)
def test_a_killed_worker_loses_nothing_and_doubles_nothing(orthanc, node, num_kills):
    num_studies = 2 * num_kills
    interrupted = 0
    for number, moment in enumerate(np.random.default_rng(1).uniform(0.0, 0.6, num_kills)):
        for study in (2 * number + 1, 2 * number + 2):
            orthanc.send(file_bytes(image(1, study)))
        until(lambda: changed(orthanc, 2 * number + 2))  # noqa: B023
        left = node.work()  # what the kill before may have left behind
        node.start()
        until(lambda: node.work() not in (0, left), every=0.01)  # noqa: B023
        time.sleep(moment)
        node.stop(signal.SIGKILL)
        interrupted += node.work() != 0
    assert interrupted >= 1
    node.start()
    until(lambda: node.last() >= orthanc.get("/changes", last="")["Last"], 240)
    for study in range(1, num_studies + 1):
        assert len(orthanc.answers(study_uid(study), "SR")) == 1
        assert len(orthanc.answers(study_uid(study), "OT")) == 1
        assert [predecessors(report) for report in reports(orthanc, study)] == [[]]


def test_other_modalities_and_own_answers_are_passed_over(orthanc, worker):
    ct = image(1, 1, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    ct.file_meta.MediaStorageSOPClassUID = ct.SOPClassUID
    orthanc.send(file_bytes(ct))
    orthanc.send(file_bytes(image(1, 2)))
    until(lambda: changed(orthanc, 2))
    work_off(worker)
    assert not orthanc.answers(study_uid(1), "SR")
    assert len(orthanc.answers(study_uid(2), "SR")) == 1
    until(lambda: changed(orthanc, 3))  # the answer itself
    worker.answer = None  # would raise if it were asked
    work_off(worker)
    assert worker.place["failing"] == {}


def test_a_doppler_study_is_passed_over_not_failed(orthanc, worker, capsys):
    orthanc.send(file_bytes(image(1, ImageType=["ORIGINAL", "PRIMARY", "", "0010"])))
    until(lambda: changed(orthanc))
    work_off(worker)
    assert worker.place["failing"] == {}
    assert "passed over" in capsys.readouterr().err


def test_what_fails_three_times_goes_to_a_folder_with_its_reason(
    orthanc, worker, monkeypatch, capsys
):
    # By the function's own module: another test may have had the package imported anew.
    monkeypatch.setitem(Worker.step.__globals__, "RETRY_S", (0.0, 0.0))

    def fail(folder: Path) -> PacsAnswer:
        raise KeyError("Doe^John")

    worker.answer = fail
    orthanc.send(file_bytes(image(1)))
    orthanc.send(file_bytes(image(1, 2)))
    until(lambda: changed(orthanc, 2))
    for _ in range(4):
        worker.step()
    failed = sorted((worker.folder / "failed").iterdir())
    assert [json.loads(path.read_text())["reason"] for path in failed] == ["KeyError"] * 2
    assert "Doe" not in capsys.readouterr().err
    assert worker.place["failing"] == {}

    worker.answer = unable  # mended; a late image brings the study up again
    orthanc.send(file_bytes(image(2)))
    until(lambda: changed(orthanc, 3))
    work_off(worker)
    assert len(list((worker.folder / "failed").iterdir())) == 1
    assert len(orthanc.answers(study_uid(), "SR")) == 1


def test_an_orthanc_that_goes_away_in_between_is_waited_for(orthanc, worker):
    orthanc.send(file_bytes(image(1)))
    until(lambda: changed(orthanc))
    real = worker.answer

    def stop_then_answer(folder: Path) -> PacsAnswer:
        made = real(folder)
        orthanc.stop()
        return made

    worker.answer = stop_then_answer
    with pytest.raises(OrthancAway):
        worker.step()
    assert worker.place["failing"] == {}
    assert worker.place["last"] < 7
    orthanc.start()
    worker.answer = real
    work_off(worker)
    assert len(orthanc.answers(study_uid(), "SR")) == 1
    assert len(orthanc.answers(study_uid(), "OT")) == 1


def test_a_break_between_key_image_and_report_leaves_one_of_each(orthanc, worker, monkeypatch):
    orthanc.send(file_bytes(image(1)))
    until(lambda: changed(orthanc))
    store = worker.orthanc.store

    def store_and_break_off(data: bytes) -> None:
        store(data)
        orthanc.stop()

    monkeypatch.setattr(worker.orthanc, "store", store_and_break_off)
    with pytest.raises(OrthancAway):
        worker.step()
    monkeypatch.undo()
    orthanc.start()
    assert [len(orthanc.answers(study_uid(), kind)) for kind in ("OT", "SR")] == [1, 0]
    work_off(worker)
    assert [len(orthanc.answers(study_uid(), kind)) for kind in ("OT", "SR")] == [1, 1]


def test_a_full_disk_is_waited_for(orthanc, worker):
    orthanc.send(file_bytes(image(1)))
    until(lambda: changed(orthanc))

    def full(folder: Path) -> PacsAnswer:
        raise OSError(28, "No space left on device")

    worker.answer = full
    with pytest.raises(OSError, match="No space left"):
        worker.step()
    assert worker.place == {"last": 0, "failing": {}, "answered": {}}
    assert not list(worker.folder.glob("work/*"))


def test_an_orthanc_that_does_not_take_an_answer_is_no_success(tmp_path, pacs):
    lua = tmp_path / "filter.lua"
    lua.write_text("function ReceivedInstanceFilter(tags) return tags.Modality == 'US' end")
    orthanc = RealOrthanc(tmp_path / "orthanc", LuaScripts=[str(lua)])
    try:
        worker = Worker(Orthanc(orthanc.url), tmp_path / "state", unable)
        orthanc.send(file_bytes(image(1)))
        until(lambda: changed(orthanc))
        worker.step()
        ((attempts, _),) = worker.place["failing"].values()
        assert attempts == 1
    finally:
        orthanc.stop()


def test_an_orthanc_that_refuses_ends_the_worker_with_a_sentence(
    tmp_path, phantom_bundle, monkeypatch
):
    orthanc = RealOrthanc(
        tmp_path / "closed", AuthenticationEnabled=True, RegisteredUsers={"a": "b"}
    )
    try:
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        told = _run_node(orthanc.url, tmp_path, phantom_bundle)
        assert told.returncode == 1
        assert "error: Expected Orthanc to let the worker in" in told.stderr
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
        assert Orthanc(orthanc.url).get("/changes")["Done"]
    finally:
        orthanc.stop()


def _run_node(url: str, folder: Path, model: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "steatosis_tf.cli", "node", "--orthanc", url, "--state",
         str(folder / "other"), "--model", str(model)],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_a_new_database_is_read_from_the_first_change(tmp_path, orthanc, worker, capsys):
    worker.place["last"] = 1000
    orthanc.send(file_bytes(image(1)))
    until(lambda: changed(orthanc))
    runs = threading.Thread(target=worker.run, daemon=True)
    runs.start()
    until(lambda: orthanc.answers(study_uid(), "SR"))
    # An administrator sees that it works before the first study comes, and after each wait.
    until(lambda: "following the changes of Orthanc" in capsys.readouterr().err)


def test_a_pacs_that_refuses_is_tried_again(orthanc, worker, pacs):
    pacs.status = 0xA900
    orthanc.send(file_bytes(image(1)))
    until(lambda: changed(orthanc))
    work_off(worker)
    until(lambda: pacs.refused >= 2)
    until(lambda: {job["State"] for job in orthanc.get("/jobs", expand="")} == {"Failure"})
    pacs.status = 0x0000
    assert resubmit_failed(worker.orthanc) == 2
    until(lambda: len(pacs.received) == 2)
    until(lambda: {job["State"] for job in orthanc.get("/jobs", expand="")} == {"Success"})
    assert resubmit_failed(worker.orthanc) == 0


def test_twenty_studies_at_once_are_all_answered(orthanc, worker):
    for study in range(1, 21):
        orthanc.send(file_bytes(image(1, study)))
    until(lambda: changed(orthanc, 20))
    work_off(worker)
    for study in range(1, 21):
        assert len(orthanc.answers(study_uid(study), "SR")) == 1


def test_two_workers_do_not_share_a_folder(orthanc, worker):
    with pytest.raises(ValueError, match="another worker uses"):
        Worker(worker.orthanc, worker.folder, unable)


@pytest.mark.parametrize("url", ["127.0.0.1:8042", "ftp://x", "http://a:b@127.0.0.1:8042"])
def test_a_url_of_another_kind_is_refused_without_showing_a_password(url):
    with pytest.raises(ValueError, match="without a password") as refusal:
        Orthanc(url)
    assert "a:b" not in str(refusal.value)
