"""What can be set: one frozen dataclass per stage, checked when built.

A config is saved as `config.json` beside the outputs and as MLflow parameters. On the command
line a value is set as `--set train.epochs=5`.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steatosis_tf.files import flat, open_regular, reason_of, write_json


def _require(condition: bool, expected: str, **received: object) -> None:
    if not condition:
        values = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ValueError(f"Expected {expected}. Received: {values}.")


# What a number has to be, whether one is so, and the settings that are.
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("in (0, 1)", lambda x: 0 < x < 1,
     "split.test_fraction split.validation_fraction train.plateau_factor"),
    ("of 2 or more", lambda x: x >= 2, "split.folds"),
    ("of 1 or more", lambda x: x >= 1,
     "split.repeats model.hidden_units train.epochs train.batch_size train.plateau_patience"),
    ("of 32 or more", lambda x: x >= 32, "roi.depth_px roi.num_beams"),
    ("from 0 to 45", lambda x: 0 <= x <= 45, "augment.rotation_deg"),
    ("from 0 to 0.5", lambda x: 0 <= x < 0.5,
     "augment.zoom augment.depth_scale augment.dynamic_range"),
    ("from 0 to 128 grey levels", lambda x: 0 <= x <= 128, "augment.gain augment.gain_slope"),
    ("in [0, 1)", lambda x: 0 <= x < 1, "model.dropout"),
    ("of 0 or more", lambda x: 0 <= x < math.inf,
     "train.weight_decay train.views train.fine_tune_epochs"),
    ("over 0", lambda x: 0 < x < math.inf, "train.learning_rate train.fine_tune_learning_rate"),
)  # fmt: skip


class _Stage:
    """Checks each setting of a stage by itself when it is built."""

    def __post_init__(self) -> None:
        stage = type(self).__name__.removesuffix("Config").lower()
        for name, kind in typing.get_type_hints(type(self)).items():
            value, choices = getattr(self, name), typing.get_args(kind)
            _require(not choices or value in choices,
                     f"{stage}.{name} out of {', '.join(choices)}", **{name: value})  # fmt: skip
            for words, is_so, settings in _RANGES:
                if f"{stage}.{name}" in settings.split():
                    _require(is_so(value), f"{stage}.{name} {words}", **{name: value})


@dataclass(frozen=True)
class SplitConfig(_Stage):
    """How patients are divided. `kind` holdout: once; kfold: every patient tested once in each
    of `repeats` rounds of `folds` groups; lopo: leave one patient out; logo: leave one value of
    the manifest column `column` out (a scanner, a site); temporal: train on the past and test on
    the future by `column`, a date or a number of days; auto: as the manifest's split column says,
    without one kfold or holdout by the number of patients (`cohort.splits.resolve_split`)."""

    kind: Literal["auto", "holdout", "kfold", "lopo", "logo", "temporal"] = "auto"
    split_seed: int = 0
    test_fraction: float = 0.1
    validation_fraction: float = 0.1
    folds: int = 5
    repeats: int = 1
    column: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.test_fraction + self.validation_fraction < 1,
            "test and validation fractions that leave patients to train on",
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
        )
        _require(self.repeats == 1 or self.kind == "kfold", "split.repeats with split.kind=kfold",
                 repeats=self.repeats, kind=self.kind)  # fmt: skip
        _require(
            bool(self.column) == (self.kind in ("logo", "temporal")),
            "split.column with split.kind=logo (a scanner) or temporal (a date), and only there",
            column=self.column,
            kind=self.kind,
        )

    @property
    def words(self) -> str:
        """The kind as people say it.

        Example:
            >>> SplitConfig(kind="kfold", folds=5, repeats=3).words
            '3 x 5-fold'
        """
        folds = f"{self.folds}-fold"
        return {
            "auto": "split not yet resolved",
            "holdout": "hold-out",
            "kfold": folds if self.repeats == 1 else f"{self.repeats} x {folds}",
            "lopo": "leave-one-patient-out",
            "logo": f"leave-one-{self.column}-out",
            "temporal": f"split by {self.column}",
        }[self.kind]

    @property
    def time_column(self) -> str:
        """The column whose order a temporal split must keep, "" for other kinds."""
        return self.column if self.kind == "temporal" else ""


@dataclass(frozen=True)
class RoiConfig(_Stage):
    """What the model sees. `method` liver: the best rectangle of parenchyma; sector: the middle of
    the sector below the near field; beamspace: the whole sector, `depth_px` rows along the beams
    and `num_beams` columns across them. `sector_fallback` takes the second where the first finds
    nothing; without it such a frame is rejected with its reason."""

    method: Literal["liver", "sector", "beamspace"] = "liver"
    sector_fallback: bool = False
    depth_px: int = 384
    num_beams: int = 320

    def __post_init__(self) -> None:
        super().__post_init__()
        is_beamspace = self.method == "beamspace"
        _require(is_beamspace or (self.depth_px, self.num_beams) == (384, 320),
                 "roi.depth_px and roi.num_beams with roi.method=beamspace, and only there",
                 method=self.method, depth_px=self.depth_px, num_beams=self.num_beams)  # fmt: skip
        _require(not (is_beamspace and self.sector_fallback),
                 "roi.sector_fallback with roi.method=liver: beam space is the sector",
                 method=self.method, sector_fallback=self.sector_fallback)  # fmt: skip

    @property
    def view(self) -> str:
        """What the model sees, as the manifest's column `roi_view` says it: "" is a rectangle."""
        if self.method != "beamspace":
            return ""
        return f"beamspace {self.depth_px} x {self.num_beams}"


