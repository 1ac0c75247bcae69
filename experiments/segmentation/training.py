"""Training of the liver network: one loop, averaged weights, early stopping, exact resume."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from experiments.segmentation.unet import dice_and_cross_entropy
from steatosis_tf.files import replacing

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class UnetTraining:
    """How the liver network is trained.

    Attributes:
        epochs: upper limit, and the length of the cosine that the learning rate follows.
        steps_per_epoch: batches per epoch.
        learning_rate: peak, after a warm-up of one epoch.
        weight_decay: AdamW's.
        average_decay: proportion of the running weight average kept at each step, 0 to below 1. The
            averaged weights are what is validated, kept and shipped.
        patience: stop after this many validated epochs without a better score.
        validate_every: epochs between validations.
    """

    epochs: int = 60
    steps_per_epoch: int = 50
    learning_rate: float = 2e-3
    weight_decay: float = 4e-3
    average_decay: float = 0.99
    patience: int = 6
    validate_every: int = 3


class _State:
    """Everything a resumed run needs, and its way to and from one .npz file."""

    def __init__(self, model: keras.Model, settings: UnetTraining) -> None:
        self.model, self.settings = model, settings
        schedule = keras.optimizers.schedules.CosineDecay(
            settings.learning_rate / 10,
            settings.steps_per_epoch * max(settings.epochs - 1, 1),
            warmup_target=settings.learning_rate,
            warmup_steps=settings.steps_per_epoch,
        )
        self.optimizer = keras.optimizers.AdamW(
            schedule, weight_decay=settings.weight_decay, clipnorm=1.0
        )
        self.optimizer.build(model.trainable_variables)
        self.average = [weight.copy() for weight in model.get_weights()]
        self.best = self.average
        self.history: list[dict[str, float]] = []

    def save(self, path: Path) -> None:
        groups = {
            # Not only the weights: the state of dropout's random numbers goes on as well.
            "model": [variable.numpy() for variable in self.model.variables],
            "optimizer": [variable.numpy() for variable in self.optimizer.variables],
            "average": self.average,
            "best": self.best,
        }
        arrays = {f"{name}_{i}": a for name, group in groups.items() for i, a in enumerate(group)}
        note = json.dumps({"settings": asdict(self.settings), "history": self.history})
        with replacing(path) as unfinished:
            np.savez(unfinished, note=np.array(note), **arrays)

    def load(self, path: Path) -> None:
        with np.load(path) as stored:
            note = json.loads(str(stored["note"]))
            if note["settings"] != asdict(self.settings):
                raise ValueError(
                    f"Expected the settings that {path.name} was started with: {note['settings']}. "
                    f"Received: {asdict(self.settings)}. Give a new folder or the old settings."
                )
            for owner, name in ((self.model, "model"), (self.optimizer, "optimizer")):
                for variable, value in zip(owner.variables, _group(stored, name), strict=True):
                    variable.assign(value)
            self.average, self.best = _group(stored, "average"), _group(stored, "best")
            self.history = note["history"]


def train_unet(
    model: keras.Model,
    batches_of: Callable[[int], Batches],
    validate: Callable[[keras.Model], float],
    settings: UnetTraining,
    checkpoint_path: Path,
) -> list[dict[str, float]]:
    """Train in place; the model ends with the averaged weights of its best validated epoch.

    A run that was killed continues after its last whole epoch: call again with the same arguments.

    Args:
        model: from `build_unet`.
        batches_of: epoch number (0 first) -> that epoch's batches of input and target.
        validate: score of a model, higher is better.
        settings: see `UnetTraining`.
        checkpoint_path: .npz, written after every epoch.

    Returns:
        One dict per epoch: `epoch`, `loss`, and `validation` where it was validated.

    Raises:
        ValueError: if the checkpoint was started with other settings.
    """
    state = _State(model, settings)
    if checkpoint_path.is_file():
        state.load(checkpoint_path)
    step = _step_function(model, state.optimizer)
    for epoch in range(len(state.history), settings.epochs):
        if _waited_too_long(state.history, settings.patience):
            break
        losses = []
        for crops, targets in batches_of(epoch):
            losses.append(float(step(crops, targets)))
            _average(state, len(state.history) * settings.steps_per_epoch + len(losses))
        row = {"epoch": epoch, "loss": float(np.mean(losses))}
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs:
            row["validation"] = _validated(state, validate)
        state.history.append(row)
        state.save(checkpoint_path)
    model.set_weights(state.best)
    return state.history


def _step_function(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Callable[[np.ndarray, np.ndarray], tf.Tensor]:
    @tf.function(reduce_retracing=True)
    def step(crops: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = dice_and_cross_entropy(targets, model(crops, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def _average(state: _State, num_steps: int) -> None:
    # Young averages forget faster, or the random start would weigh on for hundreds of steps.
    keep = min(state.settings.average_decay, num_steps / (num_steps + 10))
    for slot, weight in zip(state.average, state.model.get_weights(), strict=True):
        slot *= keep
        slot += (1 - keep) * weight


def _validated(state: _State, validate: Callable[[keras.Model], float]) -> float:
    current = state.model.get_weights()
    state.model.set_weights(state.average)
    score = float(validate(state.model))
    earlier = [row["validation"] for row in state.history if "validation" in row]
    if not earlier or score > max(earlier):
        state.best = [weight.copy() for weight in state.average]
    state.model.set_weights(current)
    return score


def _waited_too_long(history: list[dict[str, float]], patience: int) -> bool:
    scores = [row["validation"] for row in history if "validation" in row]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _group(stored: np.lib.npyio.NpzFile, name: str) -> list[np.ndarray]:
    count = sum(key.startswith(f"{name}_") for key in stored.files)
    return [stored[f"{name}_{i}"] for i in range(count)]
