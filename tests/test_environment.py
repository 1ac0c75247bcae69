"""A run says what it was computed on, and nothing that names a machine or a person."""

import getpass
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

from steatosis_tf.environment import describe_environment


def test_versions_and_hardware():
    found = describe_environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert found["packages"]["tensorflow"] == importlib.metadata.version("tensorflow")
    assert found["num_cores"] >= 1
    assert found["memory_gib"] is None or 0 < found["memory_gib"] < 2**16
    assert json.loads(json.dumps(found)) == found


def test_no_machine_and_no_person():
    text = json.dumps(describe_environment())
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in text.lower().split('"')
