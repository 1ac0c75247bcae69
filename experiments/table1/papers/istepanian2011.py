"""Does co-occurrence texture beside wavelets help, with a support vector machine or neighbours?

Command:
    python -m experiments.table1.papers.istepanian2011 --manifest MANIFEST_CSV
Paper: Istepanian 2011 as Table I of the source paper names it: GLCM and wavelet features, SVM and
k-NN, two classes. The article itself was not at hand, so what Table I does not say is ours: 32
grey levels, distances of 1 to 8 px, six properties, the wavelets of `chen2008.py`.
Adapted: one automatic ROI of the whole sector instead of a hand-placed one; penalty, kernel width
and number of neighbours chosen by inner folds of whole patients; second models for four grades.
Numbers of neighbours go in tens because a patient's ten frames are nearly one.
Expected time: 4 minutes of processor time for both.
Expected result: their rows of docs/table1.md.
"""

from experiments.table1.classical import FittedPipeline, fit_neighbours, fit_svm
from experiments.table1.command_line import main
from experiments.table1.method import FoldData, Method
from experiments.table1.texture import cooccurrence_and_wavelets

WAVELETS = {"wavelet": "db4", "levels": 3}


def fit_machine(
    fold_data: FoldData,
    *,
    wavelet: str,
    levels: int,
    penalties: tuple[float, ...],
    widths: tuple[float, ...],
) -> FittedPipeline:
    """Texture, then the machine."""
    parameters = {"wavelet": wavelet, "levels": levels}
    return fit_svm(
        fold_data, cooccurrence_and_wavelets, parameters, penalties=penalties, widths=widths
    )


def fit_nearest(
    fold_data: FoldData, *, wavelet: str, levels: int, num_neighbours: tuple[int, ...]
) -> FittedPipeline:
    """Texture, then the neighbours."""
    parameters = {"wavelet": wavelet, "levels": levels}
    return fit_neighbours(
        fold_data, cooccurrence_and_wavelets, parameters, num_neighbours=num_neighbours
    )


METHODS = (
    Method(
        name="istepanian2011_svm",
        title="Istepanian 2011: GLCM + wavelets + SVM",
        year=2011,
        paper="Istepanian 2011, co-occurrence and wavelet features, SVM, two classes",
        tasks=("at_least_mild", "four_grades"),
        fit=fit_machine,
        settings={
            **WAVELETS,
            "penalties": (0.1, 1.0, 10.0, 100.0),
            "widths": (0.1, 1.0, 10.0),
        },
        repeats=3,
    ),
    Method(
        name="istepanian2011_knn",
        title="Istepanian 2011: GLCM + wavelets + k-NN",
        year=2011,
        paper="Istepanian 2011, co-occurrence and wavelet features, k-NN, two classes",
        tasks=("at_least_mild", "four_grades"),
        fit=fit_nearest,
        settings={**WAVELETS, "num_neighbours": (1, 11, 31, 51, 71)},
        repeats=3,
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
