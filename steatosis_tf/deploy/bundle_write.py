"""Writing bundles: a network with the rule joined to it, card, reference frames, hashes; of a run.

What was evaluated is what the bundle of a run gives. The linear rule is joined to the converted
backbone as a handful of ONNX operators whose weights are those of the rule: that takes no
TensorFlow.
"""

import importlib.metadata
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import onnx
import pandas as pd
from onnx import helper, numpy_helper

from steatosis_tf import __version__
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.cohort.near_duplicates import training_hashes
from steatosis_tf.config import BACKBONES, Config, RoiConfig
from steatosis_tf.deploy.bundle import (
    ABOUT_NAME,
    ANSWERS_NAME,
    FILES,
    NETWORK_NAME,
    OUTPUTS,
    SCHEMA,
    VECTORS_NAME,
    Bundle,
    check_bundle_folder,
    find_faults,
    is_bundle,
    open_bundle,
    open_rule_network,
    reference_answers,
)
from steatosis_tf.deploy.frames import look_at
from steatosis_tf.deploy.onnx_file import BATCH, WEIGHTS_KEY, weights_sha256
from steatosis_tf.files import (
    SUMS_NAME,
    file_sha256,
    replacing,
    write_bytes,
    write_json,
    write_sums,
)
from steatosis_tf.grades import GRADES, NOTICE
from steatosis_tf.model.joint import NETWORK, JointModel
from steatosis_tf.model.rules import NUM_BANDS, band_rows, pool_maps
from steatosis_tf.roi.views import input_shape
from steatosis_tf.sources.phantom.study import simulate_patient
from steatosis_tf.unfinished import refuse_unfinished

#: How far a network score of the bundle may lie from Keras', square root of fat percent (or
#: grades): the weights are kept in 16 bits.
MAX_DIFFERENCE = 0.05

# What `write_bundle` is told of a bundle that stands in its `bundle.json`.
_SEALED_AGAIN = (
    "name", "version", "training", "card", "licences", "versions", "recalibration",
)  # fmt: skip
_PACKAGES = ("tensorflow", "keras", "onnx", "onnxruntime", "scikit-learn", "opencv-python")


