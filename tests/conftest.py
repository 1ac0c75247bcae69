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
    from steatosis_tf.sources.phantom.study import write_phantoms

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
    from steatosis_tf.model.heads import assemble, build_head

    config = ModelConfig(weights="random")
    features = np.random.default_rng(0).normal(1.0, 0.5, (16, 2048)).astype(np.float32)
    return assemble(random_backbone, build_head(config, features, seed=0), config)


@pytest.fixture(scope="session")
def phantom_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle trained on 14 simulated patients, its zip beside it. Never change it."""
    import keras

    from steatosis_tf.config import RoiConfig
    from steatosis_tf.deploy.bundle_write import write_bundle
    from steatosis_tf.deploy.export import convert_taps
    from steatosis_tf.deploy.frames import look_at
    from steatosis_tf.model.backbone import LEVEL, at_one_level, roi_input
    from steatosis_tf.model.efficientnet_lite0 import lite0_taps
    from steatosis_tf.model.joint_fit import Part, fit_joint
    from steatosis_tf.model.rules import pool_maps
    from steatosis_tf.quantitative.measure import FAT_SIGNS
    from steatosis_tf.sources.phantom.study import simulate_patient

    roi = RoiConfig(method="beamspace", depth_px=128, num_beams=128)
    generator = np.random.default_rng(1)
    fat = np.linspace(0, 92, 14)
    looks = [
        look_at("", frame, roi.view)
        for percent in fat
        for frame in simulate_patient(
            float(percent), num_frames=2, generator=generator, size_px=(240, 320)
        )[0]
    ]
    pixels, grey = roi_input((128, 128))
    taps = keras.Model(pixels, lite0_taps(at_one_level(grey, LEVEL), "imagenet", 0))
    pictures = np.stack([look.picture for look in looks])[..., None]
    near, far = (part.numpy() for part in taps(pictures, training=False))
    names = ("hepatorenal_db", "attenuation_db_per_depth", "diaphragm_db")
    parts = [Part("network"), Part("measured", names, tuple(FAT_SIGNS[name] for name in names))]
    numbers = [[look.answer.features[name] for name in names] for look in looks]
    inputs = {"network": pool_maps(near, far), "measured": np.array(numbers)}
    patients = np.repeat([f"SIM{number:02}" for number in range(len(fat))], 2)
    joint = fit_joint(
        parts, inputs, patients, fat_percent=np.repeat(fat, 2),
        grey_spreads=np.array([look.answer.grey_spread for look in looks]),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bundle")
    card = dict.fromkeys(
        ("summary", "reference_standard", "performance", "provider", "intended_view", "groups"),
        "Simulated.",
    )
    write_bundle(
        folder / "phantoms",
        convert_taps(taps, folder),
        joint,
        roi,
        name="phantoms",
        version="1",
        training={
            "num_patients": 14,
            "num_frames": 28,
            "by_grade": {"Normal": 1, "Mild": 4, "Moderate": 5, "Severe": 4},
            "by_scanner": {"simulated": 14},
            "repeatability": {"coefficient": 1.5, "scale": "sqrt_fat", "num_patients": 12},
        },
        card=card | {"datasets": ["simulated"], "limits": ["Phantoms are no patients."]},
        licences={"code": "Apache-2.0"},
        versions={},
    )
    return folder / "phantoms"


@pytest.fixture(scope="session")
def tiny_backbone() -> Any:
    """A frozen network of 48 features that takes a ROI: what the store and the fit see of any."""
    import keras

    keras.utils.set_random_seed(5)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.Rescaling(1 / 255)(roi)
    x = keras.layers.AveragePooling2D(8)(x)
    x = keras.layers.Conv2D(12, 3, strides=3, name="map")(x)
    x = keras.layers.BatchNormalization(name="normalization")(x)
    x = keras.layers.MaxPooling2D(4)(x)
    backbone = keras.Model(roi, keras.layers.Flatten(name="features")(x), name="tiny")
    backbone.trainable = False
    for layer in backbone.layers:
        layer.trainable = False
    return backbone
