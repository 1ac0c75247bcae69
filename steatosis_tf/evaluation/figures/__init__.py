"""Figures as PNG files, each with who was measured and the notice on it."""
