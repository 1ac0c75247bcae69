"""Grading of hepatic steatosis from B-mode ultrasound. Decision support, not a diagnosis."""

__version__ = "0.1.0"