@dataclass(frozen=True)
class AugmentConfig(_Stage):
    """Random changes of training frames. Never a vertical flip: the near field stays on top.

    `rotation_deg` and `zoom` change a rectangle and have no meaning in beam space; `depth_scale`
    changes beam space alone. `Config.augmentation` is what is used, and the report says what is
    not. What is changed at a scanner, on any ROI: `gain` shifts all grey levels by up to so many;
    `gain_slope` shifts the far end against the near end by up to so many (time gain compensation);
    `dynamic_range` stretches the levels from white down, by up to this proportion."""

    flip: bool = True
    rotation_deg: float = 10.0
    zoom: float = 0.1
    depth_scale: float = 0.0
    gain: float = 0.0
    gain_slope: float = 0.0
    dynamic_range: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Backbone:
    """A published network without its top; known here without building it.

    Attributes:
        title: as people write it.
        builder: its name in `keras.applications`; "" where model/ has a function of its own.
        scale, offset: what its weights were trained to see is grey * scale + offset, per channel.
        address: where its ImageNet weights lie; "" where the package has them.
        cut_layer: last layer that stays as it is in fine-tuning; "" where that is not offered.
    """

    title: str
    builder: str = ""
    scale: float | tuple[float, ...] = 1.0
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    address: str = ""
    cut_layer: str = ""


# Means of the blue, green and red channel ("caffe" preprocessing, He et al. 2016); the library's
# own preprocess_input would give the ONNX file a second required input.
_CAFFE = (1.0, (-103.939, -116.779, -123.68))
# Red, green, blue: (grey / 255 - mean) / deviation.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TORCH = (
    tuple(1 / (255 * deviation) for deviation in _DEVIATIONS),
    tuple(-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)),
)
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_NO_TOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"

#: `model.backbone` -> network, the only list of them; model/backbone.py builds it.
BACKBONES = {
    "resnet50": Backbone("ResNet-50", "ResNet50", *_CAFFE, f"{_KERAS}/resnet/resnet50_{_NO_TOP}",
                         cut_layer="conv4_block6_out"),
    "resnet18": Backbone("ResNet-18", "", *_TORCH,
                         "https://huggingface.co/keras/resnet_18_imagenet/resolve/main/model.weights.h5"),
    "densenet121": Backbone("DenseNet-121", "DenseNet121", *_TORCH,
                            f"{_KERAS}/densenet/densenet121_{_NO_TOP}"),
    "vgg16": Backbone("VGG-16", "VGG16", *_CAFFE, f"{_KERAS}/vgg16/vgg16_{_NO_TOP}"),
    "vgg19": Backbone("VGG-19", "VGG19", *_CAFFE, f"{_KERAS}/vgg19/vgg19_{_NO_TOP}"),
    "efficientnet_lite0": Backbone("EfficientNet-Lite0"),
}  # fmt: skip

