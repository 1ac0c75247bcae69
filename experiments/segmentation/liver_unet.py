"""How well does a small U-Net outline the liver on scanners and images it has not seen?

    python -m experiments.segmentation.liver_unet --data DATA_DIR --out runs/liver_unet

DATA_DIR holds `aul/` and `byra2018/` (see docs/data.md). Every image is ranked by the SHA-256 of
its name; near copies (eight pairs look like one picture saved twice) stay together, at the rank of
the last of them. The first 85 were once a test part and are in no fold. The rest fall into five
folds by rank; each fold is outlined by a network that saw neither it nor these 85 (out-of-fold),
stopped early on a tenth of its own training images. The final network, the one that is shipped,
sees every image, a tenth of them for stopping: the folds' figures stand for it. No image or label
of byra2018 is used in any of it.

Then `liver_unet_scores.py` measures them. Time: 5 to 12 minutes per network on 2
cores. Result: see steatosis_tf/roi/anatomy/liver_unet_card.md. A killed run continues where it
stopped.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import keras
import numpy as np
import onnx
import tensorflow as tf

from experiments.segmentation.augment import OutlinedCrop, training_pair
from experiments.segmentation.training import UnetTraining, train_unet
from experiments.segmentation.unet import WIDTHS, build_unet, with_features
from steatosis_tf import tracking
from steatosis_tf.cohort.near_duplicates import near_pairs, perceptual_hash
from steatosis_tf.files import replacing, write_json
from steatosis_tf.roi.anatomy.liver import network_input
from steatosis_tf.sources.images import read_frame, to_grey


@dataclass(frozen=True)
class Config:
    num_test: int = 85
    num_folds: int = 5
    validation_every: int = 10
    batch_size: int = 8
    widths: tuple[int, ...] = WIDTHS
    dropout: float = 0.2
    kidney_share: float = 0.3
    mass_share: float = 0.0
    cache_width_px: int = 300
    seed: int = 20260101
    training: UnetTraining = field(default_factory=UnetTraining)


CONFIG = Config(kidney_share=0.4, training=UnetTraining(epochs=40))


@dataclass(frozen=True)
class Outlined:
    """One image with its polygons as masks, full size."""

    name: str
    grey: np.ndarray
    sector: np.ndarray
    liver: np.ndarray
    mass: np.ndarray


def read_outlined(aul_dir: Path, name: str) -> Outlined | None:
    """One image and its outlines; None where nobody outlined a liver."""
    polygons = json.loads((aul_dir / "polygons" / f"{name}.json").read_text())
    if not polygons.get("liver"):
        return None
    grey = to_grey(read_frame(aul_dir / "images" / f"{name}.jpg"))
    masks = []
    for part in ("outline", "liver", "mass"):
        mask = np.zeros(grey.shape, np.uint8)
        if polygons.get(part):
            cv2.fillPoly(mask, [np.rint(polygons[part]).astype(np.int32)], 1)
        masks.append(mask)
    return Outlined(name, grey, masks[0], masks[1] * masks[0], masks[2] * masks[0])


def all_outlined(aul_dir: Path, names: list[str]) -> Iterator[Outlined]:
    """Those of the named images that have a liver outline, one at a time."""
    for name in names:
        image = read_outlined(aul_dir, name)
        if image is not None:
            yield image


def ranked_groups(aul_dir: Path) -> list[list[str]]:
    """Image names by the hash of their names, near copies of one picture in one group.

    A group stands where its last name would. So an image that has a copy among the others leaves
    the test part, and what is in the test part was in it before copies were looked for.
    """
    names = [path.stem for path in (aul_dir / "polygons").glob("*.json")]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    hashes = [perceptual_hash(read_frame(aul_dir / "images" / f"{name}.jpg")) for name in names]
    last = np.arange(len(names))
    for one, other, _ in near_pairs(np.stack(hashes), np.arange(len(names))):
        last[(last == last[one]) | (last == last[other])] = max(last[one], last[other])
    return [[names[i] for i in np.flatnonzero(last == rank)] for rank in np.unique(last)]


def parts_of(groups: list[list[str]], fold: int | None, config: Config) -> dict[str, list[str]]:
    """Names to train on, to stop early on and to score; `fold` None is the final network.

    The final network is the one that is shipped. It sees every image, so nothing is left to score
    it on: the figures of the five folds stand for it.
    """
    last = int(np.searchsorted(np.cumsum([len(group) for group in groups]), config.num_test))
    rest = groups[last + 1 :]
    scored = [] if fold is None else rest[fold :: config.num_folds]
    seen = groups if fold is None else [group for group in rest if group not in scored]
    validation = seen[:: config.validation_every]
    train = [group for group in seen if group not in validation]
    parts = {"train": train, "validation": validation, "scored": scored}
    return {part: [name for group in chosen for name in group] for part, chosen in parts.items()}


def name_of(fold: int | None) -> str:
    return "final" if fold is None else f"fold_{fold}"


def cached_crop(image: Outlined, width_px: int) -> OutlinedCrop:
    """The sector with a tenth of margin, about as large as the network will ever need it."""
    left, top, width, height = cv2.boundingRect(image.sector)
    margin = width // 10
    padded = [
        cv2.copyMakeBorder(plane, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
        for plane in (image.grey, image.sector, image.liver, image.mass)
    ]
    box = np.s_[top : top + height + 2 * margin, left : left + width + 2 * margin]
    scale = width_px / width
    size = (round((width + 2 * margin) * scale), round((height + 2 * margin) * scale))
    grey = cv2.resize(padded[0][box], size, interpolation=cv2.INTER_AREA)
    masks = [cv2.resize(p[box], size, interpolation=cv2.INTER_NEAREST) for p in padded[1:]]
    return OutlinedCrop(grey, *masks)


def batches(
    crops: list[OutlinedCrop], epoch: int, config: Config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch of augmented batches; the same numbers whatever the number of threads."""
    order = np.random.default_rng((config.seed, epoch)).permutation(len(crops))
    donors = [crop for crop in crops if crop.mass.any()]
    size = config.batch_size

    def pair(i: int) -> tuple[np.ndarray, np.ndarray]:
        choice = np.random.default_rng((config.seed, epoch, i, 1))
        pasted = donors and choice.random() < config.mass_share
        return training_pair(
            crops[i],
            np.random.default_rng((config.seed, epoch, i)),
            kidney_share=config.kidney_share,
            donor=donors[choice.integers(len(donors))] if pasted else None,
        )

    def batch(start: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = [pair(int(i)) for i in order[start : start + size]]
        return np.stack([crop for crop, _ in pairs]), np.stack([target for _, target in pairs])

    with ThreadPoolExecutor(2) as pool:
        pending = []
        for start in range(0, len(crops) - size + 1, size):
            pending.append(pool.submit(batch, start))
            if len(pending) > 4:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()


def validation_score(model: keras.Model, images: list[Outlined]) -> float:
    """Mean Dice plus 10th percentile, at the network's resolution: both are aimed at."""
    pairs = [network_input(image.grey, image.sector > 0) for image in images]
    logits = np.asarray(model.predict_on_batch(np.stack([crop for crop, _ in pairs])))
    scores = []
    for logit, (_, place), image in zip(logits, pairs, images, strict=True):
        full = cv2.resize(logit[..., 0], None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        found = cv2.resize(full[place.input_box], (place.width, place.height)) >= 0
        inside = found & (image.sector[place.box] > 0)
        scores.append(dice(inside, image.liver[place.box] > 0))
    return float(np.mean(scores) + np.quantile(scores, 0.1)) / 2


def dice(found: np.ndarray, drawn: np.ndarray) -> float:
    return 2.0 * float((found & drawn).sum()) / max(float(found.sum() + drawn.sum()), 1.0)


def plain(config: Config) -> keras.Model:
    return build_unet(config.widths, config.dropout)


def train(
    aul_dir: Path,
    groups: list[list[str]],
    fold: int | None,
    out_dir: Path,
    config: Config,
    build: Callable[[Config], keras.Model],
) -> None:
    """Train one network into `out_dir` unless it is there already."""
    if (out_dir / "liver_unet.onnx").is_file():
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    parts = parts_of(groups, fold, config)
    crops = [
        cached_crop(image, config.cache_width_px) for image in all_outlined(aul_dir, parts["train"])
    ]
    watched = list(all_outlined(aul_dir, parts["validation"]))
    keras.utils.set_random_seed(config.seed + (99 if fold is None else fold))
    model = build(config)
    settings = replace(config.training, steps_per_epoch=len(crops) // config.batch_size)
    history = train_unet(
        model,
        lambda epoch: batches(crops, epoch, config),
        lambda candidate: validation_score(candidate, watched),
        settings,
        out_dir / "checkpoint.npz",
    )
    write_json(history, out_dir / "history.json")
    with replacing(out_dir / "liver_unet.keras") as temporary:
        model.save(temporary)
    export(model, out_dir / "liver_unet.onnx")
    log(out_dir, history, config)


def log(out_dir: Path, history: list[dict[str, float]], config: Config) -> None:
    params = {**asdict(config), **asdict(config.training)}
    params.pop("training")
    with tracking.start_run("liver_unet", out_dir.name, params):
        for row in history:
            tracking.log_metrics(
                {name: value for name, value in row.items() if name != "epoch"},
                step=int(row["epoch"]),
            )
        for name in ("history.json", "liver_unet.keras", "liver_unet.onnx"):
            tracking.log_artifacts(out_dir / name)


def export(model: keras.Model, path: Path) -> None:
    """The network as ONNX: input `crop`, outputs as `with_features` names them."""
    import tf2onnx  # slow to import, and only needed once

    signature = (tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="crop"),)
    full = with_features(model)

    @tf.function(input_signature=signature)
    def forward(crop: tf.Tensor) -> dict[str, tf.Tensor]:
        return full(crop, training=False)

    network, _ = tf2onnx.convert.from_function(forward, input_signature=signature, opset=17)
    halve_weights(network)
    with replacing(path) as unfinished:
        onnx.save(network, unfinished)


def halve_weights(network: onnx.ModelProto) -> None:
    """Store the weights in half precision, in place; the network still reckons in single.

    The file is half as large. onnxruntime widens the weights once, when it opens the file.
    """
    halves, casts = [], []
    for tensor in network.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half")
            casts.append(
                onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT)
            )
            tensor = half
        halves.append(tensor)
    nodes = [*casts, *network.graph.node]
    for repeated, entries in ((network.graph.initializer, halves), (network.graph.node, nodes)):
        del repeated[:]
        repeated.extend(entries)


def argument_parser(doc: str, config: Config) -> argparse.ArgumentParser:
    """What every recipe of a liver network asks for."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds aul/")
    parser.add_argument("--out", type=Path, required=True, help="folder for networks and scores")
    parser.add_argument("--only", help="one network: a fold number, or final")
    parser.add_argument("--epochs", type=int, default=config.training.epochs)
    return parser


def train_all(
    arguments: argparse.Namespace, config: Config, build: Callable[[Config], keras.Model] = plain
) -> None:
    """Train the networks asked for that are not there yet: every fold, then the final one."""
    cv2.setNumThreads(1)
    aul_dir = arguments.data / "aul"
    groups = ranked_groups(aul_dir)
    folds: list[int | None] = [*range(config.num_folds), None]
    if arguments.only:
        folds = [None if arguments.only == "final" else int(arguments.only)]
    config = replace(config, training=replace(config.training, epochs=arguments.epochs))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(asdict(config), arguments.out / "config.json")
    for fold in folds:
        train(aul_dir, groups, fold, arguments.out / name_of(fold), config, build)


def main() -> None:
    train_all(argument_parser(__doc__, CONFIG).parse_args(), CONFIG)


if __name__ == "__main__":
    main()
