"""Fixtures that every part of the test tree shares."""

import os
from pathlib import Path

import pytest

# Two cores are shared by test workers; TensorFlow's banner says nothing a test reader needs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Folder with the public frames (`byra2018/`, `aul/`); skips where it is absent."""
    given = os.environ.get("STEATOSIS_DATA")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "byra2018" / "labels.csv").is_file():
        pytest.skip(f"real frames absent: looked in {folder}; set STEATOSIS_DATA to their folder")
    return folder