HeadKind = Literal["softmax", "ordinal", "regression", "linear", "joint"]

#: Heads that are solved, not trained by gradient steps: `train` has nothing to say to them.
CLOSED_FORM: tuple[HeadKind, ...] = ("linear", "joint")


@dataclass(frozen=True)
class ModelConfig(_Stage):
    """Backbone and head. `weights` of the backbone is "imagenet", "random" or a file's path;
    `normalize_gain` takes each frame's mean grey level out, `normalize_features` standardises the
    features by the training part. `head` softmax: four grades without order; ordinal: one score
    and ordered cuts; regression: fat percent, read as grades (model/heads.py). In closed form
    (model/joint.py): linear reads the backbone's features; joint the measured features too
    (hepatorenal index, attenuation, diaphragm). `pooling` of the
    last map: its mean, or means per band of depth (model/rules.py; efficientnet_lite0 alone)."""

    backbone: str = "resnet50"
    weights: str = "imagenet"
    pooling: Literal["global", "depth"] = "global"
    backbone_seed: int = 0
    normalize_gain: bool = True
    engine: Literal["auto", "keras", "tf-bf16", "openvino"] = "auto"
    hidden_units: int = 256
    dropout: float = 0.5
    normalize_features: bool = True
    head: HeadKind = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.backbone in BACKBONES, f"model.backbone out of {', '.join(BACKBONES)}",
                 backbone=self.backbone)  # fmt: skip
        _require(self.pooling == "global" or self.backbone == "efficientnet_lite0",
                 "model.pooling=depth with model.backbone=efficientnet_lite0",
                 pooling=self.pooling, backbone=self.backbone)  # fmt: skip
        _require(bool(self.weights), 'model.weights "imagenet", "random" or a path',
                 weights=self.weights)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(_Stage):
    """Fitting of the head. `views` = 0 augments online in every epoch; `views` = K draws each
    frame from K stored augmented views, so that the backbone runs K times instead of `epochs`.
    `store_dtype` of what is kept on disk: float32, so that a head on stored features and the whole
    model agree within 1e-5; float16 halves the disk, and the same head answers within 0.01.
    `checkpoint` "best" keeps the epoch with the lowest validation loss; with a handful of
    validating patients that epoch is chance, so "last" is the default. `sampling` frames: every
    frame once an epoch; patients: every patient equally often, whatever number of frames.
    `class_weights` lets every grade count the same; a regression has no classes to weigh.
    `fine_tune_epochs` over 0 adds `model.train.fine_tune`, in which `conv5` learns too."""

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.004
    class_weights: bool = True
    plateau_factor: float = 0.5
    plateau_patience: int = 10
    checkpoint: Literal["best", "last"] = "last"
    views: int = 4
    store_dtype: Literal["float32", "float16"] = "float32"
    sampling: Literal["frames", "patients"] = "frames"
    fine_tune_epochs: int = 0
    fine_tune_learning_rate: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.views >= 1 or self.sampling == "frames",
                 "train.views of 1 or more with train.sampling=patients, which draws stored copies",
                 views=self.views)  # fmt: skip
        _require(self.views >= 1 or not self.fine_tune_epochs,
                 "train.views of 1 or more with train.fine_tune_epochs, which reads stored maps",
                 views=self.views)  # fmt: skip


@dataclass(frozen=True)
class EvaluationConfig(_Stage):
    """How frames become a patient, fixed before the test part is seen. `log_odds` averages the log
    odds of at most each grade, which for the heads in closed form is their own rule: the score of
    the mean of a patient's frames (model/joint.py)."""

    aggregation: Literal["mean", "log_odds", "median", "trimmed_mean", "vote"] = "mean"


