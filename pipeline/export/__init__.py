"""A run for other programs, which show it."""
