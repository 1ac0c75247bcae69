"""What a fold learns from a store, by way of the config."""

import dataclasses

import numpy as np
import pytest

from steatosis_tf import tracking
from steatosis_tf.cohort.splits import Partition
from steatosis_tf.config import Config, ModelConfig, TrainConfig
from steatosis_tf.fold_fit import train_fold
from steatosis_tf.folds import load_study
from steatosis_tf.model.shards import plain_rows
from steatosis_tf.model.train import make_repeatable

_TRAIN = TrainConfig(epochs=10, learning_rate=1e-3, batch_size=4, views=1)


def test_a_float16_store_has_half_the_size_and_gives_the_same_grades(
    phantom_records, tmp_path, monkeypatch
):
    monkeypatch.setenv("STEATOSIS_MLRUNS", str(tmp_path / "mlruns"))
    stores, sizes = [], []
    for dtype in ("float32", "float16"):
        config = Config(
            model=ModelConfig(weights="random", engine="keras"),
            train=dataclasses.replace(_TRAIN, store_dtype=dtype),
        )
        with tracking.start_run("store", dtype):
            data = load_study(phantom_records, tmp_path / "features", config)
        # One patient of each of the first two grades validates.
        common = data.index[data.index["label"] < 2].drop_duplicates("label")["patient_id"]
        others = set(data.index["patient_id"]) - set(common)
        fold = Partition("fold", frozenset(others), frozenset(common), frozenset())
        make_repeatable(0)
        head, _ = train_fold(data, fold, config, None)
        stores.append((head, plain_rows(data.views, np.arange(12))[:]))
        sizes.append(sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.npy")))
    assert sizes[1] - sizes[0] == pytest.approx(sizes[0] / 2, rel=0.01)  # a folder of its own
    (head, exact), (other, rounded) = stores
    assert not np.array_equal(exact, rounded)
    read, reread = np.asarray(head(exact)), np.asarray(head(rounded))
    np.testing.assert_allclose(reread, read, atol=0.01)  # as TrainConfig says
    trained_on_rounded = np.asarray(other(rounded))
    np.testing.assert_allclose(trained_on_rounded, read, atol=0.1)
    assert (trained_on_rounded.argmax(axis=1) == read.argmax(axis=1)).all()
