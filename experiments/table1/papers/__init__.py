"""One file per paper of Table I: its methods, and what is adapted."""
