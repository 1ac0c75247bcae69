"""Grading of hepatic steatosis from B-mode ultrasound. Decision support, not a diagnosis."""

import os

__version__ = "0.1.0"

# TensorFlow's start-up banner would bury what our commands have to say; its errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
