"""What ends a grading network: three ways from its last hidden layer to four probabilities.

`softmax` knows no order. `ordinal` is the cumulative-link model (McCullagh 1980, doi
10.1111/j.2517-6161.1980.tb01109.x; on a network Vargas et al. 2020, doi
10.1016/j.neucom.2020.03.034): one score per frame and three cuts, P(grade <= k) =
sigmoid(cut_k - score). CORAL (Cao et al. 2020, doi 10.1016/j.patrec.2020.11.008) has the same form
but cuts that are ordered only at the optimum; here they are ordered by construction, so that no
probability is ever negative, and the loss is the likelihood of the grade. `regression` predicts
the square root of fat percent and reads it by `grade_probabilities`.

All end in a layer `probabilities`, so that evaluation, export and prediction know one contract.
Any network can be ended by them: they ask for a `(batch, n)` tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from steatosis_tf.config import CLOSED_FORM, HeadKind, ModelConfig
from steatosis_tf.grades import FAT_CUTS_PERCENT, GRADES, OUTPUT_LAYER
from steatosis_tf.model.backbone import FEATURE_LAYER
from steatosis_tf.model.features import StoredViews, in_slices
from steatosis_tf.model.joint import JointModel

SQRT_FAT_LAYER = "sqrt_fat"

# The square root of 0 to 100 percent is 0 to 10: a prediction starts in the middle, and a hidden
# layer of order 1 reaches the ends. Fixed, because what is taken from no data cannot leak.
_SQRT_FAT_MIDDLE, _SQRT_FAT_SCALE = 5.0, 2.5
_FIRST_SPREAD = 1.0
_MIN_GAP = 1e-3
_CUTS = np.sqrt(FAT_CUTS_PERCENT).astype(np.float32)


@dataclass(frozen=True)
class Objective:
    """What is fitted: a model that shares its layers with the whole one, its loss, its metric.

    The metric is called `accuracy` for every head and compares grades, so that histories and
    schedules are alike.
    """

    model: keras.Model
    loss: keras.losses.Loss
    accuracy: Any


def end_network(
    hidden: keras.KerasTensor, head: HeadKind, num_grades: int = len(GRADES)
) -> keras.KerasTensor:
    """Probabilities of the grades from the last hidden layer.

    Args:
        hidden: `(batch, n)`.
        head: softmax, ordinal, regression, or linear, which has the form of ordinal.
        num_grades: probabilities to give; regression knows the four grades of the fat cuts only.

    Returns:
        `(batch, num_grades)` float32, sum 1; the layer is called `probabilities`.
    """
    if head == "softmax":
        return keras.layers.Dense(num_grades, activation="softmax", name=OUTPUT_LAYER)(hidden)
    if head in ("ordinal", "linear"):
        score = keras.layers.Dense(1, use_bias=False, name="score")(hidden)
        log_probabilities = CumulativeLink(num_grades, name="cumulative_link")(score)
        return keras.layers.Softmax(name=OUTPUT_LAYER)(log_probabilities)
    value = keras.layers.Dense(1, name="fat")(hidden)
    sqrt_fat = keras.layers.Rescaling(_SQRT_FAT_SCALE, _SQRT_FAT_MIDDLE, name=SQRT_FAT_LAYER)(value)
    return FatGrades(name=OUTPUT_LAYER)(sqrt_fat)


def set_cuts(model: keras.Model, weights: np.ndarray, cuts: np.ndarray) -> None:
    """Set what an ordinal end or a linear head says: P(grade <= k) = sigmoid(cut_k - x @ weights).

    Args:
        model: ended so, on hidden values `(batch, n)`.
        weights: `(n,)`.
        cuts: `(num_grades - 1,)`, each at least 0.001 over the one before.
    """
    gaps = np.maximum(np.diff(cuts) - _MIN_GAP, np.finfo(np.float32).tiny)
    # softplus undone; for wide gaps expm1 would overflow, and both are the same to float32
    undone = np.where(gaps > 30, gaps, np.log(np.expm1(np.minimum(gaps, 30))))
    model.get_layer("score").set_weights([np.asarray(weights, np.float32)[:, None]])
    link = model.get_layer("cumulative_link")
    link.set_weights([np.float32(cuts[:1]), np.float32(undone)])


def objective(model: keras.Model, inputs: keras.KerasTensor | None = None) -> Objective:
    """How a model that ends in `end_network` is fitted.

    Targets are labels 0 to 3, for regression the square root of fat percent.

    Args:
        model: the whole of it.
        inputs: a tensor inside it, from which on it is fitted; None for its input.
    """
    if not has_regression(model):
        fitted = model if inputs is None else keras.Model(inputs, model.output)
        return Objective(fitted, keras.losses.SparseCategoricalCrossentropy(), "accuracy")
    sqrt_fat = model.get_layer(SQRT_FAT_LAYER).output
    predicted = keras.Model(model.input if inputs is None else inputs, sqrt_fat)
    return Objective(predicted, keras.losses.MeanSquaredError(), accuracy)


def has_regression(model: keras.Model) -> bool:
    """Whether the model predicts fat percent and reads the grades off it."""
    return any(isinstance(layer, FatGrades) for layer in model.layers)


def set_spread(model: keras.Model, squared_error: float) -> None:
    """Set how far the truth lies from a predicted square root of fat percent.

    Args:
        model: with a regression head.
        squared_error: mean over frames of patients that were not trained on.
    """
    spread = max(float(np.sqrt(squared_error)), MIN_SPREAD)
    model.get_layer(OUTPUT_LAYER).set_weights([np.float32(spread)])


def accuracy(sqrt_fat: Any, predicted: Any) -> Any:
    """Proportion of frames whose predicted fat percent lies in the right grade.

    Args:
        sqrt_fat: `(batch,)` or `(batch, 1)`, square root of fat percent.
        predicted: `(batch, 1)`.
    """
    sqrt_fat, predicted = (keras.ops.reshape(value, (-1,)) for value in (sqrt_fat, predicted))
    return keras.ops.cast(_grade(sqrt_fat) == _grade(predicted), "float32")


def _grade(sqrt_fat: Any) -> Any:
    mild, moderate, severe = _CUTS
    above = [sqrt_fat >= mild, sqrt_fat > moderate, sqrt_fat > severe]
    return sum(keras.ops.cast(part, "int32") for part in above)


@keras.saving.register_keras_serializable(package="steatosis_tf")
class CumulativeLink(keras.layers.Layer):
    """Logarithms of the probabilities of ordered grades, from one score `(batch, 1)`.

    P(grade <= k) = sigmoid(cut_k - score) with cuts in rising order, so every P(grade > k) rises
    with the score. Logarithms, because a difference of two sigmoids is 0 in float32 where a frame
    is far off, and then has no gradient:
    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)).

    Args:
        num_grades: two or more.
    """

    def __init__(self, num_grades: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_grades = num_grades

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        # To begin with, every grade has the same probability at score 0.
        shares = np.arange(1, self.num_grades) / self.num_grades
        cuts = np.log(shares / (1 - shares))
        gaps = np.log(np.expm1(np.diff(cuts) - _MIN_GAP))  # softplus undone
        self.first_cut = self.add_weight((1,), _constant(cuts[:1]), name="first_cut")
        self.gaps = self.add_weight((self.num_grades - 2,), _constant(gaps), name="gaps")

    def call(self, score: Any) -> Any:
        ops = keras.ops
        gaps = ops.softplus(self.gaps) + _MIN_GAP
        cuts = ops.concatenate([self.first_cut, self.first_cut + ops.cumsum(gaps)])
        up_to = ops.log_sigmoid(cuts - score)
        above = ops.log_sigmoid(score - cuts)
        between = up_to[:, 1:] + above[:, :-1] + ops.log(1 - ops.exp(-gaps))
        return ops.concatenate([up_to[:, :1], between, above[:, -1:]], axis=1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.num_grades)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"num_grades": self.num_grades}


@keras.saving.register_keras_serializable(package="steatosis_tf")
class FatGrades(keras.layers.Layer):
    """Probabilities of the four grades from the square root of fat percent `(batch, 1)`.

    Holds one number that is not trained, `spread`, see `set_spread`.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.spread = self.add_weight((), _constant(_FIRST_SPREAD), trainable=False, name="spread")

    def call(self, sqrt_fat: Any) -> Any:
        def normal_cdf(value: Any) -> Any:
            return 0.5 * (1 + keras.ops.erf(value * float(np.sqrt(0.5))))

        # float32 rounding may leave a share a hair below 0
        return keras.ops.maximum(grade_probabilities(sqrt_fat, self.spread, normal_cdf), 0.0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], len(GRADES))


