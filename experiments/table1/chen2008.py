"""How far does wavelet texture with a support vector machine go, two classes and four?

Command:
    python experiments/table1/chen2008.py --manifest MANIFEST_CSV
Paper: Chen 2008 as Table I of the source paper names it: wavelet features, SVM, two classes. The
article itself was not at hand, so what Table I does not say is ours: Daubechies 4, three levels,
three numbers per subband, Gaussian kernel, sigmoid calibration.
Adapted: one automatic ROI of the whole sector instead of a hand-placed one; penalty and kernel
width chosen by inner folds of whole patients; a second model for four grades.
Expected time: 1.5 minutes of processor time.
Expected result: its row of docs/table1.md.
"""

from steatosis_tf.model.baselines.wavelets import wavelet_features
from steatosis_tf.table1.classical import FittedPipeline, fit_svm
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Lesson, System


def fit(
    lesson: Lesson,
    *,
    wavelet: str,
    levels: int,
    penalties: tuple[float, ...],
    widths: tuple[float, ...],
) -> FittedPipeline:
    """Wavelet features, then the machine."""
    parameters = {"wavelet": wavelet, "levels": levels}
    return fit_svm(lesson, wavelet_features, parameters, penalties=penalties, widths=widths)


SYSTEMS = (
    System(
        name="chen2008",
        title="Chen 2008: wavelets + SVM",
        year=2008,
        paper="Chen 2008, wavelet features and a support vector machine, two classes",
        tasks=("at_least_mild", "four_grades"),
        fit=fit,
        settings={
            "wavelet": "db4",
            "levels": 3,
            "penalties": (0.1, 1.0, 10.0, 100.0),
            "widths": (0.1, 1.0, 10.0),
        },
        repeats=3,
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, SYSTEMS))