def write_bundle(
    folder: str | Path,
    taps: onnx.ModelProto,
    joint: JointModel,
    roi: RoiConfig,
    *,
    name: str,
    version: str,
    training: dict[str, Any],
    card: dict[str, Any],
    licences: dict[str, str],
    versions: dict[str, str],
    recalibration: dict[str, Any] | None = None,
) -> Path:
    """Write a bundle as a folder, and as a zip beside it; grade its own reference frames by it.

    Args:
        folder: to create; an earlier bundle there is replaced.
        taps: of `export.convert_taps`.
        joint: fitted grading rule.
        roi: `method` beamspace.
        name: short, lower case.
        version: a whole number as text.
        training: `num_patients`, `num_frames`, `by_grade`, `by_scanner`, and hashes.
        card: texts of the model card, see `templates/card.md.j2`.
        licences: what -> licence and attribution, of code, weights and data.
        versions: package -> version it was made with.
        recalibration: of `recalibrate.recalibrate`, where local patients changed the rule.

    Returns:
        the zip.

    Raises:
        ValueError: if the rule does not fit the network.
        RuntimeError: if the written bundle does not give what was stored.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"name": name, "version": version, "roi": json.dumps(asdict(roi))}
    network = join_rule(taps, joint, texts).SerializeToString()
    depth, beams = input_shape(roi.view)
    about = {
        "schema": SCHEMA, "name": name, "version": version, "notice": NOTICE,
        "input": {"name": "roi", "type": "uint8", "shape": ["batch", depth, beams, 1],
                  "range": [0, 255], "outside_the_sector": 0},
        "outputs": {"features": "what the grading rule takes of a frame",
                    "score": "the network part's square root of fat percent",
                    "probabilities": "that score read as grades, without measured features",
                    "map": "what each place adds; with the intercept it sums to the score"},
        "roi": asdict(roi), "grading": json.loads(joint.to_json()), "training": training,
        "card": card, "licences": licences, "versions": {"steatosis_tf": __version__, **versions},
    }  # fmt: skip
    if recalibration:
        about["recalibration"] = recalibration
    return _seal(folder, about, network, joint, roi)


def _seal(
    folder: Path, about: dict[str, Any], network: bytes, joint: JointModel, roi: RoiConfig
) -> Path:
    """Write all files, the hashes last, and grade the reference frames by what was written."""
    write_bytes(network, folder / NETWORK_NAME)
    for template in ("card.md", "instructions.md"):
        write_bytes(_filled(f"{template}.j2", about).encode(), folder / template)
    session = open_rule_network(network, roi, joint, folder.name)
    draft = Bundle(about, joint, roi, "", session, {})
    _write_reference(folder, draft)
    others = [one for one in FILES if one != ABOUT_NAME]
    about["files"] = {one: file_sha256(folder / one) for one in others}
    write_json(about, folder / ABOUT_NAME, indent=None)
    write_sums(folder)
    faults = find_faults(open_bundle(folder))
    if faults:
        raise RuntimeError(f"Expected the bundle to give its own answers. Received: {faults}.")
    return _write_zip(folder)


def write_run_bundle(
    run_dir: Path, joint: JointModel, config: Config, rois: np.ndarray, cache_dir: Path
) -> float:
    """Write `bundle/` and `bundle.zip` into a run directory.

    Args:
        run_dir: evaluated, with `manifest.csv`, `split.csv` and `metrics.json`.
        joint: the rule that was evaluated, or for a cross-validated run the one fitted to all.
        config: of the run.
        rois: `(num_frames, depth, beams, 1)` uint8, on which Keras and ONNX are compared.
        cache_dir: keeps the converted backbone.

    Returns:
        largest difference of a network score between the bundle and Keras.

    Raises:
        RuntimeError: if they differ by more than `MAX_DIFFERENCE`.
    """
    from steatosis_tf.deploy.export import convert_taps  # brings TensorFlow
    from steatosis_tf.model.backbone import build_taps

    taps = build_taps(config.model, rois.shape[1:3])
    folder = run_dir / "bundle"
    write_bundle(
        folder,
        convert_taps(taps, cache_dir),
        joint,
        config.roi,
        name=run_dir.parent.name.lower(),
        version="1",
        training=describe_training(run_dir),
        card=_card(run_dir, config),
        licences={"code": "Apache-2.0", "weights and data": "not stated: see who trained it"},
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    )
    # A few frames at a time: the maps of all layers of 64 frames take 12 GB.
    near, far = taps.predict(rois, batch_size=BATCH, verbose=0)
    difference = _difference(joint, pool_maps(near, far), open_bundle(folder), rois)
    if difference > MAX_DIFFERENCE:
        raise RuntimeError(
            f"Expected the bundle within {MAX_DIFFERENCE} of Keras on {len(rois)} frames. "
            f"Received: a difference of {difference:.3g}. It must not be used."
        )
    return difference


def export_bundle(run_dir: str | Path, folder: str | Path, *, leak_hashes: bool = False) -> Bundle:
    """Write the bundle of a run somewhere else, as a folder and as a zip beside it.

    Args:
        run_dir: of a run that has come to its end.
        folder: to create; an earlier bundle there is replaced, anything else is left alone.
        leak_hashes: also keep hashes of the run's frames, by which `validate` finds them.

    Returns:
        the bundle, byte for byte that of the run; with hashes, other in `bundle.json` alone.

    Raises:
        ValueError: if the run has no bundle or a damaged one, or something else is in the way.
    """
    run_dir, folder = Path(run_dir), Path(folder)
    refuse_unfinished(run_dir)
    source = run_dir / "bundle"
    if not any((run_dir / name).exists() for name in ("config.json", "model.keras", "bundle")):
        raise ValueError(
            f"Expected a run, runs/RECIPE/RUN_ID. Received: {run_dir.name!r}, which is none."
        )
    if not is_bundle(source):
        raise ValueError(
            f"Expected a run with a bundle, as recipe joint trains it. Received: {run_dir.name!r} "
            "without one: its model grades frames alone. Write it as one file: --output FILE.onnx."
        )
    check_bundle_folder(folder, source)
    bundle = open_bundle(source)
    if leak_hashes:
        # Of validation and test frames too: a study that chose anything is no stranger to it.
        path = run_dir / "manifest.csv"
        hashes = {"leak_hashes": training_hashes(read_manifest(path), path)}
        return seal_again(bundle, folder, training=bundle.about["training"] | hashes)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in bundle.files.items():
        write_bytes(content, folder / name)
    _write_zip(folder)
    return bundle


def seal_again(bundle: Bundle, folder: str | Path, **changed: Any) -> Bundle:
    """Write an opened bundle again with something changed.

    Args:
        bundle: that stays as it is.
        folder: of the new one; a zip is written beside it.
        changed: what is not as in the bundle: `joint`, or a text or table of `write_bundle`.
    """
    about = bundle.about
    content: dict[str, Any] = {"joint": bundle.joint, "roi": bundle.roi}
    content |= {name: about.get(name) for name in _SEALED_AGAIN}
    write_bundle(folder, taps_of(bundle.files[NETWORK_NAME]), **content | changed)
    return open_bundle(folder)


def _write_reference(folder: Path, bundle: Bundle) -> None:
    """Frames of two simulated patients, and what the bundle makes of them."""
    pairs = [
        simulate_patient(fat, num_frames=2, generator=np.random.default_rng(int(fat)))[0]
        for fat in (2.0, 80.0)
    ]
    frames = np.concatenate(pairs)
    patients = np.repeat([0, 1], [len(pair) for pair in pairs])
    pictures = [
        picture
        for frame in frames
        if (picture := look_at("", frame, bundle.roi.view).picture) is not None
    ]
    shape = input_shape(bundle.roi.view)
    # Phantoms without a liver for the network still say what the network makes of a picture.
    noise = np.random.default_rng(0).integers(1, 200, (2, *shape), np.uint8)
    shown = np.stack(pictures) if pictures else noise
    with replacing(folder / VECTORS_NAME) as temporary:
        vectors: dict[str, Any] = bundle.run(shown)
        np.savez_compressed(temporary, frames=frames, patients=patients, pictures=shown, **vectors)
    answers = reference_answers(bundle, frames, patients)
    write_json(answers, folder / ANSWERS_NAME)


def _filled(template: str, about: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(about=about, notice=NOTICE)


def _write_zip(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.zip")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in (*FILES, SUMS_NAME):
            # One date for all: the same bundle is the same zip.
            member = zipfile.ZipInfo(f"{folder.name}/{name}", (2000, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, (folder / name).read_bytes())
    return path


def _difference(joint: JointModel, features: np.ndarray, bundle: Bundle, rois: np.ndarray) -> float:
    (rule,) = (part.rule for part in joint.parts if part.name == NETWORK)
    found = bundle.run(rois[..., 0])["score"]
    return float(np.abs(rule.sqrt_fat(features) - found).max())


def describe_training(run_dir: Path) -> dict[str, Any]:
    """Whom the rule of a run learned from, as a bundle has it under `training`.

    That is the training part of a hold-out run; of a cross-validated one all parts of the first
    fold, as `training.train_and_score` fits the rule that is kept.

    Args:
        run_dir: evaluated, with `manifest.csv`, `split.csv` and `metrics.json`.
    """
    frames = read_manifest(run_dir / "manifest.csv")
    split = pd.read_csv(run_dir / "split.csv", dtype=str)
    parts = ["train"] if split["fold"].nunique() == 1 else ["train", "validation", "test"]
    learned = split.loc[(split["fold"] == "0") & split["split"].isin(parts), "patient_id"]
    is_used = (frames["grade"] != "") & frames["roi_height"].notna()
    frames = frames.loc[is_used & frames["patient_id"].isin(learned)]
    patients = frames.drop_duplicates("patient_id")
    unknown = pd.Series("not stated", patients.index)
    scanner = patients.get("scanner", unknown).replace("", None).fillna("not stated")
    repeated = json.loads((run_dir / "metrics.json").read_text()).get("repeatability")
    return {
        **({"repeatability": repeated} if repeated else {}),
        "num_patients": len(patients),
        "num_frames": len(frames),
        "by_grade": {grade: int((patients["grade"] == grade).sum()) for grade in GRADES},
        "by_scanner": scanner.value_counts().to_dict(),
        "manifest_sha256": file_sha256(run_dir / "manifest.csv"),
        "split_sha256": file_sha256(run_dir / "split.csv"),
    }


def _card(run_dir: Path, config: Config) -> dict[str, Any]:
    metrics = json.loads((run_dir / "metrics.json").read_text())["patient"]
    ordinal = metrics["ordinal"]
    told = {
        "AUC of Mild or worse": ordinal["auc_at_least_mild"],
        "quadratic kappa": ordinal["quadratic_kappa"],
        "accuracy": metrics["accuracy"],
    }
    figures = ", ".join(f"{name} {value:.3f}" for name, value in told.items() if value is not None)
    return {
        "summary": f"Trained by `steatosis train` ({run_dir.parent.name}): "
        f"{BACKBONES[config.model.backbone].title} with weights `{config.model.weights}`, and "
        "measured features, joined in closed form.",
        "reference_standard": "the grades or fat percent of the manifest",
        "performance": f"{config.split.kind}, {metrics['n']} patients tested: {figures}. The "
        "report of the run has intervals.",
        "provider": "whoever trained it",
        "intended_view": "as in the training data",
        "groups": "see subgroups in the report of the run",
        "datasets": ["the manifest of the run"],
        "limits": [
            "It was tested on patients of its own study only.",
            "On other scanners ranks may hold and thresholds not: `steatosis recalibrate`.",
        ],
    }


def join_rule(taps: onnx.ModelProto, model: JointModel, texts: dict[str, str]) -> onnx.ModelProto:
    """The network file: taps with what a joint model makes of them.

    Outputs, float32, which `bundle.json` tells of: `features` `(batch, width)`, `score` `(batch,)`,
    `probabilities` `(batch, 4)`, `map` `(batch, rows, columns)`.

    Args:
        taps: of `export.convert_taps`; it is left as it is.
        model: whose network part reads the features of `rules.pool_maps`.
        texts: metadata; `name` and `version` fill the standard fields too.

    Raises:
        ValueError: if the model has no such part.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(taps)
    near, far = (_shape_of(value) for value in proto.graph.output)
    rules = [part.rule for part in model.parts if part.name == NETWORK]
    if not rules or len(rules[0].weights) != NUM_BANDS * near[2] + far[2]:
        raise ValueError(
            "Expected a model whose network part reads both taps. Received: parts="
            f"{[part.name for part in model.parts]} near={near} far={far}."
        )
    graph = _Graph(proto.graph)
    rule = rules[0]
    slope = rule.weights / rule.scale
    features = graph.add("Concat", *_pooled(graph, near[0]), axis=1, out="features")
    score = graph.add("MatMul", features, graph.constant(slope))
    offset = rule.intercept - float(slope @ rule.centre)
    graph.add("Add", score, graph.constant(offset), out="score")
    _add_probabilities(graph, model)
    _add_map(graph, slope, rule.centre, near, far)
    del proto.graph.output[:]
    sizes = {"features": [len(slope)], "score": [], "probabilities": [4], "map": list(near[:2])}
    for name in OUTPUTS:
        shape: list[str | int | None] = ["batch", *sizes[name]]
        proto.graph.output.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        )
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    _fill_in(proto, texts)
    onnx.checker.check_model(proto)
    return proto


