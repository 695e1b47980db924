"""A model as stages and a head: how it is cut, proved, weighed and loaded."""
