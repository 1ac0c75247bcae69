"""One grade from all frames of a patient: attention pooling on features.

The gated attention of Ilse, Tomczak and Welling 2018 (arXiv 1802.04712): each frame's hidden
vector h gets the weight softmax over frames of w . (tanh(V h) * sigmoid(U h)), the weighted mean
goes through the same ending as a frame does in `classifier.py`. A patient of one frame has weight
1, so the same head gives a frame its score. Trained on bags of patients, never on single frames.
"""

import keras
import numpy as np
import tensorflow as tf

from steatosis_tf.config import ModelConfig
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.heads import end_network, hidden_layers, set_normalization
from steatosis_tf.model.shards import StoredViews

#: Layer that gives each frame's share of a patient, `(patients, frames, 1)`.
ATTENTION_LAYER = "attention"

_ATTENTION_UNITS = 32


def build_pooled_head(config: ModelConfig, training_features: np.ndarray, seed: int) -> keras.Model:
    """The trainable head on the features of whole patients.

    Args:
        config: hidden units, dropout, normalisation, kind of head.
        training_features: `(num_frames, num_features)` float32 of the training part only.
        seed: of the initial weights and the dropout.

    Returns:
        model `(patients, frames, num_features)` float32 -> `(patients, 4)` float32, sum 1.
    """
    features = keras.Input((None, training_features.shape[1]), name=FEATURE_LAYER)
    keras.utils.set_random_seed(seed)
    head = keras.Model(features, _pooled_layers(features, config), name="pooled_head")
    set_normalization(head, training_features)
    return head


def bags(
    views: np.ndarray | StoredViews,
    targets: np.ndarray,
    frames_of: list[np.ndarray],
    *,
    frames_per_bag: int,
    batch_size: int,
    seed: int,
) -> tf.data.Dataset:
    """Training batches of patients; each pass draws frames and stored views anew.

    Args:
        views: `(num_views, num_frames, num_features)` float32.
        targets: `(num_patients,)` label, int, or square root of fat percent, float32.
        frames_of: rows of each patient's frames; drawn with replacement, so that every bag has
            the same size whatever number of frames a patient has.
        frames_per_bag: frames drawn of a patient each time.
        batch_size: bags per batch. An epoch has about as many bags as there are frames.
        seed: of the order and the draws.

    Returns:
        dataset of (`(batch, frames_per_bag, num_features)` float32, `(batch,)`).
    """
    num_views, _, num_features = views.shape
    num_patients, num_frames = len(frames_of), sum(len(rows) for rows in frames_of)
    order = tf.data.Dataset.range(num_patients).shuffle(num_patients, seed=seed)
    order = order.repeat(-(-num_frames // num_patients))
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    is_label = np.issubdtype(targets.dtype, np.integer)
    answers = tf.constant(targets, tf.int64 if is_label else tf.float32)

    def read(patients: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        counts = np.array([len(frames_of[patient]) for patient in patients])[:, np.newaxis]
        places = drawn // num_views % counts
        rows = [frames_of[patient][place] for patient, place in zip(patients, places, strict=True)]
        read_now = views[(drawn % num_views).ravel(), np.concatenate(rows)]
        return read_now.reshape(*drawn.shape, num_features)

    def gather(patients: tf.Tensor, drawn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.numpy_function(read, (patients, drawn), tf.float32, stateful=False)
        shape = (None, frames_per_bag, num_features)
        return tf.ensure_shape(batch, shape), tf.gather(answers, patients)

    pairs = tf.data.Dataset.zip(order, draws.batch(frames_per_bag))
    return pairs.batch(batch_size).map(gather).prefetch(2)


def whole_patients(
    features: np.ndarray, targets: np.ndarray, frames_of: list[np.ndarray]
) -> tf.data.Dataset:
    """Each patient with all frames as they are, one a batch: for validation.

    Args:
        features: `(num_frames, num_features)` float32.
        targets: `(num_patients,)`.
        frames_of: rows of each patient's frames.
    """
    groups = tf.ragged.stack([features[rows] for rows in frames_of])
    return tf.data.Dataset.from_tensor_slices((groups, targets)).map(
        lambda frames, target: (frames.to_tensor()[tf.newaxis], target[tf.newaxis])
    )


def _pooled_layers(features: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    layers = keras.layers
    hidden = hidden_layers(features, config)
    signal = layers.Dense(_ATTENTION_UNITS, activation="tanh", name="attention_signal")(hidden)
    gate = layers.Dense(_ATTENTION_UNITS, activation="sigmoid", name="attention_gate")(hidden)
    gated = layers.Multiply(name="attention_gated")([signal, gate])
    score = layers.Dense(1, use_bias=False, name="attention_score")(gated)
    share = layers.Softmax(axis=1, name=ATTENTION_LAYER)(score)
    pooled = layers.Dot(axes=1, name="attention_pool")([share, hidden])
    return end_network(layers.Reshape((config.hidden_units,), name="patient")(pooled), config.head)
