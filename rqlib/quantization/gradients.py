"""How much the logits depend on the rounding of each layer's weight, from gradients instead of one run per layer."""

import copy
import warnings
from collections.abc import Iterable

import pandas
import torch
from torch import Tensor, nn

from rqlib import data
from rqlib.core import layers, runtime
from rqlib.quantization import calibration, layer_formats
from rqlib.quantization.formats import Format, parse

BATCH = 100


def gradient_sensitivity(
    model: nn.Module,
    formats: Iterable[Format | str],
    images: Tensor,
    *,
    granularity: str = "tensor",
    ranges: str = "mse",
    seed: int = 0,
) -> pandas.DataFrame:
    """An estimate of `quantization.sweep`'s ``logit_error`` for every layer and format from one backward pass.

    To first order, rounding the weight of one layer changes the logits z of an image by ``J dW``, where J is their
    Jacobian. For random signs v, ``E[(v' J dW)^2] = ||J dW||^2``. One backward pass of ``v' z`` gives the gradient g of
    every layer's output, and ``v' J dW`` is its product with what the layer alone makes of ``dW``. So each layer is
    computed once per format, the network forwards and backwards only once per image. Every image has signs of its own.

    Args:
        formats: of the weights.
        images: uint8 or in [0, 1], (N, C, H, W), without labels; some hundred are enough.
        granularity, ranges: as `quantization.ptq` takes them.
        seed: of the signs.

    Returns:
        One row per layer and format, without layers that are not called (a warning names them): layer, format, params,
        coded_bits, logit_error, the mean over images of ``(v' J dW)^2`` divided by that of ``||z||^2``.
        `quantization.allocate` takes this table.

    Raises:
        ValueError: no images; as `quantization.ptq`.

    Source: M. F. Hutchinson 1990, A stochastic estimator of the trace of the influence matrix.
    """
    if len(images) == 0:
        raise ValueError("expected images, got none; some hundred are enough, they need no labels")
    chosen = [parse(format) for format in formats]
    network = calibration.calibrate(model, images[:2], ranges=ranges, activations=False).network
    probes = {name: _probes(layer, chosen, granularity, ranges) for name, layer in layers.weighted_layers(network)}
    squares = {name: torch.zeros(len(chosen), dtype=torch.float64) for name in probes}
    rng, energy = torch.Generator().manual_seed(seed), 0.0
    with runtime.evaluating(network), runtime.exact():
        for x, _ in data.batches(images, torch.zeros(len(images)), BATCH):
            energy += _collect(network, x.clone(), probes, squares, rng)
    rows, unseen = [], [name for name, found in squares.items() if not found.any()]
    if unseen:
        warnings.warn(f"no estimate, because their weights are used without a call: {', '.join(unseen)}", stacklevel=2)
    for name, layer in layers.weighted_layers(network):
        if name in unseen:
            continue
        params = layer.weight.numel()
        for format, square in zip(chosen, squares[name].tolist(), strict=True):
            error = {"logit_error": square / energy if energy else 0.0}
            rows.append(
                {"layer": name, "format": format.name, "params": params, "coded_bits": params * format.bits} | error
            )
    return pandas.DataFrame(rows)


def rank_correlation(measured: pandas.DataFrame, estimated: pandas.DataFrame) -> pandas.Series:
    """Rank correlations (Spearman) of the estimated ``logit_error`` with what was measured, over layers and formats.

    Args:
        measured: of ``quantization.sweep(..., per_layer=True)``.
        estimated: of `gradient_sensitivity`, with the same layers and formats.

    Returns:
        logit_error and accuracy_loss: the rank correlation with each measured column; NaN for a constant column.
    """
    both = measured.merge(estimated[["layer", "format", "logit_error"]], on=["layer", "format"], suffixes=("", "_now"))
    ranks = both[["logit_error", "accuracy_loss", "logit_error_now"]].corr(method="spearman")
    return ranks.logit_error_now.drop("logit_error_now").rename(None)


@torch.no_grad()
def _probes(layer: nn.Module, formats: list[Format], granularity: str, ranges: str) -> list[nn.Module]:
    """Copies of a layer without bias whose weight is the rounding error in each of the formats."""
    found = []
    for format in formats:
        probe = copy.deepcopy(layer)
        layer_formats.quantize_weight(probe, format, granularity, ranges)
        error = probe.weight - layer.weight
        probe = copy.deepcopy(layer)
        probe.weight, probe.bias = nn.Parameter(error, requires_grad=False), None
        found.append(probe)
    return found


def _collect(network: nn.Module, x: Tensor, probes: dict, squares: dict, rng: torch.Generator) -> float:
    """Add the squares of ``v' J dW`` of a batch to ``squares``; the sum of ``||z||^2`` over the batch."""
    sums: dict[str, Tensor] = {}

    def watch(name: str, inputs: tuple, output: Tensor) -> None:
        seen = inputs[0].detach()

        def project(gradient: Tensor) -> None:
            with torch.no_grad():
                products = [(gradient * probe(seen)).flatten(1).double().sum(1).cpu() for probe in probes[name]]
            sums[name] = sums.get(name, 0) + torch.stack(products)  # formats, images; several calls add up

        if output.requires_grad:
            output.register_hook(project)

    with layers.watching(network, probes, watch), torch.enable_grad():
        logits = network(x.requires_grad_() * 1)
        signs = torch.randint(0, 2, logits.shape, generator=rng).to(logits) * 2 - 1
        (logits * signs).sum().backward()
    for name, products in sums.items():
        squares[name] += products.square().sum(1)
    return logits.detach().double().square().sum().item()
