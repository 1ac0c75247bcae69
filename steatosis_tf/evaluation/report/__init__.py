"""A run directory read, evaluated, checked against itself, and written up."""
