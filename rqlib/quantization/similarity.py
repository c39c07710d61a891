"""How far a quantized network's weights are from the float ones: layer by layer, and as one figure a network."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec, did_you_mean

MOST_BINS = 256
NORMALIZED = "_normalized"


def compare(model: nn.Module, quantized: nn.Module, *, spec: ImageSpec, measure: str = "js") -> pandas.DataFrame:
    """One row a convolution or linear layer: its share of the network, and how far its weights have moved.

    Columns: layer, params, macs, params_share, macs_share (fractions of the sums over these layers), and the
    measure by its name:

    js: Jensen-Shannon divergence, in nats, of the histograms of values of each output channel, averaged
    over the channels; in [0, ln 2]. The bin width is the float tensor's, Freedman-Diaconis for the number of
    values a channel, at most 256 bins.
    js_legacy: the seed's; the values themselves through a softmax (over axis 1 of a weight, over a bias),
    their JS divergence summed over rows. To second order it is (rows / 8) Var(dW): a mean-square error,
    and 0 for depthwise layers.
    relative_error: ``||dW||^2 / ||W||^2``, one over the signal-to-quantization-noise ratio.

    Args:
        model: the float network; BatchNorm is folded here, as the quantized copy has it.
        quantized: its copy by `quantization.ptq`, quantized further or baked.

    Raises:
        ValueError: unknown measure, or layers that do not correspond.
    """
    return Reference(model, spec).compare(quantized, measure)


class Reference:
    """The float network's side of `compare`, worked out once for many quantized copies."""

    def __init__(self, model: nn.Module, spec: ImageSpec):
        folded = _folded(model)
        self.layers = dict(layers.weighted_layers(folded))
        self._prepared: dict[tuple[str, str], object] = {}
        shares = measures.profile(folded, spec).set_index("layer").loc[list(self.layers), ["params", "macs"]]
        for column in ("params", "macs"):
            shares[f"{column}_share"] = shares[column] / max(shares[column].sum(), 1)
        self.shares = shares.reset_index()

    @torch.no_grad()
    def compare(self, quantized: nn.Module, measure: str = "js") -> pandas.DataFrame:
        """As the function `compare`."""
        if measure not in MEASURES:
            raise ValueError(did_you_mean("measure", measure, MEASURES))
        others = dict(layers.weighted_layers(quantized))
        if missing := [name for name in self.layers if name not in others]:
            raise ValueError(f"expected a copy of the network, got one without its layers {', '.join(missing)}")
        values = [self._distance(name, others[name], measure) for name in self.layers]
        return self.shares.assign(**{measure: values})

    def _distance(self, name: str, other: nn.Module, measure: str) -> float:
        layer = self.layers[name]
        if layer.weight.shape != other.weight.shape:
            raise ValueError(
                f"layer {name}: expected weights of shape {tuple(layer.weight.shape)}, got {tuple(other.weight.shape)}"
            )
        prepare, distance = MEASURES[measure]
        if (name, measure) not in self._prepared:
            self._prepared[name, measure] = prepare(layer)
        return float(distance(self._prepared[name, measure], layer, other))


def figures(frame: pandas.DataFrame, *, percent: bool = False) -> dict[str, float]:
    """A network's figures of one measure, from the rows of `compare`.

    ``{measure}_params`` and ``{measure}_macs``: the mean over layers weighted by their shares of parameters
    and of MACs. ``{measure}_macs_log10`` and ``{measure}_macs_cbrt``: the latter times log10 and times the
    cube root of the network's MACs.

    Args:
        percent: shares in percent, the scale of the published tables.
    """
    measure, total = frame.columns[-1], float(frame["macs"].sum())
    scale = 100.0 if percent else 1.0
    by_params, by_macs = (scale * float((frame[measure] * frame[f"{by}_share"]).sum()) for by in ("params", "macs"))
    return {
        f"{measure}_params": by_params,
        f"{measure}_macs": by_macs,
        f"{measure}_macs_log10": by_macs * math.log10(max(total, 1)),
        f"{measure}_macs_cbrt": by_macs * math.cbrt(total),
    }


