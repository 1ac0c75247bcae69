"""Every method of the source paper's Table I on the same patients, folds, ROI and statistics."""
