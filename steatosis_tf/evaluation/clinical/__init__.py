"""What scores mean for patients: thresholds, calibration, sets of grades, groups, robustness."""
