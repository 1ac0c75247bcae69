"""Features from the workers of a runner are those of one process, kept where it would keep them."""

import dataclasses
import threading
import time

import numpy as np
import psutil
import pytest

from steatosis_tf.config import AugmentConfig, Config, ModelConfig, TrainConfig
from steatosis_tf.model import features
from steatosis_tf.model.engines import Engine, choose_engine
from steatosis_tf.model.features import spread_features, stored_features
from steatosis_tf.parallel import beam_options
from steatosis_tf.records.pipeline import read_records

pytest.importorskip("apache_beam", reason="the extra beam is not installed")

CONFIG = Config(model=ModelConfig(weights="random"), train=TrainConfig(views=1))
TWO_PROCESSES = ("direct_num_workers=2", "direct_running_mode=multi_processing")


@pytest.fixture
def engine(random_backbone, monkeypatch) -> Engine:
    """The reference; parts of four rows, so that twelve frames are several."""
    monkeypatch.setattr(features, "PART_ROWS", 4)
    return choose_engine("keras", random_backbone, np.zeros((1, 224, 224, 1), np.uint8), ".")


@pytest.fixture
def expected(phantom_records, random_backbone, engine, tmp_path) -> np.ndarray:
    examples = read_records(phantom_records)
    views = stored_features(examples, tmp_path / "one", random_backbone, engine, AugmentConfig(), 1)
    return np.asarray(views)


def test_same_features_in_the_same_store(
    phantom_records, random_backbone, engine, expected, tmp_path
):
    here = beam_options("DirectRunner")
    arguments = phantom_records, tmp_path / "many", random_backbone, engine, CONFIG, here
    np.testing.assert_array_equal(np.asarray(spread_features(*arguments)), expected)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("*.npy")}
    assert len(before) == 2 * 4  # two views; 8, 2 and 2 frames by four
    # One process finds all of it; what is lost is computed again, and nothing else.
    examples = read_records(phantom_records)
    lost = sorted(before)[0]
    lost.unlink()
    spread_features(*arguments)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("*.npy")}
    assert {path: after[path] for path in before if path != lost} == {
        path: when for path, when in before.items() if path != lost
    }
    assert len(after) == len(before)
    found = stored_features(
        examples, tmp_path / "many", random_backbone, engine, AugmentConfig(), 1
    )
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "many").rglob("*.npy")} == after


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(
    phantom_records, random_backbone, engine, expected, tmp_path
):
    options = lambda: beam_options("DirectRunner", TWO_PROCESSES)  # noqa: E731
    arguments = phantom_records, tmp_path / "many", random_backbone, engine, CONFIG
    killer = threading.Thread(target=_kill_a_worker, args=(tmp_path / "many",))
    killer.start()
    with pytest.raises(RuntimeError, match=r"features.*137.*parts are kept"):
        spread_features(*arguments, options())
    killer.join()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("[!.]*.npy")}
    assert 0 < len(kept) < 8
    np.testing.assert_array_equal(np.asarray(spread_features(*arguments, options())), expected)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "many").rglob("[!.]*.npy")}
    assert kept.items() <= after.items()


def _kill_a_worker(store_dir) -> None:
    """SIGKILL to the younger worker as soon as a shard has been kept."""
    deadline = time.monotonic() + 400
    while not list(store_dir.rglob("[!.]*.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "sdk_worker_main" in " ".join(child.cmdline()) and not child.children()
    ]
    workers[-1].kill()


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same(
    phantom_records, random_backbone, engine, expected, tmp_path, dask_options
):
    views = spread_features(
        phantom_records, tmp_path / "dask", random_backbone, engine, CONFIG, dask_options
    )
    np.testing.assert_array_equal(np.asarray(views), expected)


def test_a_worker_with_another_engine_is_refused(
    phantom_records, random_backbone, engine, tmp_path
):
    other = dataclasses.replace(engine, precision="bfloat16")
    with pytest.raises(RuntimeError, match=r"keras-bfloat16-\S+ on every worker.*keras-float32"):
        spread_features(
            phantom_records, tmp_path, random_backbone, other, CONFIG, beam_options("DirectRunner")
        )
    assert not list(tmp_path.rglob("*.npy"))
