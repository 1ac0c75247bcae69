"""What do a vote without looking and a memory without thought score?

Command:
    python experiments/table1/floors.py --manifest MANIFEST_CSV
Majority: every frame gets the commonest class of the training frames. Nearest: the class of the
most similar training frame, as a 40 x 28 px thumbnail of the ROI. A system that does not leave
these two behind has learnt nothing about fat. See `experiments/leak_demo.py` for the second one
on whole frames.
Expected time: 2 minutes of processor time, nearly all of it evaluation.
Expected result: their rows of docs/table1.md.
"""

from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from steatosis_tf.model.baselines.thumbnails import thumbnails
from steatosis_tf.table1.classical import FittedPipeline, learnable_rows
from steatosis_tf.table1.main import main
from steatosis_tf.table1.system import Lesson, System

TASKS = ("at_least_mild", "three_grades", "four_grades")


def fit_majority(lesson: Lesson) -> FittedPipeline:
    """The commonest class of the training part, whatever the frame shows."""
    rows = learnable_rows(lesson)
    vote = DummyClassifier(strategy="most_frequent")
    vote.fit(lesson.study.rois[rows], lesson.classes(rows))
    return FittedPipeline(vote, lesson.num_classes)


def fit_nearest(lesson: Lesson) -> FittedPipeline:
    """One nearest neighbour on thumbnails."""
    rows = learnable_rows(lesson)
    pipeline = make_pipeline(FunctionTransformer(thumbnails), KNeighborsClassifier(1))
    pipeline.fit(lesson.study.rois[rows], lesson.classes(rows))
    return FittedPipeline(pipeline, len(rows) * thumbnails(lesson.study.rois[:1]).size)


SYSTEMS = (
    System("majority", "Majority vote", 0, "floor", TASKS, fit_majority, repeats=3),
    System("nearest", "1 nearest neighbour", 0, "floor", TASKS, fit_nearest, repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(main(__doc__, SYSTEMS))
