"""What fuzzing found is read again: each file of `findings/` once made a reader fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.fuzz import FINDINGS, TARGETS, seeds

_ONE = """
import resource, sys
sys.path.insert(0, sys.argv[3])
from tests.faults.fuzz import TARGETS
TARGETS[sys.argv[1]](b"")  # imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
TARGETS[sys.argv[1]](open(sys.argv[2], "rb").read())
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "memory"
"""


@pytest.mark.parametrize("name", sorted(path.name for path in FINDINGS.glob("*-*")))
def test_a_finding_stays_mended(name: str) -> None:
    """In a process of its own: some took gigabytes."""
    root = str(Path(__file__).resolve().parents[2])
    call = [sys.executable, "-c", _ONE, name.split("-")[0], str(FINDINGS / name), root]
    told = subprocess.run(call, check=False, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_are_read(target: str) -> None:
    for seed in seeds(target):
        assert TARGETS[target](seed)
