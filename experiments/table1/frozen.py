"""Frozen published networks under the protocol: features once per frame, heads per fold.

Features lie in the study's folder, named by the hash of the weights, so that folds, tasks and
methods share them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments.table1.deep import FittedNetwork
from experiments.table1.method import FoldData
from steatosis_tf.config import AugmentConfig, ModelConfig, TrainConfig
from steatosis_tf.model.backbone import FEATURE_LAYER, build_backbone
from steatosis_tf.model.engines import Engine, reference_engine
from steatosis_tf.model.features import stored_features
from steatosis_tf.model.heads import build_head
from steatosis_tf.model.train import (
    class_weights,
    feature_batches,
    fit,
    frame_order,
    make_repeatable,
)


@dataclass(frozen=True)
class FrozenFeatures:
    """A frozen network and where its features are kept.

    Attributes:
        config: which network, with which weights.
        whole_map: features are the whole last map, not its mean over places.
        store_dir: folder of the feature store.
    """

    config: ModelConfig
    whole_map: bool
    store_dir: Path

    @property
    def backbone(self) -> keras.Model:
        """The network, built once per process."""
        return _backbone(self.config, self.whole_map)[0]

    def of(self, rois: np.ndarray, num_views: int = 0) -> Any:
        """Features of frames, computed or found.

        Args:
            rois: `(n, 224, 224, 1)` uint8.
            num_views: augmented views beside the plain one.

        Returns:
            `(1 + num_views, n, num_features)`, float32, indexed as an array.
        """
        # A frame is known by its pixels: whoever asks for probabilities has no more than those.
        names = np.array([hashlib.sha256(roi.tobytes()).hexdigest() for roi in rois])
        names, first, place = np.unique(names, return_index=True, return_inverse=True)
        examples = tf.data.Dataset.from_tensor_slices({"roi": rois[first], "frame_id": names})
        backbone, engine = _backbone(self.config, self.whole_map)
        found = stored_features(
            examples, self.store_dir, backbone, engine, AugmentConfig(), num_views
        )
        return found[:, place]


@dataclass(frozen=True)
class FittedHead:
    """A trained head on frozen features."""

    features: FrozenFeatures
    head: keras.Model
    task: str

    @property
    def num_parameters(self) -> int:
        """All numbers of the frozen network and the head."""
        return self.features.backbone.count_params() + self.head.count_params()

    def probabilities(self, rois: np.ndarray) -> np.ndarray:
        """`(n, num_classes)` float32 of `(n, 224, 224, 1)` uint8."""
        return self.head.predict(self.features.of(rois)[0, np.arange(len(rois))], verbose=0)

    def save(self, folder: Path, rois: np.ndarray) -> Path:
        """Write `model.onnx`, pixels to probabilities."""
        backbone = self.features.backbone
        # `call`, not `head(...)`: the head's layers then lie flat behind the backbone's.
        model = keras.Model(backbone.input, self.head.call(backbone.output))
        return FittedNetwork(model, self.task).save(folder, rois)


def fit_head(
    fold_data: FoldData,
    features: FrozenFeatures,
    make_head: Callable[[np.ndarray], keras.Model],
    *,
    frame_step: int,
    train: TrainConfig,
) -> FittedHead:
    """Train a head on stored copies of frames, classes weighed alike; validation is only watched.

    Args:
        fold_data: what to learn from.
        features: of which network.
        make_head: plain features of the training frames `(n, num_features)` -> untrained head.
        frame_step: every how many of a patient's frames is used.
        train: epochs, batch size, learning rate, and `views`, the augmented copies per frame.
    """
    make_repeatable(fold_data.seed)
    rows, watched = (
        fold_data.thinned(part, frame_step) for part in (fold_data.train, fold_data.validation)
    )
    views = features.of(fold_data.study.rois[rows], train.views)
    every = np.arange(len(rows))
    head = make_head(views[0, every])
    batches = feature_batches(
        views[1:],
        fold_data.classes(rows),
        frame_order(every, seed=fold_data.seed),
        batch_size=train.batch_size,
        seed=fold_data.seed,
    )
    plain = features.of(fold_data.study.rois[watched])[0, np.arange(len(watched))]
    weights = class_weights(fold_data.classes(rows), fold_data.num_classes)
    fit(head, batches, (plain, fold_data.classes(watched)), weights, train)
    return FittedHead(features, head, fold_data.task)


def fit_dense_head(
    fold_data: FoldData,
    backbone: str,
    weights: str,
    *,
    frame_step: int,
    train: TrainConfig,
) -> FittedHead:
    """`fit_head` with the run's own head: standardised features, a dense layer, dropout, softmax.

    Args:
        fold_data: what to learn from.
        backbone: as of `ModelConfig`.
        weights: "imagenet", "random" or a path.
        frame_step, train: as of `fit_head`.
    """
    config = ModelConfig(backbone=backbone, weights=weights)  # type: ignore[arg-type]
    features = FrozenFeatures(config, False, fold_data.study.folder / "features")
    return fit_head(
        fold_data,
        features,
        lambda plain: build_head(config, plain, fold_data.seed, fold_data.num_classes),
        frame_step=frame_step,
        train=train,
    )


@lru_cache(maxsize=2)
def _backbone(config: ModelConfig, whole_map: bool) -> tuple[keras.Model, Engine]:
    backbone = build_backbone(config)
    backbone = with_whole_map(backbone) if whole_map else backbone
    # A few hundred frames are not worth checking another engine for.
    return backbone, reference_engine(backbone)


def with_whole_map(backbone: keras.Model) -> keras.Model:
    """The same backbone with the last map itself as its features, for heads that look at places.

    Args:
        backbone: as `build_backbone` gives it; its layers are shared.

    Returns:
        flat model: `roi` -> `features` (batch, height * width * channels) float32; the layer
        before has the map's shape. Another name than the backbone, so another feature store.
    """
    last_map = backbone.get_layer(FEATURE_LAYER).input
    flat = keras.layers.Flatten(name=FEATURE_LAYER)(last_map)
    return keras.Model(backbone.input, flat, name=f"{backbone.name}_whole_map")
