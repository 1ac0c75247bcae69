"""Run one call of `steatosis` many times, each time with another of its writes failing.

    python every_write.py STUDY CALL_JSON [--ends] [--kinds ENOSPC,EIO,FULL,KILL,CUT]

Every file that is opened for writing and every move into place inside the study's folder is one
event; Python tells of them itself (`sys.addaudithook`), whichever library writes. The n-th event
fails with the given error, or the process is killed at it (`KILL`). Or it goes well, and up to the
next event no file takes more than its first bytes: what was opened fails half-written (`FULL`), or
the process is killed there (`CUT`). Each try has a fresh copy of the study and is a fork of a
process that has everything imported, so a try costs little. Prints one line of JSON with what was
found.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
_FIRST_BYTES = 10
#: What differs between two runs of the same call: times, and the digits of a new key.
_PASSING = re.compile(
    rb'"(seconds|created|written_at|finished|started)[a-z_]*": *("[^"]*"|[\d.e-]+)'
    rb"|(?<=steatosis-key-1 )[0-9a-f]{64}"
)


def _is_write(event: str, arguments: tuple, folder: str) -> bool:
    if event == "open":
        path, mode, flags = arguments
        wanted = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & _WRITING)
    elif event == "os.rename":
        path, wanted = arguments[1], True
    else:
        return False
    return wanted and isinstance(path, str | bytes | os.PathLike) and (
        os.path.abspath(os.fsdecode(path)).startswith(folder)
    )  # fmt: skip


def _inject(folder: str, at: int, kind: str, tell: int) -> None:
    """Count the writes; fail the one with number `at`. Each is told as a byte to `tell`."""
    seen = 0
    if kind == "CUT":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: a write fails instead

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if not _is_write(event, arguments, folder):
            return
        seen += 1
        os.write(tell, b".")
        if kind in ("FULL", "CUT"):
            most = _FIRST_BYTES if seen == at else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        elif seen == at:
            if kind == "KILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))

    sys.addaudithook(hook)


def _run(folder: Path, words: list[str], at: int = 0, kind: str = "") -> dict:
    """One call in a fork, in `folder`; what it printed, how it ended, how many writes it made."""
    from steatosis_tf.cli import main

    hears, says = os.pipe()  # a file would be cut, too
    tells, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hears)
        os.close(tells)
        code = 70
        os.dup2(says, 1)
        os.dup2(says, 2)
        os.close(says)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
        os.chdir(folder)
        _inject(str(folder), at, kind, tell)
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001 whatever it is, it is told
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(says)
    os.close(tell)
    with os.fdopen(hears, errors="replace") as heard, os.fdopen(tells, "rb") as told:
        said, events = heard.read(), len(told.read())  # a pipe holds the bytes of 65536 events
    status = os.waitpid(child, 0)[1]
    return {"code": os.waitstatus_to_exitcode(status), "events": events, "said": said}


def _content(folder: Path) -> dict[str, str]:
    """Hash of every file without what differs from call to call, by its path inside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = _hash(path.read_bytes())
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(_PASSING.sub(b"", content)).hexdigest()


def _beginnings(folder: Path, kind: str) -> dict[str, set[str]]:
    """Hashes of what a broken call may leave of the files that grow while it works.

    The tables of `predict` grow by whole rows; only a kill in the middle of a write can cut one.
    The journal of `ingest` may end in a torn line, which the next call passes over.
    """
    found = {}
    for path in folder.rglob("ingest_journal.jsonl"):
        content = path.read_bytes()
        begun = [content[:length] for length in range(len(content))]
        found[path.relative_to(folder).as_posix()] = {_hash(one) for one in begun}
    for path in folder.rglob("predictions.json"):
        for table in (path.with_name("patients.csv"), path.with_name("frames.csv")):
            content = table.read_bytes()
            lines = content.splitlines(keepends=True)
            begun = [b"".join(lines[:number]) for number in range(len(lines))]
            cut = [content[:_FIRST_BYTES]] if kind == "CUT" else []
            found[table.relative_to(folder).as_posix()] = {_hash(one) for one in begun + cut}
    return found


def _is_being_written(name: str) -> bool:
    return any(part.startswith((".unfinished-", ".part-")) for part in name.split("/"))


