"""Masks are whole, or they are not there and the call fails."""

import json

import cv2
import pytest

from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.roi.sheet import write_masks

_WRITE = """
import json, sys
from pathlib import Path
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.roi.sheet import write_masks
disk, manifest = sys.argv[1:]
error = ""
try:
    write_masks(read_manifest(manifest), manifest, disk)
except OSError as found:
    error = str(found)
sizes = {path.name: path.stat().st_size for path in Path(disk).iterdir()}
print(json.dumps({"error": error, "sizes": sizes}))
"""


def test_a_full_disk_fails_and_leaves_no_empty_mask(run_on_full_disk, phantom_manifest):
    done = run_on_full_disk(_WRITE, str(phantom_manifest))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert "No space left" in told["error"]
    assert 0 < len(told["sizes"]) < 24
    assert all(told["sizes"].values())
    assert not any(name.startswith(".") for name in told["sizes"])


@pytest.mark.parametrize("left", [b"", b"\x89PNG\r\n\x1a\n half of it"])
def test_masks_that_an_earlier_full_disk_left_are_made_again(tmp_path, phantom_manifest, left):
    table = read_manifest(phantom_manifest).head(2)
    write_masks(table, phantom_manifest, tmp_path)
    paths = sorted(tmp_path.iterdir())
    whole = [path.read_bytes() for path in paths]
    assert len(paths) == 4
    assert cv2.imread(str(paths[0]), cv2.IMREAD_UNCHANGED).max() == 255
    paths[0].write_bytes(left)
    write_masks(table, phantom_manifest, tmp_path)
    assert [path.read_bytes() for path in paths] == whole
