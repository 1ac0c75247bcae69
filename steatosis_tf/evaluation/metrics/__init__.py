"""Score tables, every metric of them, intervals over patients, and runs side by side."""
