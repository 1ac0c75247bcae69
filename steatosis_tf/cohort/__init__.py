"""Who is in the study."""
