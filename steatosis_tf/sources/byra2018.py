"""The public biopsy-proven set of Byra et al. 2018, as frames and a label table.

55 patients, ten consecutive frames each, one scanner, fat percentage by biopsy.
Paper doi 10.1007/s11548-018-1843-2, data doi 10.5281/zenodo.1009146, licence CC BY 4.0."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
from tqdm import tqdm

from steatosis_tf.files import move_into_place, write_bytes, write_csv
from steatosis_tf.sources.images import write_png

MAT_NAME = "dataset_liver_bmodes_steatosis_assessment_IJCARS.mat"
URL = f"https://zenodo.org/records/1009146/files/{MAT_NAME}?download=1"
MD5 = "c87da28a498eae0f0874408c7ac92524"

SOURCE_NOTE = """\
Frames and biopsy fat percentages of 55 patients, converted from the published MATLAB file.
M. Byra et al., Transfer learning with deep convolutional neural network for liver steatosis
assessment in ultrasound images, IJCARS 13 (2018), doi 10.1007/s11548-018-1843-2.
Data: doi 10.5281/zenodo.1009146, licence CC BY 4.0.
The ten frames of a patient are almost the same picture: split by patient_id, never by frame.
"""


@dataclass(frozen=True)
class DownloadSummary:
    """What was written."""

    labels_path: str
    num_patients: int
    num_frames: int


def download_byra2018(
    output_dir: str | Path,
    *,
    url: str = URL,
    mat_path: str | Path | None = None,
    md5: str = MD5,
    wait_s: float = 2.0,
) -> DownloadSummary:
    """Fetch the published file and write `images/P01_F00.png ...` and `labels.csv`.

    Args:
        output_dir: folder to fill; the .mat is kept there, so that a second call needs no network.
        url: where the file lies.
        mat_path: the file, if it is on disk already; then nothing is fetched.
        md5: digest the file must have.
        wait_s: pause between attempts of the download.

    Returns:
        path of `labels.csv` (`path, patient_id, frame_index, fat_percent`) and counts. The table
        is written last: without it, the call has not finished.

    Raises:
        ValueError: if the file is not the published one.
        OSError: if the download fails; the next call goes on where it broke off.
    """
    output_dir = Path(output_dir)
    if mat_path is None:
        mat_path = download(url, output_dir / MAT_NAME, md5, wait_s=wait_s)
    else:
        _check_given(Path(mat_path), md5)
    patients = _read_mat(Path(mat_path))
    rows = [row for patient in patients for row in _write_frames(*patient, output_dir)]
    write_bytes(SOURCE_NOTE.encode(), output_dir / "SOURCE.txt")
    labels_path = output_dir / "labels.csv"
    write_csv(pd.DataFrame(rows), labels_path)
    return DownloadSummary(str(labels_path), len(patients), len(rows))


def _check_given(mat_path: Path, md5: str) -> None:
    if not mat_path.is_file():
        raise ValueError(f"Expected a .mat file. Received: {mat_path.name}, which does not exist.")
    found = file_md5(mat_path)
    if found != md5:
        raise ValueError(
            f"Expected {MAT_NAME} with MD5 {md5}. Received: {mat_path.name} with {found}. Fetch it "
            "again from doi 10.5281/zenodo.1009146."
        )


def _read_mat(mat_path: Path) -> list[tuple[int, float, np.ndarray]]:
    """Number, fat percent and frames of each patient, in the order of their number.

    The file holds one variable `data`, a 1 x n struct array with `id`, `class` (1 if fat is 5 %
    or more), `fat` (percent) and `images` (frames x height x width, uint8).
    """
    data = scipy.io.loadmat(mat_path, squeeze_me=True, struct_as_record=True)["data"]
    patients = ((int(one["id"]), float(one["fat"]), one["images"]) for one in np.atleast_1d(data))
    return sorted(patients, key=itemgetter(0))


def _write_frames(
    number: int, fat_percent: float, frames: np.ndarray, output_dir: Path
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for index, frame in enumerate(frames):
        path = f"images/P{number:02d}_F{index:02d}.png"
        write_png(frame, output_dir / path)
        rows.append(
            {
                "path": path,
                "patient_id": f"P{number:02d}",
                "frame_index": index,
                "fat_percent": f"{fat_percent:g}",  # 40, not 40.0
            }
        )
    return rows


_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60

#: Attempts in a row that bring no byte before giving up.
ATTEMPTS = 4


def download(url: str, path: str | Path, md5: str, *, wait_s: float = 2.0) -> Path:
    """Fetch a file, unless it is there already.

    What has arrived is kept in `<path>.part`; the next call goes on from there with an HTTP
    range request.

    Args:
        url: http or https address.
        path: where the file goes; it appears there only when whole and checked.
        md5: hex digest the publisher states.
        wait_s: pause before the second attempt, doubled before each further one.

    Returns:
        the path.

    Raises:
        ValueError: if the bytes are not those of the digest; they are thrown away.
        OSError: if the server refuses, or the line stays broken. What arrived is kept.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"Expected an http or https address. Received: url={url!r}.")
    if path.is_file() and file_md5(path) == md5:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    if not resumed or file_md5(part) != md5:
        _fetch_whole(url, part, wait_s)
    found = file_md5(part)
    if found != md5 and resumed:
        # The first half was perhaps of an older file, or of another one: once more from the start.
        part.unlink()
        _fetch_whole(url, part, wait_s)
        found = file_md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(
            f"{path.name}: expected MD5 {md5}. Received: {found}. The server sent another file, "
            "and it was thrown away. Try again later, or get the file by hand and pass its path."
        )
    move_into_place(part, path)
    return path


def file_md5(path: str | Path) -> str:
    """MD5 of a file, hex: a check against accidents, as the publisher gives it."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _fetch_whole(url: str, part: Path, wait_s: float) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch(url, part):
                return
            problem = "the connection was closed early"
        except urllib.error.HTTPError as error:
            # A server that is busy may answer in a moment; one that says no will say it again.
            if error.code < 500 and error.code != 429:
                raise OSError(
                    f"Expected the file at {url}. Received: HTTP {error.code} {error.reason}. "
                    "Check the address, or get the file by hand and pass its path."
                ) from error
            problem = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise OSError(
                f"Expected the file at {url}. Received: {problem}, {failures} times without "
                f"progress. {_size(part)} bytes are kept in {part.name}; call again to go on."
            )
        time.sleep(wait_s * 2 ** max(0, failures - 1))


def _fetch(url: str, part: Path) -> bool:
    """Append what the server sends; True when the file is whole."""
    start = _size(part)
    headers = {"User-Agent": "steatosis_tf"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            part.unlink()  # not the beginning of this file, as its digest has shown
            return False
        raise
    with response:
        resumed = response.status == 206  # should it be another range, the digest shows it
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
