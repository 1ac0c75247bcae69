"""Search among heads on stored features: what the scripts beside this folder share."""
