"""Configs: read, merged, cut out of a matrix, fingerprinted."""
