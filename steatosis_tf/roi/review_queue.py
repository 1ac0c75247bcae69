"""Which frame comes next: order, filter, progress. Plain arrays: a million rows are quick."""

import numpy as np

from steatosis_tf.roi.roi_cells import STATES

FILTERS = ("to_review", "no_box", *STATES, "all")
ORDERS = ("file", "worst")

_TO_REVIEW = 0


class ReviewQueue:
    """States and qualities of all rows of a manifest, by row position.

    Args:
        states: `(rows,)` of str: "" or one of `STATES`.
        qualities: `(rows,)` float, 0 to 1, NaN where there is no proposal.
        has_box: `(rows,)` bool.
    """

    def __init__(self, states: np.ndarray, qualities: np.ndarray, has_box: np.ndarray) -> None:
        self._codes = np.zeros(len(states), np.int8)
        for code, state in enumerate(STATES, start=1):
            self._codes[states == state] = code
        self._has_box = has_box.copy()
        # A frame without a proposal needs a person most; boxes that nobody has rated come last. The
        # order must not hang on decisions, or frames would change their number under the reviewer:
        # a person's box or rejection leaves the quality, which is the proposer's, as it was.
        unrated = np.where(has_box & (states != "corrected"), 2.0, -1.0)
        badness = np.where(np.isnan(qualities), unrated, qualities)
        self._sequence = {
            "file": np.arange(len(states)),
            "worst": np.argsort(badness, kind="stable"),
        }
        self._rank = {}
        for order, sequence in self._sequence.items():
            self._rank[order] = np.empty(len(states), np.int64)
            self._rank[order][sequence] = np.arange(len(states))

    def set(self, position: int, state: str, *, has_box: bool) -> None:
        """Note what has become of a row."""
        self._codes[position] = STATES.index(state) + 1 if state else _TO_REVIEW
        self._has_box[position] = has_box

    def counts(self) -> dict[str, int]:
        """Number of rows behind every filter."""
        return {name: int(np.count_nonzero(self._matches(name))) for name in FILTERS}

    def rank(self, position: int, order: str) -> int:
        """Place of a row in an order, from 0."""
        return int(self._rank[order][position])

    def at_rank(self, rank: int, order: str) -> int:
        """Row at a place of an order; a place beyond the end counts as the end."""
        sequence = self._sequence[order]
        return int(sequence[min(max(rank, 0), len(sequence) - 1)])

    def following(
        self, position: int | None, *, step: int, filter_by: str, order: str, count: int
    ) -> list[int]:
        """Rows that match a filter, from the next one on, around the end and back.

        Args:
            position: row to go on from, itself left out; None begins at the first of the order.
            step: 1 forwards, -1 backwards.
            filter_by: one of `FILTERS`.
            order: one of `ORDERS`.
            count: at most so many.
        """
        ranks = np.flatnonzero(self._matches(filter_by)[self._sequence[order]])
        if position is not None:
            here = self.rank(position, order)
            ahead = ranks[np.searchsorted(ranks, here, side="right") :]
            behind = ranks[: np.searchsorted(ranks, here, side="left")]
            if step > 0:
                ranks = np.concatenate([ahead, behind])
            else:
                ranks = np.concatenate([behind[::-1], ahead[::-1]])
        return [int(row) for row in self._sequence[order][ranks[:count]]]

    def _matches(self, filter_by: str) -> np.ndarray:
        if filter_by == "all":
            return np.ones(len(self._codes), bool)
        if filter_by == "no_box":
            return (self._codes == _TO_REVIEW) & ~self._has_box
        if filter_by == "to_review":
            return self._codes == _TO_REVIEW
        return self._codes == STATES.index(filter_by) + 1
