"""A real Orthanc for the tests, with the configuration of the docs on free loopback ports.

It is unpacked by `make orthanc`, or installed; no service of the system is started or stopped.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

DOCS = Path(__file__).parents[2] / "docs" / "orthanc"
UNPACKED = Path(sys.prefix) / "orthanc"

# Straight to the loopback interface, whatever proxy the environment names.
SESSION = requests.Session()
SESSION.trust_env = False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unpacked_program(name: str) -> tuple[str, dict[str, str]] | None:
    """A program of Debian's packages and its environment; None where it cannot be had."""
    env = dict(os.environ)
    for folder in ("usr/sbin", "usr/bin"):
        path = UNPACKED / folder / name
        if path.is_file():
            libraries = [str(one) for one in (UNPACKED / "usr/lib").glob("*-linux-gnu")]
            env["LD_LIBRARY_PATH"] = ":".join(libraries)
            for words in UNPACKED.glob("usr/share/libdcmtk*/dicom.dic"):
                env["DCMDICTPATH"] = str(words)
            return str(path), env
    found = shutil.which(name)
    return (found, env) if found else None


class RealOrthanc:
    """One Orthanc over its own folder; it may be stopped and started again.

    Args:
        folder: of its database.
        pacs_port: where it forwards answers to.
        changes: of the configuration.
    """

    def __init__(self, folder: Path, pacs_port: int = 9, **changes: Any):
        program = unpacked_program("Orthanc")
        plugins = [*UNPACKED.glob("usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
                   *Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so")]  # fmt: skip
        if program is None or not plugins:
            pytest.skip("Orthanc and its plugin DICOMweb are not installed: make orthanc")
        self._program, self._env = program
        self.http_port, self.dicom_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        config = json.loads((DOCS / "orthanc.json").read_text(encoding="utf-8"))
        for modality, port in (("scanner", 9), ("pacs", pacs_port)):
            config["DicomModalities"][modality] |= {"Host": "127.0.0.1", "Port": port}
        config |= {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "TemporaryDirectory": str(folder),
            "LuaScripts": [str(DOCS / "forward.lua")],
            "Plugins": [str(plugins[0].resolve())],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "StableAge": 1,
        }
        self._config = folder / "orthanc.json"
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(json.dumps(config | changes), encoding="utf-8")
        self._process: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._config], env=self._env, stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                SESSION.get(f"{self.url}/system", timeout=5)  # 401 where it asks for a password
                return
            except requests.RequestException:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
            self._process = None

    def get(self, path: str, **query: str) -> Any:
        response = SESSION.get(f"{self.url}{path}", params=query, timeout=30)
        response.raise_for_status()
        return response.json()

    def send(self, data: bytes) -> None:
        response = SESSION.post(f"{self.url}/instances", data=data, timeout=30)
        assert response.json()["Status"] in ("Success", "AlreadyStored")

    def answers(self, study_uid: str, modality: str) -> list[dict[str, Any]]:
        """Our objects of one study by QIDO-RS, as DICOM JSON."""
        found = self.get(
            "/dicom-web/instances", StudyInstanceUID=study_uid, Modality=modality,
            includefield="PredecessorDocumentsSequence",
        )  # fmt: skip
        return [one for one in found if one["00080060"]["Value"] == [modality]]


def until(condition: Any, seconds: float = 90, every: float = 0.3) -> Any:
    """What a condition gives as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"not true within {seconds} s: {condition}")
