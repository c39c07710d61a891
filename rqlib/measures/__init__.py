"""How accurate, how large, how fast?"""

from rqlib.measures.cost import latency, profile, storage
from rqlib.measures.evaluate import accuracy, era, logits

__all__ = ["accuracy", "era", "latency", "logits", "profile", "storage"]
