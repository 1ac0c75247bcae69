"""On what a run was computed: versions and hardware, nothing that names a machine or a person."""

import importlib.metadata
import os
import platform
from typing import Any

#: What the program says of the network; tests/test_silence.py holds it to that.
NETWORK = (
    "Nothing is sent anywhere: the telemetry of onnxruntime, MLflow and OpenVINO is switched off. "
    "Fetched when asked for: published data (download), ImageNet weights (model.weights=imagenet)."
)

_PACKAGES = (
    "steatosis_tf",
    "tensorflow",
    "keras",
    "tensorflow-datasets",
    "numpy",
    "pandas",
    "scikit-learn",
    "opencv-python",
    "mlflow",
    "tf2onnx",
    "onnx",
    "onnxruntime",
)


def describe_environment() -> dict[str, Any]:
    """Versions of what a result depends on, and the kind of machine.

    Returns:
        `python`, `packages` {name: version or "not installed"}, `system`, `processor`,
        `num_cores`, `memory_gib`.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": platform.system(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the general name has to do
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, AttributeError, OSError):
        return None  # Windows has no sysconf
