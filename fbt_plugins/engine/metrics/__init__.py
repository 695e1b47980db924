"""Metrics of features, for models without a classifier and beside top-1; they register themselves."""

from .knn import KNN
from .measures import Measure, fill_banks, measures, unmeasurable, wants
from .probe import LinearProbe
from .retrieval import Retrieval

__all__ = ["KNN", "LinearProbe", "Measure", "Retrieval", "fill_banks", "measures", "unmeasurable", "wants"]
