"""A search for a better splice."""
