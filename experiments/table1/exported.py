"""The files methods are exported to, read back and timed without the code that trained them."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from steatosis_tf.grades import OUTPUT_LAYER

#: What a skops file may name beyond what skops trusts by itself: our features, which are plain
#: arithmetic, and the private classes of scikit-learn's calibration, which only hold numbers.
_TRUSTED = ("experiments.table1.", "sklearn.calibration.")

#: How far an output of the file may lie from the trained method's. Ten times what the run allows
#: its own model: a mask of 12,544 places has more ways to round than four probabilities.
MAX_DIFFERENCE = 1e-3

Grader = Callable[[np.ndarray], np.ndarray]


def load_exported(path: str | Path) -> Grader:
    """Open an exported method.

    Args:
        path: `.onnx` from `roi` to `probabilities`, or `.skops` with an estimator on ROIs.

    Returns:
        function from `(n, 224, 224, 1)` uint8 to `(n, num_classes)` float.

    Raises:
        ValueError: if the file is of another kind, or a skops file names other code.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda rois: np.concatenate(
            [
                session.run([OUTPUT_LAYER], {"roi": rois[i : i + 32]})[0]
                for i in range(0, len(rois), 32)
            ]
        )
    if path.suffix == ".skops":
        import skops.io

        try:
            named = skops.io.get_untrusted_types(file=path)
        except Exception as error:  # whatever its readers raise
            raise ValueError(
                f"Expected a skops file. Received: {path.name}, which cannot be read "
                f"({type(error).__name__}). Copy it again whole."
            ) from error
        foreign = [name for name in named if not name.startswith(_TRUSTED)]
        if foreign:
            raise ValueError(
                f"Expected a skops file of scikit-learn and our features. Received: {path.name} "
                f"with {', '.join(foreign)}. It could run any code: not opened."
            )
        return skops.io.load(path, trusted=named).predict_proba
    raise ValueError(f"Expected a .onnx or .skops file. Received: {path.name}.")


def milliseconds_per_frame(grader: Grader, rois: np.ndarray, num_frames: int = 16) -> float:
    """Median processor time for one frame at a time, ROI to probabilities.

    Processor time, because the clock of a shared machine measures its other users.
    """
    seconds = []
    for roi in rois[:num_frames]:
        start = time.process_time()
        grader(roi[np.newaxis])
        seconds.append(time.process_time() - start)
    return 1000 * float(np.median(seconds))
