"""The public set: from a .mat in the published structure, and over a line that misbehaves."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from steatosis_tf.cohort.manifest import build_manifest
from steatosis_tf.sources.byra2018 import MAT_NAME, MD5, URL, download_byra2018
from steatosis_tf.sources.images import read_frame

FAT = [4.0, 40.0, 66.5]


def write_mat(path: Path, fat=FAT, frames=None, **extra) -> Path:
    """`data`, a 1 x n struct array with id, class, fat, images, as the data README has it."""
    rng = np.random.default_rng(0)
    data = np.zeros((1, len(fat)), dtype=[(n, "O") for n in ("id", "class", "fat", "images")])
    for index, percent in enumerate(fat):
        images = rng.integers(0, 256, (2, 43, 63), dtype=np.uint8) if frames is None else frames
        # Numbers are stored as 1 x 1 matrices, and not in order.
        data[0, index] = (len(fat) - index, int(percent >= 5), percent, images)
        for name, value in extra.items():
            data[0, index][name] = value
    scipy.io.savemat(path, {"data": data})
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_frames_and_labels_from_a_file_on_disk(tmp_path):
    mat = write_mat(tmp_path / "byra.mat")
    summary = download_byra2018(tmp_path / "out", mat_path=mat, md5=md5(mat))
    assert (summary.num_patients, summary.num_frames) == (3, 6)
    assert (tmp_path / "out" / "labels.csv").read_bytes().split(b"\n")[:4] == [
        b"path,patient_id,frame_index,fat_percent",
        b"images/P01_F00.png,P01,0,66.5",
        b"images/P01_F01.png,P01,1,66.5",
        b"images/P02_F00.png,P02,0,40",
    ]
    stored = scipy.io.loadmat(mat)["data"][0, 1]["images"]  # P02 is the second entry
    np.testing.assert_array_equal(read_frame(tmp_path / "out/images/P02_F01.png"), stored[1])
    assert "CC BY 4.0" in (tmp_path / "out" / "SOURCE.txt").read_text()
    manifest = build_manifest(summary.labels_path, tmp_path / "manifest.csv", strict=True)
    assert manifest.patients_per_grade == {"Severe": 1, "Moderate": 1, "Normal": 1}


def test_real_patients_come_back_as_the_shared_copy_has_them(real_data_dir, tmp_path):
    shared = pd.read_csv(real_data_dir / "byra2018" / "labels.csv", dtype=str)
    shared = shared.loc[shared["patient_id"].isin(["P02", "P12", "P43"])]
    records = []
    for patient, rows in shared.groupby("patient_id"):
        fat = int(rows["fat_percent"].iloc[0])
        frames = np.stack([read_frame(real_data_dir / "byra2018" / path) for path in rows["path"]])
        records.append((int(patient[1:]), int(fat >= 5), fat, frames))
    data = np.empty((1, 3), dtype=[(n, "O") for n in ("id", "class", "fat", "images")])
    data[0] = records
    mat = tmp_path / "byra.mat"
    scipy.io.savemat(mat, {"data": data})
    summary = download_byra2018(tmp_path / "out", mat_path=mat, md5=md5(mat))
    ours = pd.read_csv(summary.labels_path, dtype=str)
    pd.testing.assert_frame_equal(ours, shared.reset_index(drop=True))
    for path in ours["path"].iloc[::7]:
        np.testing.assert_array_equal(
            read_frame(tmp_path / "out" / path), read_frame(real_data_dir / "byra2018" / path)
        )


def test_a_file_that_is_another_is_refused(tmp_path):
    mat = write_mat(tmp_path / "byra.mat")
    with pytest.raises(ValueError, match=f"{MAT_NAME} with MD5 {MD5}. Received: byra.mat with"):
        download_byra2018(tmp_path / "out", mat_path=mat)
    with pytest.raises(ValueError, match=r"gone\.mat, which does not exist"):
        download_byra2018(tmp_path / "out", mat_path=tmp_path / "gone.mat")


class _Server(ThreadingHTTPServer):
    """Serves one file; `behaviour(handler, body, start)` may answer instead."""

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = body
        self.behaviour = whole
        self.ranges: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/byra.mat"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.server.behaviour(self, self.server.body, start)

    def log_message(self, *args) -> None:
        pass


def whole(handler, body: bytes, start: int, send: int | None = None, ranges: bool = True) -> None:
    """A good server; with `send` it breaks off after so many bytes."""
    if start and start >= len(body):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(body)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    start = start if ranges else 0
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    handler.end_headers()
    handler.wfile.write(body[start:] if send is None else body[start : start + send])


def refuses(code: int):
    return lambda handler, body, start: handler.send_error(code)


def breaks_off(handler, body, start) -> None:
    whole(handler, body, start, send=len(body) // 3)


def breaks_off_and_knows_no_ranges(handler, body, start) -> None:
    # Whole at the third call, from the beginning each time.
    send = None if len(handler.server.ranges) > 2 else len(body) // 3
    whole(handler, body, start, send=send, ranges=False)


def sends_nothing(handler, body, start) -> None:
    whole(handler, body, start, send=0)


@pytest.fixture
def served(tmp_path):
    mat = write_mat(tmp_path / "byra.mat")
    server = _Server(mat.read_bytes())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.md5 = md5(mat)
    server.fetch = lambda: download_byra2018(
        tmp_path / "out", url=server.url, md5=server.md5, wait_s=0.01
    )
    yield server
    server.shutdown()
    server.server_close()


def test_the_file_is_fetched_once(served, tmp_path):
    assert served.fetch().num_frames == 6
    assert (tmp_path / "out" / MAT_NAME).read_bytes() == served.body
    served.behaviour = refuses(404)
    assert served.fetch().num_frames == 6
    assert served.ranges == [""]


def test_a_broken_line_is_picked_up_where_it_broke(served):
    served.behaviour = breaks_off
    assert served.fetch().num_frames == 6
    third = len(served.body) // 3
    assert served.ranges[:3] == ["", f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_server_without_ranges_sends_it_all_again(served):
    served.behaviour = breaks_off_and_knows_no_ranges
    assert served.fetch().num_frames == 6
    assert len(served.ranges) == 3


def test_a_dead_line_keeps_what_came_and_the_next_call_goes_on(served, tmp_path):
    def dies(handler, body, start):
        whole(handler, body, start, send=1000 if not start else 0)

    served.behaviour = dies
    with pytest.raises(OSError, match=r"4 times without progress. 1000 bytes are kept in .*\.part"):
        served.fetch()
    assert not (tmp_path / "out" / MAT_NAME).exists()
    served.behaviour = whole
    served.ranges.clear()
    assert served.fetch().num_frames == 6
    assert served.ranges == ["bytes=1000-"]


def test_a_whole_part_file_needs_only_the_check(served, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{MAT_NAME}.part").write_bytes(served.body)
    assert served.fetch().num_frames == 6


@pytest.mark.parametrize("left", ["longer", "other"])
def test_a_part_of_another_file_is_thrown_away(served, tmp_path, left):
    (tmp_path / "out").mkdir()
    part = tmp_path / "out" / f"{MAT_NAME}.part"
    part.write_bytes(served.body + b"x" if left == "longer" else b"x" * 500)
    assert served.fetch().num_frames == 6
    assert not part.exists()


def test_a_server_with_another_file_is_not_believed(served, tmp_path):
    good, served.body = served.body, b"<html>maintenance</html>" * 50
    with pytest.raises(ValueError, match=f"expected MD5 {served.md5}. Received: [0-9a-f]{{32}}"):
        served.fetch()
    assert list((tmp_path / "out").iterdir()) == []
    served.body = good
    assert served.fetch().num_frames == 6


def test_a_refusal_is_told_at_once_and_a_busy_server_is_asked_again(served):
    served.behaviour = refuses(404)
    with pytest.raises(OSError, match=r"Expected the file at http.*HTTP 404 Not Found"):
        served.fetch()
    assert len(served.ranges) == 1
    served.behaviour = refuses(503)
    with pytest.raises(OSError, match="HTTP 503 Service Unavailable, 4 times"):
        served.fetch()
    served.behaviour = sends_nothing
    with pytest.raises(OSError, match=r"4 times without progress\. 0 bytes"):
        served.fetch()


def test_no_server_and_no_address(served):
    served.shutdown()
    served.server_close()
    with pytest.raises(OSError, match="Expected the file at http"):
        served.fetch()
    with pytest.raises(ValueError, match=r"http or https address. Received: url='file:"):
        download_byra2018("out", url="file:///etc/hostname")


def test_the_published_address_and_digest():
    assert MD5 == "c87da28a498eae0f0874408c7ac92524"
    assert "zenodo.org" in URL
    assert "1009146" in URL