@dataclass(frozen=True)
class Config:
    """All stages of one run."""

    split: SplitConfig = field(default_factory=SplitConfig)
    roi: RoiConfig = field(default_factory=RoiConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        tunable = [name for name, backbone in BACKBONES.items() if backbone.cut_layer]
        _require(not self.train.fine_tune_epochs or self.model.backbone in tunable,
                 f"train.fine_tune_epochs with model.backbone out of {', '.join(tunable)}",
                 fine_tune_epochs=self.train.fine_tune_epochs,
                 backbone=self.model.backbone)  # fmt: skip
        is_closed = self.model.head in CLOSED_FORM
        _require(not is_closed or self.evaluation.aggregation == "log_odds",
                 "evaluation.aggregation=log_odds with model.head=linear or joint, which grade a "
                 "patient by the mean of the frames' scores",
                 head=self.model.head, aggregation=self.evaluation.aggregation)  # fmt: skip
        _require(not (is_closed and self.train.views),
                 "train.views=0 with model.head=linear or joint, which are solved on plain frames",
                 head=self.model.head, views=self.train.views)  # fmt: skip
        _require(not (is_closed and self.train.fine_tune_epochs),
                 "train.fine_tune_epochs=0 with model.head=linear or joint, which have no gradient",
                 head=self.model.head, fine_tune_epochs=self.train.fine_tune_epochs)  # fmt: skip
        # Rows and columns of the first map that efficientnet_lite0 pools.
        maps = [-(-side // 16) for side in (self.roi.depth_px, self.roi.num_beams)]
        _require(self.model.pooling == "global" or maps[0] >= 4,
                 "roi.depth_px of 64 or more with model.pooling=depth, which has four bands",
                 depth_px=self.roi.depth_px)  # fmt: skip
        if self.model.head == "joint":  # what deploy/bundle_write.py makes its file of
            _require(self.roi.method == "beamspace" and self.model.pooling == "depth",
                     "roi.method=beamspace, model.backbone=efficientnet_lite0, model.pooling=depth "
                     "with model.head=joint, whose bundle is made of these; model.head=linear "
                     "takes others", method=self.roi.method, backbone=self.model.backbone,
                     pooling=self.model.pooling)  # fmt: skip
            _require(not any(side % 2 for side in maps),
                     "roi.depth_px and roi.num_beams as multiples of 32 with model.head=joint",
                     depth_px=self.roi.depth_px, num_beams=self.roi.num_beams)  # fmt: skip

    @property
    def augmentation(self) -> AugmentConfig:
        """`augment` with what has no meaning for this kind of ROI set to 0.

        Example:
            >>> Config(roi=RoiConfig(method="beamspace")).augmentation.rotation_deg
            0.0
        """
        if self.roi.view:
            return dataclasses.replace(self.augment, rotation_deg=0.0, zoom=0.0)
        return dataclasses.replace(self.augment, depth_scale=0.0)


def override(config: Config, settings: list[str]) -> Config:
    """Apply `stage.name=value` settings.

    Raises:
        ValueError: for a malformed setting, an unknown stage or name, a value of the wrong type or
            range (the text lists the names there are), one of two values, or one that nothing would
            read.
    """
    config = _apply(config, settings)
    for setting in settings:
        why = unused_settings(config).get(setting.partition("=")[0].strip())
        if why:
            raise ValueError(
                f"Expected settings that do something. Received: {setting!r}, which is not read "
                f"with {why}. Leave it out, or change the other."
            )
    return config


def _apply(config: Config, settings: list[str]) -> Config:
    known = flatten(config)
    # Together, not one by one: split.kind=logo and split.column=scanner are valid only as a pair.
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        stage, dot, key = name.strip().partition(".")
        if not equals or not dot or f"{stage}.{key}" not in known:
            raise ValueError(
                f"Expected stage.name=value out of {', '.join(known)}. Received: {setting!r}."
            )
        kind = typing.get_type_hints(type(getattr(config, stage)))[key]
        value = _parse(f"{stage}.{key}", kind, text.strip())
        first = changes.setdefault(stage, {}).setdefault(key, value)
        _require(first is value or first == value, f"one value of {stage}.{key}",
                 first=first, second=value)  # fmt: skip
    parts = {stage: dataclasses.replace(getattr(config, stage), **values)
             for stage, values in changes.items()}  # fmt: skip
    return dataclasses.replace(config, **parts)


def unused_settings(config: Config) -> dict[str, str]:
    """Settings that nothing reads -> the setting that makes it so.

    Example:
        >>> "train.epochs" in unused_settings(Config())
        False
    """
    idle = ["rotation_deg", "zoom"] if config.roi.view else ["depth_scale"]
    unused = {f"augment.{name}": f"roi.method={config.roi.method}" for name in idle}
    if config.model.head == "regression":
        unused["train.class_weights"] = "model.head=regression"
    if config.model.head in CLOSED_FORM:
        names = [name for name in flatten(config) if name.startswith(("train.", "augment."))]
        names = [name for name in names if name not in ("train.seed", "train.views")]
        names += ["model.hidden_units", "model.dropout", "model.normalize_features"]
        unused |= dict.fromkeys(names, f"model.head={config.model.head}")
    if not config.train.views:
        # Online the changes of frames are drawn from train.seed.
        unused |= dict.fromkeys(["train.store_dtype", "augment.seed"], "train.views=0")
    if config.model.weights != "random":
        unused["model.backbone_seed"] = f"model.weights={config.model.weights}"
    if not config.train.fine_tune_epochs:
        unused["train.fine_tune_learning_rate"] = "train.fine_tune_epochs=0"
    # Of "auto" it shows with the manifest what is read.
    for name, kinds in (
        ("folds", ("holdout", "lopo", "logo", "temporal")),
        ("test_fraction", ("kfold", "lopo", "logo")),
        ("split_seed", ("temporal",)),
    ):
        if config.split.kind in kinds:
            unused[f"split.{name}"] = f"split.kind={config.split.kind}"
    if config.roi.method != "liver":
        unused["roi.sector_fallback"] = f"roi.method={config.roi.method}"
    return unused


def flatten(config: Config) -> dict[str, Any]:
    """All values as `{"stage.name": value}`, in a fixed order."""
    return flat(dataclasses.asdict(config))


def run_name(config: Config, repeat: int = 0) -> str:
    """What people call a run of a resolved config: head, backbone and weights, ROI, split.

    Args:
        config: of the run.
        repeat: which round of a repeated k-fold, from 0.

    Example:
        >>> run_name(Config(SplitConfig(kind="kfold"), model=ModelConfig(weights="random")))
        'resnet50 random, liver, 5-fold'
    """
    weights = Path(config.model.weights).stem
    head = "" if config.model.head == "softmax" else f"{config.model.head}, "
    split = config.split.words + (f", round {repeat + 1}" if config.split.repeats > 1 else "")
    return f"{head}{config.model.backbone} {weights}, {config.roi.method}, {split}"


def save_config(config: Config, path: str | Path) -> None:
    """Write `config.json`."""
    write_json(dataclasses.asdict(config), path)


def load_config(path: str | Path) -> Config:
    """Read `config.json`.

    Raises:
        ValueError: if the file is missing, is not JSON or holds an unknown stage or name.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            stages = json.loads(file.read())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Expected the config.json of a run. Received: path={path.name!r} ({reason_of(error)})."
        ) from error
    if not isinstance(stages, dict) or not all(isinstance(part, dict) for part in stages.values()):
        raise ValueError(
            f"Expected the config.json of a run, stages with named values. Received: {path.name!r}."
        )
    settings = [f"{stage}.{key}={_text(value)}" for stage, values in stages.items()
                for key, value in values.items()]  # fmt: skip
    return _apply(Config(), settings)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse(name: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        return text  # its stage knows the choices
    if kind is bool:
        _require(text.lower() in ("true", "false"), f"{name} true or false", **{name: text})
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"Expected {name} as {kind.__name__}. Received: {text!r}.") from error
