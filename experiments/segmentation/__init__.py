"""What makes the weights shipped in `steatosis_tf/roi`: liver network and kidney finder."""
