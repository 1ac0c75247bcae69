"""Worker beside an Orthanc: answers every study that has become stable, and stores the answer.

Orthanc is the DICOM end (AE titles, queue, stable studies, forwarding). The worker follows its
change log and keeps its place on disk. A killed worker begins its study once more; the answer is
the same bytes under the same UIDs: nothing is lost or doubled.
"""

import errno
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import requests
from filelock import FileLock, Timeout

from steatosis_tf.deploy.sr import PacsAnswer, answer_bytes
from steatosis_tf.deploy.study import MANUFACTURER, NothingToGrade
from steatosis_tf.files import write_json
from steatosis_tf.sources.dicom.read import DICOM_ERRORS

#: Seconds between two looks at the change log, and at forwarding that failed.
POLL_S, JOBS_S = 2.0, 60.0
#: Seconds to wait before the second and the third attempt at a study.
RETRY_S = (5.0, 30.0)

_TIMEOUT_S, _NUM_KNOWN = 60.0, 10_000
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class OrthancAway(Exception):
    """Orthanc does not answer now; nothing is wrong with a study."""


class OrthancRefuses(RuntimeError):
    """Orthanc does not let the worker in."""


class Orthanc:
    """What the worker asks of Orthanc's REST interface; the netrc file may hold a password.

    Args:
        url: as `http://127.0.0.1:8042`.
    """

    def __init__(self, url: str):
        parts = requests.utils.urlparse(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                "Expected the URL of an Orthanc, as http://127.0.0.1:8042, without a password "
                "(a command line is public: write it into ~/.netrc). Received: another one."
            )
        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # images never pass through a proxy
        self._session.auth = requests.utils.get_netrc_auth(url)

    def get(self, path: str, **query: Any) -> Any:
        """JSON behind a path; None if it is there no more."""
        response = self.ask("GET", path, params=query)
        return None if response is None else response.json()

    def store(self, data: bytes) -> None:
        """Store a file, or raise ValueError if Orthanc does not take it."""
        response = self.ask("POST", "/instances", data=data)
        status = "not found" if response is None else response.json().get("Status")
        if status not in ("Success", "AlreadyStored"):
            raise ValueError(
                f"Expected Orthanc to store an answer. Received: status={status!r}. See its log."
            )

    def ask(self, method: str, path: str, **values: Any) -> requests.Response | None:
        """Its response; None if there is nothing at the path. An error is a ValueError."""
        try:
            response = self._session.request(
                method, self._url + path, timeout=_TIMEOUT_S, allow_redirects=False, **values
            )
        except requests.RequestException as error:
            raise OrthancAway("Orthanc does not answer") from error
        code = response.status_code
        if code in (502, 503, 504):
            raise OrthancAway(f"Orthanc answers {code}")
        if code in (401, 403):
            told = f"Expected Orthanc to let the worker in. Received: HTTP {code}. See ~/.netrc."
            raise OrthancRefuses(told)
        if code not in (200, 404):
            raise ValueError(
                f"Expected HTTP 200 of Orthanc. Received: {code} for {path.split('/')[1]}."
            )
        return response if code == 200 else None


