"""Quantitative ultrasound: numbers that a radiologist can read, measured without training."""