def taps_of(network: bytes) -> onnx.ModelProto:
    """The taps inside a network file of `join_rule`, to which another rule can be joined."""
    proto = onnx.load_from_string(network)
    graph = proto.graph
    values = {
        value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.value_info
    }
    for kept in (graph.node, graph.initializer):
        for one in [one for one in kept if one.name.startswith("rule_") or one.name in OUTPUTS]:
            kept.remove(one)
    del graph.output[:]
    graph.output.extend(values[name] for name in ("near", "far"))
    return proto


class _Graph:
    """Adds operators to a graph and names what they give."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or self._name(kind.lower())
        self._graph.node.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = self._name("value")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"rule_{kind}_{self._count}"


def _pooled(graph: _Graph, num_rows: int) -> list[str]:
    """Means of the first tap by bands of depth, then of the second over all places."""
    bands = [
        graph.add("Slice", "near", *(graph.constant([value], np.int64) for value in (*edges, 1)))
        for edges in band_rows(num_rows)
    ]
    return [graph.add("ReduceMean", part, axes=[1, 2], keepdims=0) for part in (*bands, "far")]


def _add_probabilities(graph: _Graph, model: JointModel) -> None:
    link = model.link
    column = graph.add("Unsqueeze", "score", graph.constant([1], np.int64))
    steep = graph.add("Mul", column, graph.constant([-link.slope]))
    at_most = graph.add("Sigmoid", graph.add("Add", steep, graph.constant(link.cuts)))
    steps = graph.constant([[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1]])
    shares = graph.add("MatMul", at_most, steps)
    graph.add("Add", shares, graph.constant([0, 0, 0, 1]), out="probabilities")


def _add_map(
    graph: _Graph, slope: np.ndarray, centre: np.ndarray, near: list[int], far: list[int]
) -> None:
    """What each place adds to the score, 0 for the mean training patient's place."""
    rows, columns, channels = near
    kernel, shift = np.empty((rows, 1, channels)), np.empty((rows, 1))
    for band, (first, end) in enumerate(band_rows(rows)):
        of = slice(band * channels, (band + 1) * channels)
        kernel[first:end] = slope[of] / ((end - first) * columns)
        shift[first:end] = slope[of] @ centre[of] / ((end - first) * columns)
    weighted = graph.add("Mul", "near", graph.constant(kernel))
    fine = graph.add("ReduceSum", weighted, graph.constant([3], np.int64), keepdims=0)
    fine = graph.add("Sub", fine, graph.constant(shift))
    deep = slice(NUM_BANDS * channels, None)
    places = 4 * far[0] * far[1]
    coarse = graph.add("MatMul", "far", graph.constant(slope[deep] / places))
    coarse = graph.add("Sub", coarse, graph.constant(slope[deep] @ centre[deep] / places))
    # Each place of the second tap is two by two of the first.
    apart = graph.add("Unsqueeze", coarse, graph.constant([2, 4], np.int64))
    twice = graph.add("Tile", apart, graph.constant([1, 1, 2, 1, 2], np.int64))
    coarse = graph.add("Reshape", twice, graph.constant([-1, rows, columns], np.int64))
    graph.add("Add", fine, coarse, out="map")


def _shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


def _fill_in(proto: onnx.ModelProto, texts: dict[str, str]) -> None:
    proto.producer_name, proto.producer_version = "steatosis_tf", __version__
    proto.domain = "steatosis_tf"
    proto.model_version = int(texts["version"])
    proto.doc_string = f"{texts['name']}, version {texts['version']}. {NOTICE}"
    proto.graph.name = texts["name"]
    found = {f"steatosis.{name}": text for name, text in (texts | {"notice": NOTICE}).items()}
    found[WEIGHTS_KEY] = weights_sha256(proto.graph)
    helper.set_model_props(proto, found)
