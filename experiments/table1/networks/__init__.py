"""Networks of Table I that are trained from the pixels on."""
