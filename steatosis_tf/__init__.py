"""Grading of hepatic steatosis from B-mode ultrasound. Decision support, not a diagnosis."""

import importlib
import os
import sys
import warnings
from typing import Any

__version__ = "1.0.0"
__all__ = ["find_sector", "measure", "predict", "propose_roi", "read_frame", "train"]

# Public name -> where it is, imported when it is asked for: importing the package imports nothing.
_PUBLIC = {
    "find_sector": "steatosis_tf.roi.sector:find_sector",
    "measure": "steatosis_tf.quantitative.measure:measure_frame",
    "predict": "steatosis_tf.deploy.predict:predict",
    "propose_roi": "steatosis_tf.roi.propose:propose_roi",
    "read_frame": "steatosis_tf.sources.images:read_frame",
    "train": "steatosis_tf.pipeline:train",
}

# Nothing is sent anywhere. These libraries report their use to their makers unless told not to, and
# onnxruntime asks once, when it is imported: so it is told here, before any of our modules.
if "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ:
    warnings.warn(
        "onnxruntime was imported before steatosis_tf and reports its use to its makers. "
        "Import steatosis_tf first, or set ORT_DISABLE_TELEMETRY=1 in the environment.",
        stacklevel=2,
    )
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # comes with keras-hub
# OpenVINO has no such variable. Where this package is absent it uses a silent stub of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# TensorFlow's messages about graphs and missing GPUs, and OpenCV's about damaged pictures, would
# bury what our commands have to say. What goes wrong still arrives, as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Progress is told of what takes long, and into a file or a pipe a few times a minute.
os.environ.setdefault("TQDM_DELAY", "2")
os.environ.setdefault("TQDM_MININTERVAL", "0.1" if sys.stderr and sys.stderr.isatty() else "10")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "train":
        from steatosis_tf.environment import load_tensorflow

        load_tensorflow()  # else its libraries speak before they know their log level
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
