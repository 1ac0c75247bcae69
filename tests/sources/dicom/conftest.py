"""Parts that tests of the ingest share."""

from pathlib import Path

import pytest

from steatosis_tf.sources.pseudonym import create_key


@pytest.fixture
def key(tmp_path) -> Path:
    return create_key(tmp_path / "study.key")


@pytest.fixture
def source(tmp_path) -> Path:
    """An empty folder to be ingested."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder
