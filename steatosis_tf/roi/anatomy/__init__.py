"""What is found inside the sector: liver, kidney, drawn marks, plain parenchyma."""