def normalized(values: dict[str, float], baseline: dict[str, float]) -> dict[str, float]:
    """Figures divided by those of the same network at INT_4, which makes networks comparable.

    The factors of MACs cancel, so what remains is ``{measure}_params_normalized`` and ``{measure}_macs_normalized``.
    """
    kept = [name for name in values if name.endswith(("_params", "_macs"))]
    return {name + NORMALIZED: values[name] / baseline[name] if baseline[name] else math.nan for name in kept}


def _folded(model: nn.Module) -> nn.Module:
    """BatchNorm folded where there is a graph; elsewhere `quantization.ptq` has left it alone too."""
    try:
        return layers.fold_batchnorm(model)
    except ValueError:
        return model


@dataclass(frozen=True)
class _Bins:
    """The bins of a float tensor and its own histogram in them, (channels, bins)."""

    low: float
    width: float
    count: int
    probabilities: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> "_Bins":
        rows = layer.weight.detach().flatten(1).float()
        low, high = rows.min().item(), rows.max().item()
        count = _bin_count(rows, high - low)
        width = max(high - low, 1e-30) / count
        return cls(low, width, count, _histogram(rows, low, width, count))


def _bin_count(rows: Tensor, span: float) -> int:
    """Freedman-Diaconis: width ``2 IQR / n^(1/3)``, n values a channel; at most 256 bins."""
    values = rows.flatten()
    lower, upper = (values.kthvalue(max(round(q * len(values)), 1)).values for q in (0.25, 0.75))
    width = 2 * (upper - lower).item() / rows.shape[1] ** (1 / 3)
    return min(max(math.ceil(span / width), 1), MOST_BINS) if width > 0 else MOST_BINS


def _histogram(rows: Tensor, low: float, width: float, count: int) -> Tensor:
    """Fractions of each row's values in each bin; what lies outside counts in the outermost."""
    bins = ((rows - low) / width).long().clamp_(0, count - 1)
    bins += torch.arange(len(rows), device=rows.device)[:, None] * count
    return torch.bincount(bins.flatten(), minlength=len(rows) * count).view(len(rows), count).double() / rows.shape[1]


def _js(bins: _Bins, layer: nn.Module, other: nn.Module) -> Tensor:
    rows = other.weight.detach().flatten(1).float()
    return _divergence(bins.probabilities, _histogram(rows, bins.low, bins.width, bins.count), dim=1).mean()


def _divergence(p: Tensor, q: Tensor, dim: int) -> Tensor:
    """Jensen-Shannon divergence in nats along an axis of probabilities."""
    middle = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny)
    return (torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)).sum(dim) / 2


def _softmaxes(layer: nn.Module) -> list[Tensor]:
    weight = layer.weight.detach().double().softmax(1)
    return [weight] if layer.bias is None else [weight, layer.bias.detach().double().softmax(0)]


def _js_legacy(prepared: list[Tensor], layer: nn.Module, other: nn.Module) -> Tensor:
    axes = (1, 0)
    return sum(_divergence(p, q, axis).sum() for p, q, axis in zip(prepared, _softmaxes(other), axes, strict=False))


def _relative_error(energy: Tensor, layer: nn.Module, other: nn.Module) -> Tensor:
    difference = (other.weight.detach() - layer.weight.detach()).double().square().sum()
    return difference / energy if energy > 0 else difference


MEASURES: dict[str, tuple[Callable, Callable]] = {
    "js": (_Bins.of, _js),
    "js_legacy": (_softmaxes, _js_legacy),
    "relative_error": (lambda layer: layer.weight.detach().double().square().sum(), _relative_error),
}
"""Measure -> (what of the float layer can be worked out beforehand, (that, layer, other) -> distance)."""