class Worker:
    """Answers studies; `place.json` in its folder says how far it is.

    Args:
        orthanc: where studies arrive.
        folder: of this worker alone. Holds its place, images while they are graded, and
            `failed/STUDY.json` with its reason for each study that failed three times.
        answer: makes the answer to the study in a folder; None where there is one already.
    """

    def __init__(
        self, orthanc: Orthanc, folder: str | Path, answer: Callable[[Path], PacsAnswer | None]
    ):
        self.orthanc, self.folder, self.answer = orthanc, Path(folder), answer
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock = FileLock(self.folder / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(
                "Expected a folder for each worker. Received: one that another worker uses."
            ) from error
        # Of failing: attempts, moment of the next. Of answered: the images.
        self.place: dict[str, Any] = {"last": 0, "failing": {}, "answered": {}}
        if (self.folder / "place.json").is_file():
            self.place |= json.loads((self.folder / "place.json").read_text(encoding="utf-8"))
        self._next_jobs = 0.0

    def run(self) -> None:
        """Work until the process is ended. An Orthanc that is away or a full disk is waited for."""
        waiting = "for the first answer"
        while True:
            try:
                if waiting:
                    self._check_place()
                busy, waited, waiting = self.step(), waiting, ""
                if waited:
                    _say("following the changes of Orthanc")
            except (OrthancAway, OSError) as error:  # the text of an OSError would name a file
                reason = f"disk: {error.strerror}" if isinstance(error, OSError) else str(error)
                if reason != waiting:
                    _say(f"waiting: {reason}")
                busy, waiting = False, reason
            if not busy:
                time.sleep(POLL_S)

    def step(self) -> bool:
        """Do what there is to do; False if there was nothing."""
        for study, (_, moment) in list(self.place["failing"].items()):
            if moment <= time.time():
                self._attempt(study)
                self._save()
        found = self.orthanc.get("/changes", since=self.place["last"], limit=100)
        for change in found["Changes"]:
            if change["ChangeType"] == "StableStudy":
                self._attempt(change["ID"])
                self._save(change["Seq"])
        if found["Changes"]:
            self._save(found["Last"])
        elif self._next_jobs <= time.time():
            self._next_jobs = time.time() + JOBS_S
            resubmit_failed(self.orthanc)
        return bool(found["Changes"])

    def _attempt(self, study: str) -> None:
        """Answer one study, or note why not."""
        try:
            images, reports = self._instances(study)
            if images and self.place["answered"].get(study) != images:
                self._answer(study, images + reports)
        except NothingToGrade as error:
            _say(f"study {study[:8]}: passed over. {error}")
        except OrthancRefuses:
            raise
        except DICOM_ERRORS as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            self._note_failure(study, error)
            return
        self.place["failing"].pop(study, None)
        self.place["answered"].pop(study, None)
        self.place["answered"][study] = images
        (self.folder / "failed" / f"{study}.json").unlink(missing_ok=True)

    def _instances(self, study: str) -> tuple[list[str], list[str]]:
        """Ultrasound images and earlier reports of ours; nothing of a study that is gone."""
        images: list[str] = []
        reports: list[str] = []
        for series in self.orthanc.get(f"/studies/{study}/series") or []:
            tags = series["MainDicomTags"]
            if tags.get("Manufacturer") == MANUFACTURER:
                reports += series["Instances"] if tags.get("Modality") == "SR" else []
            elif tags.get("Modality", "US") == "US":
                images += series["Instances"]
        return sorted(images), sorted(reports)

    def _answer(self, study: str, instances: list[str]) -> None:
        work = self.folder / "work"
        rmtree(work, ignore_errors=True)  # of a killed worker
        work.mkdir(mode=0o700)
        try:
            for number, instance in enumerate(instances):
                response = self.orthanc.ask("GET", f"/instances/{instance}/file")
                if response is not None:
                    (work / f"{number:06d}.dcm").write_bytes(response.content)
            made = self.answer(work)
        finally:
            rmtree(work, ignore_errors=True)
        if made is not None:  # the report last: where it is, the key image is too
            self.orthanc.store(answer_bytes(made.key_image))
            self.orthanc.store(answer_bytes(made.report))
        _say(f"study {study[:8]}: {'answered before' if made is None else 'answer stored'}")

    def _note_failure(self, study: str, error: Exception) -> None:
        """Plan the next attempt, or put the study into `failed`."""
        # Our own messages hold nothing personal; another's may quote a header.
        reason = str(error) if str(error).startswith("Expected") else type(error).__name__
        attempts = self.place["failing"].pop(study, [0])[0] + 1
        if attempts <= len(RETRY_S):
            self.place["failing"][study] = [attempts, time.time() + RETRY_S[attempts - 1]]
        else:
            (self.folder / "failed").mkdir(exist_ok=True)
            content = {"study": study, "attempts": attempts, "reason": reason}
            write_json(content, self.folder / "failed" / f"{study}.json")
        _say(f"study {study[:8]}: attempt {attempts} failed. {reason}")

    def _check_place(self) -> None:
        """An Orthanc with a new database counts from 1 again."""
        if self.orthanc.get("/changes", last="")["Last"] < self.place["last"]:
            _say("Orthanc has a new database: its changes are read from the first")
            self.place["last"] = 0

    def _save(self, last: int | None = None) -> None:
        for study in list(self.place["answered"])[:-_NUM_KNOWN]:
            del self.place["answered"][study]
        self.place["last"] = self.place["last"] if last is None else last
        write_json(self.place, self.folder / "place.json", indent=None)


def resubmit_failed(orthanc: Orthanc) -> int:
    """Start forwarding again where the PACS was away or refused; gives the number of jobs."""
    failed = [
        job["ID"]
        for job in orthanc.get("/jobs", expand="") or []
        if job["Type"] == "DicomModalityStore" and job["State"] == "Failure"
    ]
    for job in failed:
        orthanc.ask("POST", f"/jobs/{job}/resubmit", data="")
    if failed:
        _say(f"forwarding: {len(failed)} failed, started again")
    return len(failed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
