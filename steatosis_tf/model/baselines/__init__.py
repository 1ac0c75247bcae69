"""Systems the main model is compared with."""
