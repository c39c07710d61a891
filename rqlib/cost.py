"""What a network costs, layer by layer: parameters, multiply-accumulates, bits."""

import pandas
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqlib import layers, runtime
from rqlib.vocabulary import ImageSpec

COUNTS = ["params", "nonzero", "macs", "bits"]


@torch.no_grad()
def profile(model: nn.Module, spec: ImageSpec) -> pandas.DataFrame:
    """One row for each layer with parameters, for one image of ``spec``.

    Columns: layer (its name), kind (its class), params, nonzero (parameters, and how many are not 0),
    macs (multiply-accumulates of convolutions and linear layers, half of what
    ``torch.utils.flop_counter`` counts for them; 0 for other layers), bits (of the parameters as they
    are held in memory), output_shape (C, H, W) or (features,) of its last call, None where it is not called.
    The weights are the effective ones: masks and formats are seen, their scores and factors are not.
    """
    owners = {name: module for name, module in model.named_modules() if _tensors(name, module)}
    calls = _calls(model, owners, spec)
    return pandas.DataFrame([_row(name, module, calls[name]) for name, module in owners.items()])


def totals(frame: pandas.DataFrame) -> dict[str, int]:
    """Sums of a profile: params, nonzero, macs, bits."""
    return {column: int(frame[column].sum()) for column in COUNTS}


def weight_count(model: nn.Module) -> int:
    """Weights of convolutions and linear layers, without biases and BatchNorm."""
    return sum(layer.weight.numel() for _, layer in layers.weighted_layers(model))


def _tensors(name: str, module: nn.Module) -> list[Tensor]:
    """The parameters a layer owns, as its forward sees them."""
    if "parametrizations" in name.split("."):
        return []
    names = [key for key, _ in module.named_parameters(recurse=False)]
    if parametrize.is_parametrized(module):
        names += list(module.parametrizations)
    return [getattr(module, key) for key in names]


def _calls(model: nn.Module, owners: dict[str, nn.Module], spec: ImageSpec) -> dict[str, list[torch.Size]]:
    """Output shape of every call of each layer, for one black image."""
    calls: dict[str, list[torch.Size]] = {name: [] for name in owners}

    def note(name: str, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            calls[name].append(output.shape[1:])

    with runtime.evaluating(model), layers.watching(model, owners, note):
        model(torch.zeros(1, *spec.shape, device=next(model.parameters()).device))
    return calls


def _row(name: str, module: nn.Module, shapes: list[torch.Size]) -> dict:
    tensors = _tensors(name, module)
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
