"""Matrices: pairs of models x methods x seeds, each run once."""
