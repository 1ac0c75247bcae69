"""Fixtures that every part of the test tree shares.

TensorFlow takes seconds to import, so fixtures import what they need themselves: tests of rooms
without TensorFlow stay fast.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steatosis_tf  # noqa: F401  before any test file imports onnxruntime: it keeps that silent

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


@pytest.fixture
def run_on_full_disk(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `script, *arguments` with the small disk's folder as the first argument.

    The disk is a tmpfs in a mount namespace of its own, so it goes with the process.
    """
    disk = tmp_path / "small_disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={{}}k tmpfs '{disk}' && exec \"$@\""

    def run(script: str, *arguments: str, kilobytes: int = 32) -> subprocess.CompletedProcess[str]:
        namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount.format(kilobytes)]
        return subprocess.run(
            [*namespace, "sh", sys.executable, "-c", script, str(disk), *arguments],
            check=False, capture_output=True, text=True,
        )  # fmt: skip

    try:
        tried = run("pass")
    except FileNotFoundError:
        pytest.skip("no full disk: the command unshare is missing")
    if tried.returncode:
        pytest.skip(f"no full disk: {tried.stderr.strip()}")
    return run


@pytest.fixture(scope="session")
def phantom_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 12 simulated patients, one frame each, with split and ROI columns.

    Of the first two grades one patient each is tested and one validates; all others train.
    """
    from steatosis_tf.cohort.manifest import build_manifest, read_manifest, write_manifest
    from steatosis_tf.config import RoiConfig
    from steatosis_tf.roi.columns import add_roi_columns
    from steatosis_tf.sources.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("phantom_study")
    labels_path = write_phantoms(
        folder / "phantoms", num_patients=12, frames_per_patient=1, seed=11
    )
    manifest_path = folder / "manifest.csv"
    build_manifest(labels_path, manifest_path)
    table = read_manifest(manifest_path)
    place = table.groupby("grade").cumcount()
    common = table["grade"].isin(["Normal", "Mild"])
    table["split"] = np.select(
        [common & (place == 0), common & (place == 1)], ["test", "validation"], "train"
    )
    sector = RoiConfig(method="sector")
    write_manifest(add_roi_columns(table, manifest_path, sector), manifest_path)
    return manifest_path


@pytest.fixture(scope="session")
def phantom_records(phantom_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of the 12 simulated patients."""
    from steatosis_tf.records.builder import write_records

    records_dir = tmp_path_factory.mktemp("phantom_records")
    write_records(phantom_manifest, records_dir)
    return records_dir


@pytest.fixture(scope="module")
def dask_options() -> Iterator[Any]:
    """Beam options of a cluster: a scheduler and two worker processes."""
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    from steatosis_tf.parallel import beam_options

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield beam_options("DaskRunner", [f"dask_client_address={cluster.scheduler_address}"])


@pytest.fixture(scope="session")
def random_backbone() -> Any:
    """ResNet-50 with the random weights of seed 0. Shared: never train or change it."""
    from steatosis_tf.config import ModelConfig
    from steatosis_tf.model.backbone import build_backbone

    return build_backbone(ModelConfig(weights="random"))


@pytest.fixture(scope="session")
def random_grader(random_backbone: Any) -> Any:
    """An untrained grader, pixels to probabilities, on the shared backbone."""
    from steatosis_tf.config import ModelConfig
    from steatosis_tf.model.classifier import assemble, build_head

    config = ModelConfig(weights="random")
    features = np.random.default_rng(0).normal(1.0, 0.5, (16, 2048)).astype(np.float32)
    return assemble(random_backbone, build_head(config, features, seed=0), config)
