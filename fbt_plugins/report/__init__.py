"""Tables and pictures from finished runs. Reads what runs left behind; knows neither engine nor distiller."""

from __future__ import annotations

from .comparison import Comparison, compare
from .intervals import Interval, interval, paired
from .pages import write_report
from .results import TRIALS, Trial, best_of, read_trials, trial_of_run, trials_file

__all__ = [
    "TRIALS",
    "Comparison",
    "Interval",
    "Trial",
    "best_of",
    "compare",
    "interval",
    "paired",
    "read_trials",
    "trial_of_run",
    "trials_file",
    "write_report",
]
