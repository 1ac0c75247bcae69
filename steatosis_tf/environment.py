"""On what a run was computed: versions and hardware, nothing that names a machine or a person."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
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
        `commit` of a copy out of git, else None, `code_sha256`, `python`, `packages` {name:
        version or "not installed"}, `system`, `processor`, `num_cores`, `memory_gib`.
    """
    return {
        "commit": _commit(),
        "code_sha256": code_sha256(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "system": platform.system(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
    }


def package_versions() -> dict[str, str]:
    """Version of each package that a result depends on, or "not installed"."""
    return {name: _version(name) for name in _PACKAGES}


@cache
def code_sha256() -> str:
    """Hash of the package's own code: what it computes may differ where this does."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _commit() -> str | None:
    """Commit of the package, with `-dirty` where files differ from it; None outside of git."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():  # a package inside of another project's folder
        return None
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        told = subprocess.run(
            [*words, "--exclude=*"],
            check=True, capture_output=True, text=True, timeout=10,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # no git, or one that refuses the folder
        return None
    return told.stdout.strip() or None


def _version(package: str) -> str:
    for name in (package, f"{package}-headless"):  # OpenCV has both, see requirements/node.in
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
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
    if sys.platform == "win32":
        return None
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def load_tensorflow() -> None:
    """Import TensorFlow, and keep back what its libraries say before they know their log level."""
    if "tensorflow" in sys.modules:
        return
    print("loading TensorFlow", file=sys.stderr, flush=True)
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except BaseException:  # Ctrl+C too: what was kept back may say why
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    # Its warnings are about retraced graphs; what goes wrong arrives as an exception.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
