"""Spectral norms and penalties: against the full spectrum, against a budget, and as a share of a training step."""

import time

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import row
from rqlib import defenses, models
from rqlib.core import layers, runtime
from rqlib.core.vocabulary import ImageSpec

BUDGET = 0.005
BATCH, WIDTH = 128, 0.25


def full_spectrum(weight: numpy.ndarray, side: int) -> float:
    """The norm of a circular convolution as conv-sv finds it: all singular values at all frequencies (Sedghi 2019)."""
    transformed = numpy.fft.fft2(weight.transpose(2, 3, 0, 1), [side, side], axes=[0, 1])
    return float(numpy.linalg.svd(transformed, compute_uv=False).max())


def estimate(channels: int, side: int) -> dict:
    """One row: Golub-Kahan with the fewest steps that come within 1%."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", bias=False)
    shape, weight = (channels, side, side), layer.weight.detach().numpy()
    exact = full_spectrum(weight, side)
    steps = next(n for n in range(4, 65) if defenses.operator_norm(layer, shape, steps=n) > 0.99 * exact)
    found = defenses.operator_norm(layer, shape, steps=steps)
    return row(
        f"spectral norm of {channels}x{channels}x3x3 on {side}x{side} to 1%: Golub-Kahan, {steps} steps",
        "full fft2 and batched SVD, as conv-sv does",
        lambda: defenses.operator_norm(layer, shape, steps=steps),
        lambda: full_spectrum(weight, side),
        at_least=5.0 if channels == 64 else 15.0,
        agree=f"{found:.5f} against {exact:.5f}",
    )


def certificate() -> dict:
    """One row: the exact bounds of all layers of SmallCNN, within a budget."""
    network = layers.fold_batchnorm(models.build("SmallCNN", ImageSpec(), seed=0))
    names, shapes = [name for name, _ in layers.weighted_layers(network)], {}
    with torch.no_grad(), layers.watching(network, names, lambda name, x, _: shapes.update({name: x[0].shape[1:]})):
        network(torch.zeros(1, 3, 32, 32))
    parts = [(network.get_submodule(name), tuple(shape)) for name, shape in shapes.items()]
    ours = lambda: [defenses.norm_bound(layer, shape) for layer, shape in parts]  # noqa: E731
    work = f"exact certificate of the {len(parts)} layers of SmallCNN"
    budget = lambda: time.sleep(BUDGET)  # noqa: E731
    return row(work, f"{1e3 * BUDGET:g} ms", ours, budget, at_least=1.0, agree="a budget", repeats=15)


def penalty(name: str) -> dict:
    """One row: a training step with a penalty, against one without; at most 25% more."""
    spec = ImageSpec()
    x, y = torch.rand(BATCH, *spec.shape), torch.arange(BATCH) % 10
    network = runtime.active().place(models.build("ResNet_18", spec, width=WIDTH, seed=0)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    added = defenses.penalty(name, network, spec.shape)
    network.train()

    def step(strength: float) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        (loss + strength * added(network) if strength else loss).backward()
        optimizer.step()

    work = f"training step of ResNet_18, width {WIDTH}, batch {BATCH}, with the penalty {name}"
    step(1e-3)
    return row(work, "without", lambda: step(1e-3), lambda: step(0), at_least=0.8, agree="same network", repeats=9)


def measure() -> list[dict]:
    """Norms, the certificate, and two penalties."""
    with runtime.using("cpu", "float32"):
        return [estimate(64, 32), estimate(256, 8), certificate(), penalty("spectral"), penalty("cosine")]
