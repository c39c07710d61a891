"""What is added to a training loss so that a network stays smooth: penalties (model) -> scalar, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rqlib.core import layers, runtime
from rqlib.core.vocabulary import did_you_mean
from rqlib.defenses import gram, spectra
from rqlib.defenses.folded import folded_weight, hidden_layers

Penalty = Callable[[nn.Module], Tensor]
"""(model) -> scalar, differentiable in the model's parameters."""

WARM_STEPS = 10
"""Steps of the power iteration before the first penalty of an epoch; later penalties take one step more each."""


class Spectral:
    """The mean over the hidden layers of the squared operator norm, each with its BatchNorm folded in.

    ``sigma = <u, A v>`` with unit vectors u and v that one step of the alternating power iteration moves at every call;
    no gradient passes through them (Yoshida and Miyato 2017, arXiv 1705.10941, but for the convolution as an operator
    on its images). `restart` forgets the vectors, so that a training that goes on from a whole epoch is the same.

    Args:
        model: that will be trained; later calls may have copies of it.
        image_shape: (C, H, W).

    Raises:
        ValueError: a network without hidden convolution or linear layers.
    """

    def __init__(self, model: nn.Module, image_shape: tuple[int, ...], *, seed: int = 0):
        self.layers, self.shapes, self.seed = hidden_layers(model), {}, seed
        self.layers.warn_of_loose("spectral")
        with runtime.evaluating(model), torch.no_grad(), layers.watching(model, self.layers.names, self._note):
            model(torch.zeros(1, *image_shape).to(next(model.parameters())))
        self.restart()

    def restart(self) -> None:
        """Start from random vectors again."""
        self.vectors: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module) -> Tensor:
        found = zip(self.layers.names, self.layers.of(model), strict=True)
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            norms = [self._norm(name, *parts) for name, parts in found if name in self.shapes]
        return torch.stack(norms).square().mean()

    def _note(self, name: str, inputs: tuple, output: Tensor) -> None:
        self.shapes[name] = tuple(inputs[0].shape[1:])

    def _norm(self, name: str, layer: nn.Module, norm: nn.Module | None) -> Tensor:
        weight = folded_weight(layer, norm)
        forward, backward = _operator(layer, weight.detach(), self.shapes[name])
        steps = 1
        if name not in self.vectors:
            shape = (1, *self.shapes[name]) if isinstance(layer, layers.CONVOLUTIONS) else (weight.shape[1],)
            self.vectors[name] = torch.randn(shape, generator=runtime.rng(self.seed)).to(weight)
            steps = WARM_STEPS
        with torch.no_grad():
            for _ in range(steps):
                u, self.vectors[name] = spectra.power_step(forward, backward, self.vectors[name])
        moved, _ = _operator(layer, weight, self.shapes[name])
        return (u * moved(self.vectors[name])).sum()


def _operator(layer: nn.Module, weight: Tensor, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
    """The products with A and with A' for another weight of the layer."""
    if not isinstance(layer, layers.CONVOLUTIONS):
        return lambda v: weight @ v, lambda u: weight.T @ u
    return (
        lambda v: spectra.apply(layer, v, weight),
        lambda u: spectra.transposed(layer, u, shape, weight),
    )


def named(name: str, model: nn.Module, image_shape: tuple[int, ...]) -> Penalty | None:
    """A penalty by name; None for ``none``.

    Args:
        name: ``none``, ``spectral``, a form of `orthogonality`, or two of them joined by a plus sign.

    Raises:
        ValueError: unknown name; a network without hidden convolution or linear layers.
    """
    if name == "none":
        return None
    if unknown := [part for part in name.split("+") if part != "spectral" and part not in gram.FORMS]:
        raise ValueError(did_you_mean("penalty", unknown[0], ["none", "spectral", *gram.FORMS]))
    parts = [_single(part, model, image_shape) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else _Sum(parts)


def _single(name: str, model: nn.Module, image_shape: tuple[int, ...]) -> Penalty:
    return Spectral(model, image_shape) if name == "spectral" else gram.Orthogonality(model, name)


class _Sum:
    """The sum of several penalties."""

    def __init__(self, parts: list[Penalty]):
        self.parts = parts

    def restart(self) -> None:
        for part in self.parts:
            getattr(part, "restart", lambda: None)()

    def __call__(self, model: nn.Module) -> Tensor:
        return torch.stack([part(model) for part in self.parts]).sum()
