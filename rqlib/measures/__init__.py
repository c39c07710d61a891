"""How accurate is a network, how large, how fast?"""

from rqlib.measures.cost import latency, profile, storage, totals, weight_count
from rqlib.measures.evaluate import accuracy, confusion, correct, era, logits, transfer_matrix
from rqlib.measures.significance import holm, paired_tests, student, wilson

__all__ = [
    "accuracy",
    "confusion",
    "correct",
    "era",
    "holm",
    "latency",
    "logits",
    "paired_tests",
    "profile",
    "storage",
    "student",
    "totals",
    "transfer_matrix",
    "wilson",
    "weight_count",
]
