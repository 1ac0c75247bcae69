"""Grading of hepatic steatosis from B-mode ultrasound. Decision support, not a diagnosis."""

import os

__version__ = "0.1.0"

# TensorFlow's messages about graphs and missing GPUs would bury what our commands have to say. What
# goes wrong still arrives, as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
