"""Which network? The library's by name, torchvision's, the user's own; their weights and checkpoints."""

from rqlib.models.catalog import MODELS, build
from rqlib.models.checkpoints import load, save

__all__ = ["MODELS", "build", "load", "save"]
