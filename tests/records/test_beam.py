"""Records written by several processes, or after a kill, are the bytes one process writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steatosis_tf.cohort.manifest import read_manifest, write_manifest
from steatosis_tf.parallel import beam_options
from steatosis_tf.records import builder
from steatosis_tf.records.builder import records_location, write_records

pytest.importorskip("apache_beam", reason="the extra beam is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_COPIES, NUM_SHARDS = 240, 24
#: In the order of records, which a hash of the id gives, this copy stands in the middle.
MIDDLE = 120


def contents(records_dir: Path) -> dict[str, bytes]:
    """All files of finished records, but for the lock."""
    return {
        str(path.relative_to(records_dir)): path.read_bytes()
        for path in sorted(records_dir.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def expected(phantom_manifest, tmp_path, monkeypatch) -> dict[str, bytes]:
    """What one process writes, in shards of at most three frames."""
    monkeypatch.setattr(builder, "SHARD_FRAMES", 3)
    write_records(phantom_manifest, tmp_path / "one")
    return contents(tmp_path / "one")


def test_two_beam_processes_write_the_same_bytes(phantom_manifest, tmp_path, expected):
    assert sum(".tfrecord-" in name for name in expected) == 5  # 8, 2 and 2 frames
    options = beam_options(
        "DirectRunner", ["direct_num_workers=2", "direct_running_mode=multi_processing"]
    )
    write_records(phantom_manifest, tmp_path / "two", options=options)
    assert contents(tmp_path / "two") == expected


@pytest.mark.slow
def test_a_dask_cluster_writes_the_same_bytes(phantom_manifest, tmp_path, expected, dask_options):
    write_records(phantom_manifest, tmp_path / "dask", options=dask_options)
    assert contents(tmp_path / "dask") == expected


def test_no_leak_passes_the_gate_on_a_runner(phantom_manifest, tmp_path):
    leaky = phantom_manifest.with_name("leaky.csv")
    table = read_manifest(phantom_manifest)
    table["patient_id"] = ["P07", "P07", *table["patient_id"][2:]]
    table["split"] = ["train", "test", *table["split"][2:]]
    write_manifest(table, leaky)
    with pytest.raises(ValueError, match=r"(?s)one patient in two splits: 1.*P07"):
        write_records(leaky, tmp_path / "records", options=beam_options("DirectRunner"))
    assert not (tmp_path / "records").exists()
    leaky.unlink()


def test_a_killed_run_goes_on_from_its_shards(phantom_manifest, tmp_path, monkeypatch):
    """One frame under many names, all of one patient. Who comes to the middle one waits there to be
    killed."""
    row = read_manifest(phantom_manifest).iloc[[0]]
    source = phantom_manifest.parent / row["path"].iloc[0]
    table = row.loc[row.index.repeat(NUM_COPIES)].assign(
        frame_id=[f"f{number}" for number in range(NUM_COPIES)],
        path=[f"{number}.png" for number in range(NUM_COPIES)],
        split="train",
    )
    for path in table["path"]:
        os.link(source, tmp_path / path)
    write_manifest(table, tmp_path / "manifest.csv")
    records_dir, reached = tmp_path / "records", tmp_path / "reached"
    killed = _start(tmp_path / "manifest.csv", records_dir, waits_at=reached)
    deadline = time.monotonic() + 240
    while not reached.exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = _shards(records_dir)
    assert not (records_dir / "records.json").exists()
    assert len(finished) == NUM_SHARDS // 2

    assert _start(tmp_path / "manifest.csv", records_dir).wait() == 0
    kept = {path.stat().st_ino for path in records_location(records_dir).glob("*.tfrecord-*")}
    assert set(finished) <= kept  # moved, not written again
    monkeypatch.setattr(builder, "SHARD_FRAMES", 10)
    write_records(tmp_path / "manifest.csv", tmp_path / "undisturbed")
    assert contents(records_dir) == contents(tmp_path / "undisturbed")


#: Run before the verb: reading the middle frame for its record leaves a file and waits.
_WAITS = """
from pathlib import Path
from steatosis_tf.roi import columns
import time
read = columns.read_frame
def reads(path):
    if Path(path).name == "{name}":
        Path({reached!r}).touch()
        time.sleep(600)
    return read(path)
columns.read_frame = reads
"""


def _start(
    manifest_path: Path, records_dir: Path, waits_at: Path | None = None
) -> subprocess.Popen:
    waits = _WAITS.format(name=f"{MIDDLE}.png", reached=str(waits_at)) if waits_at else ""
    code = waits + (
        "import sys; from steatosis_tf import cli; from steatosis_tf.records import builder;"
        "builder.SHARD_FRAMES = 10; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "records", str(manifest_path)]
    return subprocess.Popen(
        [*command, "--output", str(records_dir)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _shards(records_dir: Path) -> list[int]:
    """Inodes of the shards that are whole, beside one that is not."""
    found = []
    for path in records_dir.glob("unfinished-*/train-*"):
        if path.suffix != ".csv":
            found.append(path.stat().st_ino)
    return found
