"""The verbs of the command line, in the order of the pipeline.

Each entry is (name, function, function that adds its arguments). The modules import nothing heavy
at the top: the work is imported inside the verb that does it. A verb's docstring is its help: the
first line says what it does, and `Example:` shows one call.
"""

from steatosis_tf.verbs import cohort, general, regions, reporting, results, sources

VERBS = (
    *general.VERBS,
    *sources.VERBS,
    *cohort.VERBS,
    *regions.VERBS,
    *results.VERBS,
    *reporting.VERBS,
)
