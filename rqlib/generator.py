"""Images out of a trained network alone: build a generator, fit it, adjust it, sample it.

``generator.build(teacher, spec)``, ``generator.fit(generator, teacher)``, ``generator.adjust(generator, teacher,
attack=...)``, ``generator.sample(generator, count)``; each lives in a file of its own.
"""

from rqlib.adjustment import NO_TARGET, Target, adjust, target
from rqlib.generator_network import Generator, build, images, load, sample, save, single, superposed
from rqlib.generator_training import fit

__all__ = [
    "NO_TARGET", "Generator", "Target", "adjust", "build", "fit", "images", "load", "sample", "save", "single",
    "superposed", "target",
]  # fmt: skip
