"""How much a network stretches perturbations that were tried, beside the bound of how much it can.

The ratio ``|h(x + d) - h(x)|_2 / |d|_2`` of a signal h never exceeds ``constant + offset / |d|_2`` (`lipschitz`).
Random directions lie far below: of n dimensions, only few are stretched most. An attack comes closer.
"""

from collections.abc import Sequence

import pandas
import torch
from torch import Tensor, fx, nn

from rqlib import attacks
from rqlib.core import layers, runtime
from rqlib.defenses.network_bounds import Bound, Walker, walked

LOGITS = "logits"
"""The name of the whole network in the table."""

COLUMNS = ["name", "perturbation", "size", "largest", "percentile_99", "bound", "used"]


def ratios(
    model: nn.Module, x: Tensor, y: Tensor, *, sizes: Sequence[float] = (0.1, 0.3, 1.0), steps: int = 20, seed: int = 0
) -> pandas.DataFrame:
    """Ratios of random and of adversarial perturbations, of every layer and of the whole network, beside their bounds.

    Args:
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        sizes: l2 lengths of the perturbations, in pixels; clipping to [0, 1] may shorten one. A rounded signal jumps
            for a tiny perturbation, too, so the ratio of a quantized network grows without limit as the size falls.
        steps: of PGD in the l2 ball, on the cross-entropy.
        seed: of the random directions.

    Returns:
        For each size, for ``random`` and ``pgd``, one row per layer and one for the ``logits``: name, perturbation,
        size, largest and percentile_99 (ratios over the images), bound (of the image with the largest ratio), used (the
        largest ratio / bound; above 1 the bound would be wrong). If nothing in the network is rounded, one row more:
        the norms of the Jacobian (`jacobian_norms`), below which no constant can be; perturbation ``jacobian``, size 0.

    Raises:
        ValueError: as `lipschitz`.
    """
    walker, tables = walked(model, tuple(x.shape[1:])), []
    rng = runtime.rng(seed)
    for size in sizes:
        direction, ball = attacks.L2(size).steepest(torch.randn(x.shape, generator=rng).to(x)), attacks.L2(size)
        moved = {
            "random": (x + size * direction).clamp(0, 1),
            "pgd": attacks.pgd(model, x, y, ball=ball, **attacks.pace(ball, steps)),
        }
        for perturbation, images in moved.items():
            tables.append(_between(walker, x, images).assign(perturbation=perturbation, size=size))
    bound = walker.logits
    if bound.offset == 0:
        row = _summary(LOGITS, jacobian_norms(model, x, seed=seed).double().cpu(), bound, torch.ones(len(x)))
        tables.append(pandas.DataFrame([row | {"perturbation": "jacobian", "size": 0.0}]))
    return pandas.concat(tables, ignore_index=True)[COLUMNS]


def jacobian_norms(model: nn.Module, x: Tensor, *, steps: int = 20, seed: int = 0) -> Tensor:
    """The largest singular value of the Jacobian of the logits at each image, from below: (B,).

    Power iteration, by products with the Jacobian and with its transpose. The largest of them is a lower bound of the
    Lipschitz constant of a network that rounds nothing.
    """
    unit = attacks.L2(1.0).steepest
    x = x.detach().clone().requires_grad_()
    v = unit(torch.randn(x.shape, generator=runtime.rng(seed)).to(x))
    with runtime.evaluating(model), torch.enable_grad():
        logits = model(x)
        u = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = torch.autograd.grad(logits, x, u, create_graph=True)  # linear in u: its derivative pushes v forward
    for step in range(steps + 1):
        (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        if step < steps:
            v = unit(torch.autograd.grad(logits, x, pushed, retain_graph=True)[0])
    return pushed.norm(dim=1)


def _between(walker: Walker, x: Tensor, moved: Tensor) -> pandas.DataFrame:
    """Ratios of every layer and of the logits for one perturbation of each image."""
    distances = (moved - x).double().flatten(1).norm(dim=1).cpu()
    apart = distances > 0
    run = _Changes(walker.module)
    with runtime.evaluating(walker.module), torch.no_grad():
        run.run(torch.cat([x, moved]))
    bounds = {node.name: bound for node, bound in walker.bounds.items()}
    rows = [
        _summary(name, (changes / distances)[apart], bounds[node], distances[apart])
        for name, node, changes in run.found
    ]
    return pandas.DataFrame(rows)


def _summary(name: str, measured: Tensor, bound: Bound, distances: Tensor) -> dict:
    """One row, from the ratio and the size of each perturbation."""
    bounds = bound.constant + bound.offset / distances
    return {
        "name": name,
        "largest": measured.max().item(),
        "percentile_99": measured.quantile(0.99).item(),
        "bound": bounds[measured.argmax()].item(),
        "used": (measured / bounds).max().item(),
    }


class _Changes(fx.Interpreter):
    """Runs a graph on images and moved images in one batch, and notes how far each layer's outputs are apart."""

    def __init__(self, network: fx.GraphModule):
        super().__init__(network)
        self.found: list[tuple[str, str, Tensor]] = []

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        if node.op == "call_module" and layers.is_weighted(self.module.get_submodule(node.target)):
            self.found.append((node.target, node.name, _apart(value)))
        if node.op == "output":
            self.found.append((LOGITS, node.name, _apart(value)))
        return value


def _apart(value: Tensor) -> Tensor:
    """The distance between the first and the second half of a batch, (B,) float64."""
    one, other = value.double().flatten(1).chunk(2)
    return (other - one).norm(dim=1).cpu()
