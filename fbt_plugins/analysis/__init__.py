"""Looks at models and what they know; trains nothing."""
