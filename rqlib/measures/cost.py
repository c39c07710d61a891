"""What a network costs: parameters, multiply-accumulates and bits of each layer, and seconds of a forward pass."""

import math
from collections.abc import Iterator

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib.core import layers, runtime
from rqlib.core.entry import classifier
from rqlib.core.vocabulary import ImageSpec

COUNTS = ["params", "nonzero", "macs", "bits"]


@torch.no_grad()
def profile(model: nn.Module, spec: ImageSpec) -> pandas.DataFrame:
    """What each layer with parameters costs for one image: one row per layer.

    The weights are those that the layer computes with, after masks and formats; parameters that only a
    parametrization holds, such as scores of a mask, are not counted. A parameter that two layers share is counted in
    the first one alone.

    Columns:
        layer: its name.
        kind: its class.
        params: number of its parameters.
        nonzero: number of its parameters that are not 0.
        macs: multiply-accumulates of a convolution or linear layer, half of what ``torch.utils.flop_counter``
            counts for it; 0 for other layers.
        bits: of the parameters as they are held in memory.
        output_shape: (C, H, W) or (features,) of its last call; None if the layer is not called.
    """
    model = classifier(model)
    seen: set[int] = set()
    owners = {name: module for name, module in model.named_modules() if _stored(name, module)}
    calls = _calls(model, owners, spec)
    return pandas.DataFrame([_row(name, module, calls[name], seen) for name, module in owners.items()])


def totals(frame: pandas.DataFrame) -> dict[str, int]:
    """The sums of a profile over its layers: params, nonzero, macs, bits."""
    return {column: int(frame[column].sum()) for column in COUNTS}


def weight_count(model: nn.Module) -> int:
    """Number of weights of convolutions and linear layers (`layers.weighted_layers`), without biases and BatchNorm."""
    return sum(layer.weight.numel() for _, layer in _unshared(classifier(model)))


@torch.no_grad()
def storage(model: nn.Module) -> dict[str, float]:
    """Bits that the weights of convolutions and linear layers take, as float32 and coded.

    A weight in a number format takes the bits of the format. Any other weight is stored either as its number in a
    codebook of the layer's distinct values, ``ceil(log2 distinct values)`` bits, or as 32 bits, whichever is less.
    Each layer stores either all of its weights, or its nonzero weights and an index that says where they are
    (`index_bits`), again whichever is less. Scales and entries of codebooks take 32 bits each. A weight that two
    layers share is stored once. A weight that is computed from several tensors, such as factors, is stored as these
    tensors if that takes less.

    Returns:
        dense_bits: 32 per weight.
        coded_bits: of the weights, scales and codebooks.
        index_bits: of the indices.
        ratio: dense_bits / coded_bits.
        ratio_with_index: dense_bits / (coded_bits + index_bits).
        other_bits: of everything else in the network: biases, BatchNorm parameters and statistics, and layers that
            are none of the `layers.weighted_layers`, such as transposed convolutions.
    """
    model = classifier(model)
    coded = [_coded(layer) for _, layer in _unshared(model)]
    dense, codes, index = 32 * weight_count(model), sum(bits for bits, _ in coded), sum(bits for _, bits in coded)
    ratios = {"ratio": dense / max(codes, 1), "ratio_with_index": dense / max(codes + index, 1)}
    return {"dense_bits": dense, "coded_bits": codes, "index_bits": index, **ratios, "other_bits": _other_bits(model)}


def index_bits(count: int, nonzero: int) -> int:
    """Bits of an index that says which ``nonzero`` of ``count`` weights are not 0: the cheapest of three codes.

    A bitmap takes ``count`` bits. A list of gaps takes ``ceil(log2(mean gap)) + 2`` bits per nonzero weight.
    An entropy coder comes close to the bound ``log2(count choose nonzero)``.
    """
    gap = math.ceil(math.log2(max(count, 1) / max(nonzero, 1))) + 2
    choices = math.lgamma(count + 1) - math.lgamma(nonzero + 1) - math.lgamma(count - nonzero + 1)
    return min(count, nonzero * gap, math.ceil(choices / math.log(2)))


def with_codebook(count: int, distinct: int, entries: int) -> int:
    """Bits of ``count`` values, in float32, or in a codebook of ``entries`` whose numbers tell ``distinct`` apart."""
    return min(32 * count, count * code_bits(distinct) + 32 * entries)


def code_bits(distinct: int) -> int:
    """Bits of a number that tells ``distinct`` values apart: ``ceil(log2 distinct)``, at least 1."""
    return math.ceil(math.log2(max(distinct, 2)))


