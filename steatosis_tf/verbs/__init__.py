"""The verbs of the command line, in the order of the line.

Each entry is (name, function, function that adds its arguments). The modules import nothing heavy
at the top: the work is imported inside the verb that does it.
"""

from steatosis_tf.verbs import cohort, general, measure, regions, reporting, results, sources, train

VERBS = (
    *general.VERBS,
    *sources.VERBS,
    *cohort.VERBS,
    *regions.VERBS,
    *measure.VERBS,
    *train.VERBS,
    *results.VERBS,
    *reporting.VERBS,
)