def _constant(values: Any) -> Any:
    return lambda shape, dtype=None: keras.ops.convert_to_tensor(np.float32(values), dtype=dtype)


NORMALIZATION_LAYER = "feature_normalization"


def build_head(
    config: ModelConfig,
    training_features: np.ndarray | StoredViews,
    seed: int,
    num_grades: int = len(GRADES),
) -> keras.Model:
    """The trainable head on features.

    The optional normalisation holds mean and variance of the training features. It is a frozen
    BatchNormalization, because Keras' Normalization would add a required input to the ONNX file.

    Args:
        config: hidden units, dropout, normalisation, kind of head.
        training_features: `(num_frames, num_features)` float32 of the training part only, in
            memory or as `plain_rows` gives them.
        seed: of the initial weights and the dropout.
        num_grades: probabilities to give.

    Returns:
        model `(batch, num_features)` float32 -> `(batch, num_grades)` float32, sum 1.
    """
    features = keras.Input((training_features.shape[1],), name=FEATURE_LAYER)
    keras.utils.set_random_seed(seed)
    outputs = end_network(hidden_layers(features, config), config.head, num_grades)
    head = keras.Model(features, outputs, name="head")
    set_normalization(head, training_features)
    return head


def hidden_layers(features: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Normalisation, dense, ReLU, dropout: `(..., num_features)` -> `(..., hidden_units)`; nothing
    of it for a linear head."""
    x = features
    if config.head in CLOSED_FORM:
        return x
    if config.normalize_features:
        x = keras.layers.BatchNormalization(
            center=False, scale=False, epsilon=1e-6, trainable=False, name=NORMALIZATION_LAYER
        )(x)
    x = keras.layers.Dense(config.hidden_units, activation="relu", name="hidden")(x)
    return keras.layers.Dropout(config.dropout, name="dropout")(x)


def linear_head(model: JointModel) -> keras.Model:
    """A solved linear rule on features as plain layers, so that it is assembled and exported as
    any head.

    Args:
        model: with the network's part alone.

    Returns:
        model `(batch, num_features)` float32 -> `(batch, 4)` float32, sum 1.
    """
    (part,) = model.parts
    rule, link = part.rule, model.link
    features = keras.Input((len(rule.weights),), name=FEATURE_LAYER)
    head = keras.Model(features, end_network(features, "linear"), name="head")
    slopes = rule.weights / rule.scale
    offset = rule.intercept - slopes @ rule.centre
    set_cuts(head, link.slope * slopes, np.array(link.cuts) - link.slope * offset)
    return head


def set_normalization(head: keras.Model, training_features: np.ndarray | StoredViews) -> None:
    """Set mean and variance of the training features, if the head normalises them.

    Args:
        head: with `hidden_layers`.
        training_features: `(num_frames, num_features)` float32 of the training part only, in
            memory or as `plain_rows` gives them.
    """
    if not any(layer.name == NORMALIZATION_LAYER for layer in head.layers):
        return
    head.get_layer(NORMALIZATION_LAYER).set_weights(_moments(training_features))


def _moments(features: np.ndarray | StoredViews) -> list[np.ndarray]:
    """Mean and variance of each feature, from a slice of the frames at a time."""
    sums, squares = np.zeros((2, features.shape[1]))
    for part in in_slices(features):
        sums += part.sum(axis=0, dtype=np.float64)
        squares += np.square(part, dtype=np.float64).sum(axis=0)
    mean = sums / features.shape[0]
    variance = np.maximum(squares / features.shape[0] - mean**2, 0)  # rounding may go below 0
    return [mean.astype(np.float32), variance.astype(np.float32)]


def assemble(backbone: keras.Model, head: keras.Model, config: ModelConfig) -> keras.Model:
    """One flat model, pixels in and probabilities out, with the weights of both.

    Flat, because a nested backbone breaks Grad-CAM and reload (see docs/architecture.md).

    Args:
        backbone: as `build_backbone` gives it; shared, not copied.
        head: as `build_head` gives it, trained.
        config: the config both were built with.

    Returns:
        model `roi` (batch, height, width, 1) uint8 -> `probabilities` (batch, 4) float32.
    """
    num_grades = head.output_shape[-1]
    outputs = end_network(hidden_layers(backbone.output, config), config.head, num_grades)
    model = keras.Model(backbone.input, outputs, name="steatosis_grader")
    copy_weights(head, model, head)
    return model


def copy_weights(source: keras.Model, target: keras.Model, head: keras.Model) -> None:
    """Copy the weights of the layers that the head has, by their names, from one model that has
    them to another."""
    for layer in head.layers:
        if layer.weights:
            weights = source.get_layer(layer.name).get_weights()
            target.get_layer(layer.name).set_weights(weights)


#: Narrowest error that is believed, square root of percent: no biopsy is read more exactly.
MIN_SPREAD = 1e-3

# Shares below the three cuts -> shares between them: a grade is what lies below its upper cut less
# what lies below its lower one, and all of it lies below the last.
_DIFFERENCES = np.array([[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1]], np.float32)
_ALL = np.array([0, 0, 0, 1], np.float32)


def grade_probabilities(sqrt_fat: Any, spread: Any, normal_cdf: Callable[[Any], Any]) -> Any:
    """Proportions of a normal distribution between the fat cuts, in NumPy or in a graph.

    Args:
        sqrt_fat: `(n, 1)` array or tensor, predicted square root of fat percent.
        spread: its error, one number over 0 on the same scale.
        normal_cdf: of the standard normal distribution, elementwise.

    Returns:
        `(n, 4)`, each row sums to 1, order Normal, Mild, Moderate, Severe.
    """
    return normal_cdf((_CUTS - sqrt_fat) / spread) @ _DIFFERENCES + _ALL
