"""What ends a grading network: three ways from its last hidden layer to four probabilities.

`softmax` knows no order. `ordinal` is the cumulative-link model (McCullagh 1980, doi
10.1111/j.2517-6161.1980.tb01109.x; on a network Vargas et al. 2020, doi
10.1016/j.neucom.2020.03.034): one score per frame and three cuts, P(grade <= k) =
sigmoid(cut_k - score). CORAL (Cao et al. 2020, doi 10.1016/j.patrec.2020.11.008) has the same form
but cuts that are ordered only at the optimum; here they are ordered by construction, so that no
probability is ever negative, and the loss is the likelihood of the grade. `regression` predicts
the square root of fat percent and reads it by `fat_reading.py`.

All end in a layer `probabilities`, so that evaluation, export and prediction know one contract.
Any network can be ended by them: they ask for a `(batch, n)` tensor.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from steatosis_tf.config import HeadKind
from steatosis_tf.grades import FAT_CUTS_PERCENT, GRADES, OUTPUT_LAYER
from steatosis_tf.model.fat_reading import MIN_SPREAD, grade_probabilities

SQRT_FAT_LAYER = "sqrt_fat"

# The square root of 0 to 100 percent is 0 to 10: a prediction starts in the middle, and a hidden
# layer of order 1 reaches the ends. Fixed, because what is taken from no data cannot leak.
_SQRT_FAT_MIDDLE, _SQRT_FAT_SCALE = 5.0, 2.5
_FIRST_SPREAD = 1.0
_MIN_GAP = 1e-3
_CUTS = [float(np.sqrt(cut)) for cut in FAT_CUTS_PERCENT]


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
        head: softmax, ordinal or regression.
        num_grades: probabilities to give; regression knows the four grades of the fat cuts only.

    Returns:
        `(batch, num_grades)` float32, sum 1; the layer is called `probabilities`.

    Raises:
        ValueError: for regression with another number of grades.
    """
    if head == "softmax":
        return keras.layers.Dense(num_grades, activation="softmax", name=OUTPUT_LAYER)(hidden)
    if head == "ordinal":
        score = keras.layers.Dense(1, use_bias=False, name="score")(hidden)
        log_probabilities = CumulativeLink(num_grades, name="cumulative_link")(score)
        return keras.layers.Softmax(name=OUTPUT_LAYER)(log_probabilities)
    if num_grades != len(GRADES):
        raise ValueError(
            f"Expected {len(GRADES)} grades with model.head=regression, which reads them off the "
            f"fat percent. Received: num_grades={num_grades}. Use model.head=ordinal."
        )
    value = keras.layers.Dense(1, name="fat")(hidden)
    sqrt_fat = keras.layers.Rescaling(_SQRT_FAT_SCALE, _SQRT_FAT_MIDDLE, name=SQRT_FAT_LAYER)(value)
    return FatGrades(name=OUTPUT_LAYER)(sqrt_fat)


def objective(model: keras.Model) -> Objective:
    """How a model that ends in `end_network` is fitted.

    Targets are labels 0 to 3, for regression the square root of fat percent.
    """
    if not has_regression(model):
        return Objective(model, keras.losses.SparseCategoricalCrossentropy(), "accuracy")
    predicted = keras.Model(model.input, model.get_layer(SQRT_FAT_LAYER).output)
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
    """Share of frames whose predicted fat percent lies in the right grade.

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
