"""What is claimed: `metrics`, their meaning for patients (`clinical`), `figures`, the `report`."""
