"""Which images? Data sets by name, as uint8 tensors, split into training, validation and test images."""

from rqlib.data.datasets import ImageDataset, Split, batches, load, to_pixels

__all__ = ["ImageDataset", "Split", "batches", "load", "to_pixels"]
