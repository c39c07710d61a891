"""How accurate is a network, how large, how fast?"""

from rqlib.measures.cost import latency, profile, storage, totals, weight_count
from rqlib.measures.evaluate import accuracy, confusion, correct, era, logits, transfer_matrix

__all__ = [
    "accuracy",
    "confusion",
    "correct",
    "era",
    "latency",
    "logits",
    "profile",
    "storage",
    "totals",
    "transfer_matrix",
    "weight_count",
]
