"""People's decisions about ROIs: the rules, the store, and files of other tools in and out."""

from steatosis_tf.roi.review.rules import Decision, Outcome, RoiCells
from steatosis_tf.roi.review.store import DecisionStore

__all__ = ["Decision", "DecisionStore", "Outcome", "RoiCells"]
