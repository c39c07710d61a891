"""How far the weights of a quantized network are from the float ones, for each layer and for the whole network."""

import math
from collections.abc import Callable, Iterable

import pandas
import torch
from torch import Tensor, nn

from rqlib import measures
from rqlib.core import layers
from rqlib.core.vocabulary import ImageSpec, did_you_mean
from rqlib.quantization import observers

MOST_BINS = 256


def compare(model: nn.Module, quantized: nn.Module, *, spec: ImageSpec, measure: str = "js") -> pandas.DataFrame:
    """How far the weights of each convolution and linear layer have moved: one row per layer.

    The columns are layer, params, macs, params_share, macs_share (its fractions of the sums over these layers), and
    the measure under its own name:

    js: Jensen-Shannon divergence, in nats, of the histograms of the values of each output channel, averaged over the
    channels; in [0, ln 2]. The width of a bin follows from the float weight by the rule of Freedman and Diaconis for
    the number of values per channel; there are at most 256 bins.
    js_legacy: the measure of the first implementation. The values themselves go through a softmax (over axis 1 of a
    weight, over a bias), and the JS divergence of the results is summed over rows. To second order it is
    (rows / 8) Var(dW), a mean-square error; it is 0 for depthwise layers.
    relative_error: ``||dW||^2 / ||W||^2``, the inverse of the signal-to-quantization-noise ratio.

    Args:
        model: the float network; its BatchNorm is folded here if torch.fx can trace it, as in `quantization.ptq`.
        quantized: a copy made by `quantization.ptq`; it may have been trained further or baked.

    Raises:
        ValueError: unknown measure, or the layers of the two networks do not correspond.
    """
    return Reference(model, spec).compare(quantized, measure)


class Reference:
    """What `compare` needs to know of the float network, computed once for many quantized copies."""

    def __init__(self, model: nn.Module, spec: ImageSpec):
        try:
            folded = layers.fold_batchnorm(model)
        except ValueError:
            folded = model
        self.layers = dict(layers.weighted_layers(folded))
        self._prepared: dict[tuple[str, str], object] = {}
        shares = measures.profile(folded, spec).set_index("layer").loc[list(self.layers), ["params", "macs"]]
        for column in ("params", "macs"):
            shares[f"{column}_share"] = shares[column] / max(shares[column].sum(), 1)
        self.shares = shares.reset_index()

    @torch.no_grad()
    def compare(self, quantized: nn.Module, measure: str = "js") -> pandas.DataFrame:
        """How far the weights of each layer have moved; rows, columns and errors as the function `compare`."""
        if measure not in MEASURES:
            raise ValueError(did_you_mean("measure", measure, MEASURES))
        others = dict(layers.weighted_layers(quantized))
        if missing := [name for name in self.layers if name not in others]:
            raise ValueError(f"expected a copy of the network, got one without its layers {', '.join(missing)}")
        values = [self._distance(name, others[name], measure) for name in self.layers]
        return self.shares.assign(**{measure: values})

    def figures(self, quantized: nn.Module, names: Iterable[str]) -> dict[str, float]:
        """The figures of the whole network in each of the named measures, as the function `figures` gives them."""
        frames = [self.compare(quantized, measure) for measure in names]
        return {name: value for frame in frames for name, value in figures(frame).items()}

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
    """Figures of a whole network in one measure, from the rows of `compare`.

    ``{measure}_params`` and ``{measure}_macs`` are means over the layers, weighted by their shares of parameters and
    of MACs. ``{measure}_macs_log10`` and ``{measure}_macs_cbrt`` are the second mean times the log10 and times the
    cube root of the MACs of the network.

    Args:
        frame: its last column is the measure.
        percent: take shares in percent, as the published tables do.
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
    """Figures divided by those of the same network at INT_4 (the baseline), so that networks can be compared.

    The factors of MACs would cancel, so only ``{measure}_params_normalized`` and ``{measure}_macs_normalized`` remain.
    A figure is NaN if its baseline is 0.
    """
    comparable = [name for name in values if name.endswith(("_params", "_macs"))]
    return {f"{name}_normalized": values[name] / baseline[name] if baseline[name] else math.nan for name in comparable}


def _bins(layer: nn.Module) -> tuple[float, float, int]:
    """(lowest edge, width, number) of bins by Freedman and Diaconis: width about ``2 IQR / n^(1/3)``, at most 256."""
    values = layer.weight.detach().flatten().float()
    low, high = values.min().item(), values.max().item()
    lower, upper = (values.kthvalue(max(round(q * len(values)), 1)).values for q in (0.25, 0.75))
    width = 2 * (upper - lower).item() / layer.weight[0].numel() ** (1 / 3)
    count = min(max(math.ceil((high - low) / width), 1), MOST_BINS) if width > 0 else MOST_BINS
    return low, max(high - low, 1e-30) / count, count


def _histogram(layer: nn.Module, low: float, width: float, count: int) -> Tensor:
    """The fraction of each channel's values in each bin, (O, bins); values outside count in the outermost bins."""
    rows = layer.weight.detach().flatten(1).float()
    bins = ((rows - low) / width).long().clamp_(0, count - 1)
    return observers.count_in_rows(bins, count).double() / rows.shape[1]


def _prepare_js(layer: nn.Module) -> tuple[tuple, Tensor]:
    bins = _bins(layer)
    return bins, _histogram(layer, *bins)


def _js(prepared: tuple[tuple, Tensor], layer: nn.Module, other: nn.Module) -> Tensor:
    bins, probabilities = prepared
    return _divergence(probabilities, _histogram(other, *bins), dim=1).mean()


def _divergence(p: Tensor, q: Tensor, dim: int) -> Tensor:
    """Jensen-Shannon divergence, in nats, of probabilities along an axis."""
    middle = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny)
    return (torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)).sum(dim) / 2


def _softmaxes(layer: nn.Module) -> list[Tensor]:
    weight = layer.weight.detach().double().softmax(1)
    return [weight] if layer.bias is None else [weight, layer.bias.detach().double().softmax(0)]


def _js_legacy(prepared: list[Tensor], layer: nn.Module, other: nn.Module) -> Tensor:
    return sum(_divergence(p, q, axis).sum() for p, q, axis in zip(prepared, _softmaxes(other), (1, 0), strict=False))


def _relative_error(energy: Tensor, layer: nn.Module, other: nn.Module) -> Tensor:
    difference = (other.weight.detach() - layer.weight.detach()).double().square().sum()
    return difference / energy if energy > 0 else difference


MEASURES: dict[str, tuple[Callable, Callable]] = {
    "js": (_prepare_js, _js),
    "js_legacy": (_softmaxes, _js_legacy),
    "relative_error": (lambda layer: layer.weight.detach().double().square().sum(), _relative_error),
}
"""Measure -> (a function that prepares the float layer once, a function of (what it prepared, layer, other layer))."""
