"""Images out of a trained network alone: build a generator, fit it, adjust it, sample it.

``generator.build(teacher, spec)``, ``generator.fit(generator, teacher)``, ``generator.adjust(generator, teacher,
attack=...)``, ``generator.sample(generator, count)``; each lives in a file of its own.
"""

from torch import nn

from rqlib import data, evaluate, runtime
from rqlib.adjustment import NO_TARGET, Target, adjust, target
from rqlib.generator_network import Generator, build, images, load, sample, save, single, superposed
from rqlib.generator_training import fit

__all__ = [
    "NO_TARGET", "Generator", "Target", "adjust", "boundary", "build", "fit", "images", "load", "sample", "save",
    "single", "superposed", "target",
]  # fmt: skip


def boundary(generator: Generator, teacher: nn.Module, count: int = 12_800, *, seed: int = 0) -> data.Split:
    """Images uint8 of superposed labels, which lie between classes, each labeled as the teacher classifies it.

    Where `sample` asks for images the teacher is sure of, these are such as a small change can move: the loss on
    them is one minus the agreement with the teacher (boundary supporting samples: Qimera, arXiv 2111.02625).
    """
    mixtures = superposed(count, len(generator.embedding), runtime.generator(seed, 1))
    made = images(generator, mixtures, seed=seed)
    labels = runtime.active().place(mixtures.argmax(1))
    with runtime.using(str(runtime.active().device), "float32"):
        seen = evaluate.logits(teacher, made, labels).argmax(1)
    return data.Split(made, seen.to(labels))
