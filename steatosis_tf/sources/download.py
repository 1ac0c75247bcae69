"""One file from the network: picked up where it broke off, checked before it is believed."""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from steatosis_tf.files import move_into_place

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
    digest = hashlib.md5(usedforsecurity=False)
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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
            # Nothing behind the last byte: whole, unless the digest says otherwise.
            if _range_total(error.headers.get("Content-Range")) in (start, None):
                return True
            part.unlink()  # longer than the file, so of another one
            return False
        raise
    with response:
        resumed = response.status == 206
        if resumed and not _begins_at(response.headers.get("Content-Range"), start):
            raise OSError(f"the server sent another range than the one from byte {start}")
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


def _begins_at(content_range: str | None, start: int) -> bool:
    return bool(content_range and re.match(rf"bytes {start}-", content_range))


def _range_total(content_range: str | None) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", content_range or "")
    return int(found[1]) if found else None
