"""Research code: not in the wheel, run from the repository, `python -m experiments.NAME`."""
