"""What do a vote without looking and a memory without thought score?

Command:
    python -m experiments.table1.papers.floors --manifest MANIFEST_CSV
Majority: every frame gets the commonest class of the training frames. Nearest: the class of the
most similar training frame, as a 40 x 28 px thumbnail of the ROI. A method that does not leave
these two behind has learnt nothing about fat. See `experiments/leak_demo.py` for the second one
on whole frames.
Expected time: 2 minutes of processor time, nearly all of it evaluation.
Expected result: their rows of docs/table1.md.
"""

from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from experiments.table1.classical import FittedPipeline, learnable_rows
from experiments.table1.command_line import main
from experiments.table1.method import FoldData, Method
from experiments.table1.thumbnails import thumbnails

TASKS = ("at_least_mild", "three_grades", "four_grades")


def fit_majority(fold_data: FoldData) -> FittedPipeline:
    """The commonest class of the training part, whatever the frame shows."""
    rows = learnable_rows(fold_data)
    vote = DummyClassifier(strategy="most_frequent")
    vote.fit(fold_data.study.rois[rows], fold_data.classes(rows))
    return FittedPipeline(vote, fold_data.num_classes)


def fit_nearest(fold_data: FoldData) -> FittedPipeline:
    """One nearest neighbour on thumbnails."""
    rows = learnable_rows(fold_data)
    pipeline = make_pipeline(FunctionTransformer(thumbnails), KNeighborsClassifier(1))
    pipeline.fit(fold_data.study.rois[rows], fold_data.classes(rows))
    return FittedPipeline(pipeline, len(rows) * thumbnails(fold_data.study.rois[:1]).size)


METHODS = (
    Method("majority", "Majority vote", 0, "floor", TASKS, fit_majority, repeats=3),
    Method("nearest", "1 nearest neighbour", 0, "floor", TASKS, fit_nearest, repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, METHODS))
