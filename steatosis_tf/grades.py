"""The four steatosis grades: their names, order, fat cuts and the tasks derived from them.

The single source of truth. Command line, records, metrics, model files and docs read it; it
imports nothing, so that everything may import it.

Cuts after the histological convention used by the source paper and by Byra et al. 2018
(doi 10.1007/s11548-018-1843-2): Normal < 5 % of hepatocytes with fat, Mild 5 to 33 %,
Moderate over 33 to 66 %, Severe over 66 %.
"""

GRADES = ("Normal", "Mild", "Moderate", "Severe")

#: Fat percents at which the grade changes: Mild from the first, Moderate over the second, Severe
#: over the third.
FAT_CUTS_PERCENT = (5, 33, 66)

#: Name of the probability column of each grade in every score table.
SCORE_COLUMNS = tuple(f"p_{grade.lower()}" for grade in GRADES)

#: Layer of a grading network, and output of its ONNX file, that gives the probabilities.
OUTPUT_LAYER = "probabilities"

#: A task groups the four labels into classes: name -> (class names, class of each label 0..3).
TASKS = {
    "four_grades": (GRADES, (0, 1, 2, 3)),
    "three_grades": (("Normal", "Mild", "Moderate or severe"), (0, 1, 2, 2)),
    "at_least_mild": (("Normal", "Mild or worse"), (0, 1, 1, 1)),
    "at_least_moderate": (("Below moderate", "Moderate or worse"), (0, 0, 1, 1)),
    "severe": (("Below severe", "Severe"), (0, 0, 0, 1)),
}

#: Shown on every surface that shows a grade.
NOTICE = (
    "Decision support for qualified clinicians, for research use. Not a diagnosis; "
    "not a medical device."
)


def grade_from_fat_percent(fat_percent: float) -> str:
    """Grade of a biopsy fat percentage.

    Args:
        fat_percent: proportion of hepatocytes with fat, 0 to 100 percent.

    Raises:
        ValueError: if the value is not a number from 0 to 100.
    """
    if not 0 <= fat_percent <= 100:  # also catches NaN, which compares false
        raise ValueError(
            f"Expected fat_percent from 0 to 100. Received: fat_percent={fat_percent}. "
            "Give percent of hepatocytes, not a fraction; leave the cell empty if unknown."
        )
    mild, moderate, severe = FAT_CUTS_PERCENT
    if fat_percent < mild:
        return "Normal"
    if fat_percent <= moderate:
        return "Mild"
    if fat_percent <= severe:
        return "Moderate"
    return "Severe"


def label_of(grade: str) -> int:
    """The integer 0 to 3 that the loss sees for a grade name.

    Raises:
        ValueError: if the name is not one of `GRADES`.
    """
    if grade not in GRADES:
        raise ValueError(f"Expected a grade out of {', '.join(GRADES)}. Received: grade={grade!r}.")
    return GRADES.index(grade)
