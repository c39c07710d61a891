"""Bounds of a network while it is trained: its steps share its weights, and gradients reach them.

BatchNorm in train mode normalizes boxes by the statistics of the clean images, never by those of the boxes' ends, and
gradients go through these statistics, too.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rqlib.certification import programs
from rqlib.certification.programs import Step
from rqlib.core import derived, layers, runtime
from rqlib.defenses.noise import is_randomized

_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[list[nn.Module], "Live"]] = weakref.WeakKeyDictionary()


def of(model: nn.Module, images: Tensor) -> "Live":
    """The steps of a network (`Live`), written down once for as long as it consists of the same modules."""
    _, *parts = model.modules()
    known = _KNOWN.get(model)
    if known is None or len(known[0]) != len(parts) or any(a is not b for a, b in zip(known[0], parts, strict=True)):
        known = _KNOWN[model] = parts, Live(model, images)
    return known[1]


class Live:
    """The steps of a network as it is now.

    Args:
        model: as `ibp` takes it.
        images: float (B, C, H, W) in [0, 1], on the device of the network.

    Raises:
        ValueError: as `ibp`.
    """

    def __init__(self, model: nn.Module, images: Tensor):
        if is_randomized(model):
            raise ValueError(
                "the network draws random numbers, which no bound holds for; train it by gaussian or consistency"
            )
        self.statistics: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        with runtime.evaluating(model), torch.no_grad():
            steps = programs.read(derived.traced(model, images[:2].detach()), images[:1].detach())
        self.steps = [self._with_clean_statistics(step) for step in steps]

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """The logits of clean images; the statistics of their batch are those of the bounds that follow."""
        with self._recording(model):
            return model(x).float()

    def _with_clean_statistics(self, step: Step) -> Step:
        if not (step.kind == programs.SCALE and layers.is_batchnorm(step.module)):
            return step

        def apply(x: Tensor) -> Tensor:
            norm, shape = step.module, (1, -1, *[1] * (x.dim() - 2))
            mean, variance = norm.running_mean, norm.running_var
            if norm.training:
                mean, variance = self.statistics[norm]
            slope = torch.rsqrt(variance + norm.eps)
            slope = slope if norm.weight is None else slope * norm.weight
            constant = -mean * slope if norm.bias is None else norm.bias - mean * slope
            return x * slope.view(shape) + constant.view(shape)

        return dataclasses.replace(step, apply=apply)

    @contextlib.contextmanager
    def _recording(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, every BatchNorm in train mode notes mean and variance of what it normalizes."""

        def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if norm.training:
                axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
                variance, mean = torch.var_mean(inputs[0].float(), axes, correction=0)
                self.statistics[norm] = mean, variance

        handles = [norm.register_forward_pre_hook(note) for _, norm in layers.batchnorms(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
