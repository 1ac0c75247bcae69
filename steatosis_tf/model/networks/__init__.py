"""Networks trained from the first layer on: each takes the grey ROI and gives probabilities."""