def _is_passing(name: str) -> bool:
    """Files that are no result: locks, what a killed writer leaves, and the tracking store's.

    Nor are parts of records: ours lie in `unfinished-...` until all are there, those of
    tensorflow-datasets in `incomplete....`, which the next call clears.
    """
    parts = ("unfinished-", "incomplete.")
    if name.startswith("mlruns/") or any(one.startswith(parts) for one in name.split("/")):
        return True
    return _is_being_written(name) or name.endswith((".lock", ".db", ".db-journal", "-journal"))


def _faults(
    before: dict, good: dict, beginnings: dict, after: dict, try_: dict, kind: str
) -> list[str]:
    """What a try did wrong."""
    found = []
    code = try_["code"]
    is_killed = code == {"KILL": -signal.SIGKILL, "CUT": -signal.SIGXFSZ}.get(kind)
    for name, digest in after.items():
        is_begun = digest in beginnings.get(name, ()) and code != 0
        if not (_is_passing(name) or is_begun or digest in (before.get(name), good.get(name))):
            found.append(f"half-written or changed: {name}")
        if not is_killed and _is_being_written(name):
            found.append(f"left behind: {name}")
    found += [f"lost: {name}" for name in before if name not in after and name in good]
    if "Traceback" in try_["said"]:
        found.append("traceback")
    if kind == "KILL" and not is_killed:
        found.append(f"not killed: exit {code}")
    if code == 0:
        missing = [name for name in good if name not in after and not _is_passing(name)]
        if missing or any(after[n] != good[n] for n in good if n in after and not _is_passing(n)):
            found.append(f"exit 0, but not the same files; missing {missing}")
    if not is_killed and code not in (0, 1):
        found.append(f"exit {code}")
    if code == 1 and "error: " not in try_["said"]:
        found.append("no reason given")
    return found


def walk(study: Path, words: list[str], only_ends: bool, kinds: list[str]) -> dict:
    """Every write of one call, or its first and its last, and every kind of fault."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(os.path.realpath(scratch))
        before = _content(study)
        shutil.copytree(study, base / "study", symlinks=True)
        clean = _run(base / "study", words)
        if clean["code"] != 0:
            return {"error": f"the call itself fails with {clean['code']}: {clean['said'][-800:]}"}
        good = _content(base / "study")
        begun = {kind: _beginnings(base / "study", kind) for kind in kinds}
        found, tries, texts = [], 0, set()
        for kind in kinds:
            for at in range(1, clean["events"] + 1):
                if only_ends and at not in (1, clean["events"]):
                    continue
                folder = base / "study"
                shutil.rmtree(folder)
                shutil.copytree(study, folder, symlinks=True)
                try_ = _run(folder, words, at, kind)
                tries += 1
                if kind not in ("KILL", "CUT"):
                    texts.add(re.sub(r"\s+", " ", try_["said"].strip().splitlines()[-1])[:200]
                              if try_["said"].strip() else "")  # fmt: skip
                faults = _faults(before, good, begun[kind], _content(folder), try_, kind)
                again = _run(folder, words)
                if again["code"] != 0:
                    faults.append(f"does not go on: {again['said'].strip()[-300:]}")
                else:
                    after = _content(folder)
                    faults += [
                        f"after going on not the same: {name}"
                        for name in good
                        if not _is_passing(name) and after.get(name) != good[name]
                    ]
                if faults:
                    said = try_["said"][-300:]
                    found.append({"at": at, "kind": kind, "faults": faults, "said": said})
        return {"events": clean["events"], "tries": tries, "found": found, "texts": sorted(texts)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", type=Path)
    parser.add_argument("call", help="JSON list of words")
    parser.add_argument("--ends", action="store_true", help="only the first and the last write")
    parser.add_argument("--kinds", default="ENOSPC,EIO,FULL,KILL,CUT")
    args = parser.parse_args()
    words = json.loads(args.call)
    import steatosis_tf.verbs  # noqa: F401  what all calls need, once for all forks

    with contextlib.suppress(ImportError):
        _import_for(words[0])
    print(json.dumps(walk(args.study.resolve(), words, args.ends, args.kinds.split(","))))


def _import_for(verb: str) -> None:
    """Import what the verb's own call would import; it must not compute or start threads."""
    import cv2
    import pandas  # noqa: F401

    cv2.setNumThreads(0)
    if verb in ("train", "export", "records"):
        import tensorflow  # noqa: F401


if __name__ == "__main__":
    main()
