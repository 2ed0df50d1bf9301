"""What published results say about a run: its balance, its repetition, its generalisation.

Each module has one rule, its thresholds with their sources, and says nothing that is not known.
"""

from modelscaling.advice.balance import advise_balance
from modelscaling.advice.generalisation import advise_generalisation
from modelscaling.advice.overfitting import Overfitting, find_overfitting
from modelscaling.advice.repetition import advise_repetition

__all__ = [
    "Overfitting",
    "advise_balance",
    "advise_generalisation",
    "advise_repetition",
    "find_overfitting",
]
