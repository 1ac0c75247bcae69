"""Maps that explain a grade: exact, from the ONNX file alone, and drawn where they belong."""

import json

import cv2
import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

from steatosis_tf.config import RoiConfig
from steatosis_tf.deploy.bare_network import explain_mean, open_explainer
from steatosis_tf.deploy.export import export_onnx
from steatosis_tf.deploy.figures import frame_pictures
from steatosis_tf.deploy.predict import open_model
from steatosis_tf.grades import GRADES
from steatosis_tf.roi.propose import propose_roi
from steatosis_tf.sources.phantom.study import simulate_patient


@pytest.fixture(scope="module")
def grader(tmp_path_factory):
    """A network that ends as the paper's: map, mean, normalisation, dense, ReLU, dense, softmax."""
    keras.utils.set_random_seed(3)
    roi = keras.Input((224, 224, 1), dtype="uint8", name="roi")
    x = keras.layers.Rescaling(1 / 255)(roi)
    for channels in (8, 16):
        x = keras.layers.Conv2D(channels, 5, strides=4, activation="relu")(x)
    x = keras.layers.Identity(name="last_map")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    normal = keras.layers.BatchNormalization(center=False, scale=False, trainable=False)
    x = normal(x)
    normal.set_weights([np.linspace(0, 0.2, 16), np.linspace(0.01, 0.3, 16)])
    x = keras.layers.Dense(12, activation="relu", bias_initializer="random_normal")(x)
    logits = keras.layers.Dense(4, bias_initializer="random_normal", name="logits")(x)
    model = keras.Model(roi, keras.layers.Softmax(name="probabilities")(logits))
    path = tmp_path_factory.mktemp("paper") / "model.onnx"
    texts = {"roi": json.dumps({"method": "sector"})}
    export_onnx(model, path, _pictures(4)[..., None], texts)
    return model, path


def _pictures(num: int) -> np.ndarray:
    frames, _ = simulate_patient(
        40.0, num_frames=num, generator=np.random.default_rng(2), size_px=(224, 224)
    )
    return frames


def _grad_cam(model: keras.Model, pictures: np.ndarray, label: int) -> np.ndarray:
    """Grad-CAM before its ReLU, by Keras: gradients averaged over places, times the map."""
    place = model.get_layer("last_map")
    places = keras.Model(model.input, place.output)(pictures[..., None], training=False)
    with tf.GradientTape() as tape:
        tape.watch(places)
        tail = places
        for layer in model.layers[model.layers.index(place) + 1 : -1]:
            tail = layer(tail, training=False)
        wanted = tf.reduce_sum(tail[:, label])
    gradient = tape.gradient(wanted, places).numpy().mean(axis=(1, 2), keepdims=True)
    return (places.numpy() * gradient).sum(axis=-1)


def test_the_onnx_file_alone_gives_grad_cam_of_keras(grader):
    model, path = grader
    pictures = _pictures(4)
    explainer = open_explainer(path)
    for label in range(len(GRADES)):
        places = explainer(pictures, label)
        np.testing.assert_allclose(places, _grad_cam(model, pictures, label), atol=1e-5)


def test_a_place_counts_by_hand():
    """Two places, two channels: mean (2, 3), less 1, ReLU; only the first channel stays active."""
    last_map = np.array([[[1.0, 0.0], [3.0, 6.0]]])
    steps = (
        ("Add", np.array([-1.0, -4.0])),
        ("Relu", np.empty(0)),
        ("Mul", np.array([10.0, 7.0])),
        ("MatMul", np.array([[1.0, -2.0], [5.0, 5.0]])),
        ("Add", np.array([0.5, 0.25])),
    )
    # -40 together; with what a map of zeros gives, 20.25, the logit: -2 * 10 * (2 - 1) + 0.25
    assert explain_mean(last_map, steps, 1).tolist() == [[-10.0, -30.0]]


def test_a_network_that_ends_otherwise_has_no_map(grader, tmp_path):
    proto = onnx.load(str(grader[1]))
    end = next(node for node in proto.graph.node if node.output[0] == "probabilities")
    end.op_type = "Sigmoid"
    del end.attribute[:]
    onnx.save(proto, str(tmp_path / "other.onnx"))
    assert open_explainer(tmp_path / "other.onnx") is None


def test_predict_gives_the_map_of_the_named_grade_inside_its_rectangle(grader):
    frames, _ = simulate_patient(40.0, num_frames=2, generator=np.random.default_rng(5))
    model = open_model(grader[1])
    looks = [model.look("a", frames[0]), model.look("b", np.zeros((300, 400), np.uint8)),
             model.look("c", frames[1])]  # fmt: skip
    answer = model.answer("P1", looks, maps=True)
    assert [frame.map is None for frame in answer.frames] == [False, True, False]
    label = GRADES.index(answer.grade)
    picture = np.stack([looks[2].picture])
    expected = open_explainer(grader[1])(picture, label)[0]
    np.testing.assert_array_equal(answer.frames[2].map, expected)
    box = propose_roi(frames[1], RoiConfig(method="sector")).rectangle
    plain, mapped = frame_pictures(answer.frames[2], looks[2], frames[1])
    grey = np.ptp(mapped.astype(int), axis=2) == 0
    inside = np.zeros(frames[1].shape, np.uint8)
    inside[box.top : box.bottom, box.left : box.right] = 1
    small = cv2.resize(inside, mapped.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    around = cv2.dilate(small, np.ones((9, 9))) == 0
    assert grey[around].all()
    assert not grey[small > 0].all()
    assert plain.shape == mapped.shape