def latency(model: nn.Module, x: Tensor, *, least_seconds: float = 0.5) -> float:
    """Median seconds of one forward pass of x (B, C, H, W) in eval mode, measured for at least ``least_seconds``."""
    from torch.utils import benchmark  # here, because it loads setuptools, which takes long

    model = classifier(model)
    with runtime.evaluating(model), torch.no_grad():
        timer = benchmark.Timer("model(x)", globals={"model": model, "x": x}, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=least_seconds).median


def _coded(layer: nn.Module) -> tuple[int, int]:
    """(coded bits, index bits) of a layer's weight, in the cheaper of the two ways."""
    last = layer.parametrizations.weight[-1] if parametrize.is_parametrized(layer, "weight") else None
    if hasattr(last, "format"):
        count, nonzero = layer.weight.numel(), int(layer.weight.count_nonzero())
        whole, packed = (n * last.format.bits + 32 * last.scale.numel() for n in (count, nonzero))
        return min((whole, 0), (packed, index_bits(count, nonzero)), key=sum)
    parts = [_coded_values(source) for source in _sources(layer, "weight")]
    together = sum(bits for bits, _ in parts), sum(bits for _, bits in parts)
    return min(_coded_values(layer.weight), together, key=sum) if len(parts) > 1 else _coded_values(layer.weight)


def _coded_values(values: Tensor) -> tuple[int, int]:
    """(coded bits, index bits) of a tensor without a format, in the cheaper of the two ways."""
    count, nonzero, different = values.numel(), int(values.count_nonzero()), values.unique()
    distinct = int(different.count_nonzero())
    whole, packed = with_codebook(count, len(different), distinct), with_codebook(nonzero, distinct, distinct)
    return min((whole, 0), (packed, index_bits(count, nonzero)), key=sum)


def _other_bits(model: nn.Module) -> int:
    weights = {id(source) for _, layer in layers.weighted_layers(model) for source in _sources(layer, "weight")}
    tensors = {id(tensor): tensor for name, tensor in _state(model) if "parametrizations" not in name}
    return sum(8 * one.element_size() * one.numel() for key, one in tensors.items() if key not in weights)


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in the state dict, once for each tensor."""
    kept = model.state_dict().keys()
    tensors = (*model.named_parameters(), *model.named_buffers())
    return ((name, tensor) for name, tensor in tensors if name in kept)


def _unshared(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The weighted layers without those whose weight an earlier one has."""
    seen: set[int] = set()
    for name, layer in layers.weighted_layers(model):
        sources = {id(source) for source in _sources(layer, "weight")}
        if not sources & seen:
            yield name, layer
        seen |= sources


def _sources(module: nn.Module, name: str) -> list[Tensor]:
    """The stored tensors from which a tensor of a layer is computed: itself, or the originals of parametrizations."""
    if not parametrize.is_parametrized(module, name):
        return [getattr(module, name)]
    steps = module.parametrizations[name]
    return [tensor for key, tensor in (*steps.named_parameters(), *steps.named_buffers()) if key.startswith("original")]


def _stored(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The parameters that a layer itself owns, as its forward pass sees them, by name."""
    if "parametrizations" in name.split("."):
        return {}
    names = [key for key, _ in module.named_parameters(recurse=False)]
    if parametrize.is_parametrized(module):
        names += list(module.parametrizations)
    return {key: getattr(module, key) for key in names}


def _calls(model: nn.Module, owners: dict[str, nn.Module], spec: ImageSpec) -> dict[str, list[torch.Size]]:
    """The output shapes of all calls of each layer, for one black image."""
    calls: dict[str, list[torch.Size]] = {name: [] for name in owners}

    def note(name: str, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            calls[name] += [output.shape[1:]] * len(output)  # a random self-ensemble computes several copies

    with runtime.evaluating(model), layers.watching(model, owners, note):
        model(torch.zeros(1, *spec.shape, device=next(model.parameters()).device))
    return calls


def _row(name: str, module: nn.Module, shapes: list[torch.Size], seen: set[int]) -> dict:
    sources = {key: {id(source) for source in _sources(module, key)} for key in _stored(name, module)}
    tensors = [tensor for key, tensor in _stored(name, module).items() if not sources[key] & seen]
    seen.update(*sources.values())
    per_output = module.weight[0].numel() if isinstance(module, layers.WEIGHTED) else 0
    return {
        "layer": name,
        "kind": type(module).__name__.removeprefix("Parametrized"),
        "params": sum(tensor.numel() for tensor in tensors),
        "nonzero": sum(int(tensor.count_nonzero()) for tensor in tensors),
        "macs": per_output * sum(shape.numel() for shape in shapes),
        "bits": sum(8 * tensor.element_size() * tensor.numel() for tensor in tensors),
        "output_shape": tuple(shapes[-1]) if shapes else None,
    }
