"""How far does wavelet texture with a support vector machine go, two classes and four?

Command:
    python -m experiments.table1.papers.chen2008 --manifest MANIFEST_CSV
Paper: Chen 2008 as Table I of the source paper names it: wavelet features, SVM, two classes. The
article itself was not at hand, so what Table I does not say is ours: Daubechies 4, three levels,
three numbers per subband, Gaussian kernel, sigmoid calibration.
Adapted: one automatic ROI of the whole sector instead of a hand-placed one; penalty and kernel
width chosen by inner folds of whole patients; a second model for four grades.
Expected time: 1.5 minutes of processor time.
Expected result: its row of docs/table1.md.
"""

from experiments.table1.classical import FittedPipeline, fit_svm
from experiments.table1.command_line import main
from experiments.table1.method import FoldData, Method
from experiments.table1.wavelets import wavelet_features


def fit(
    fold_data: FoldData,
    *,
    wavelet: str,
    levels: int,
    penalties: tuple[float, ...],
    widths: tuple[float, ...],
) -> FittedPipeline:
    """Wavelet features, then the machine."""
    parameters = {"wavelet": wavelet, "levels": levels}
    return fit_svm(fold_data, wavelet_features, parameters, penalties=penalties, widths=widths)


METHODS = (
    Method(
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
    raise SystemExit(main(__doc__, METHODS))
