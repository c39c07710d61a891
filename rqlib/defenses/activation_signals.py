"""What arrives at the activations of a network, and what they make of it."""

from collections.abc import Iterable, Mapping

import pandas
import torch
from torch import Tensor, nn

from rqlib.core import layers, runtime
from rqlib.defenses.activations import FEW_LEVELS, parse

KINDS = (nn.ReLU, *FEW_LEVELS)


@torch.no_grad()
def signals(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """All values that arrive at each ReLU, or at what stands in its place: name of the module -> (values,).

    Args:
        x: images (B, C, H, W) in [0, 1]; the network runs on them in eval mode. A module that is called several times
            has the values of all its calls.

    Raises:
        ValueError: the network has no such module.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, KINDS)]
    if not names:
        raise ValueError(f"expected a network with nn.ReLU, DTReLU, DDTReLU or jacob_ema, got {type(model).__name__}")
    found: dict[str, list[Tensor]] = {}

    def note(name: str, inputs: tuple, output: Tensor) -> None:
        found.setdefault(name, []).append(inputs[0].detach().flatten())

    with runtime.evaluating(model), layers.watching(model, names, note):
        model(x)
    return {name: torch.cat(parts) for name, parts in found.items()}


def first_signal(model: nn.Module, x: Tensor) -> tuple[str, Tensor]:
    """(name, values) of the first of `signals`; of a network without such a module, values of N(0, 1).

    Args:
        x: images (B, C, H, W) in [0, 1].
    """
    try:
        return next(iter(signals(model, x).items()))
    except ValueError:
        return "no ReLU module; N(0, 1)", torch.randn(100_000, generator=runtime.rng(0))


def started(names: Iterable[str], signal: Tensor) -> dict[str, nn.Module]:
    """Fresh activations, in eval mode, whose range comes from a signal (values,) as from the first batch of a training.

    Raises:
        ValueError: as `activations.parse`.
    """
    made = {name: parse(name)() for name in names}
    with torch.no_grad():
        for layer in made.values():
            layer(signal[None].cpu().float())
    return {name: layer.eval() for name, layer in made.items()}


@torch.no_grad()
def curves(activations: Mapping[str, nn.Module], signal: Tensor, *, points: int = 2000) -> pandas.DataFrame:
    """The outputs of ReLU and of other activations over the range of a signal.

    Args:
        activations: name -> module: those of a trained network, or fresh ones (`started`).
        signal: (values,), from `signals`. All but one in a thousand of its values at either end are in the range.

    Returns:
        One row per activation and point: activation, input, output.
    """
    low, high = torch.quantile(signal.flatten()[: 2**22].float().cpu(), torch.tensor([0.001, 0.999])).tolist()
    x = torch.linspace(low, 1.15 * high, points)
    tables = []
    for name, layer in {"ReLU": nn.ReLU(), **activations}.items():
        with runtime.evaluating(layer):
            y = layer(x.to(next(layer.buffers(), x).device)[None])[0]
        tables.append(pandas.DataFrame({"activation": name, "input": x.numpy(), "output": y.cpu().numpy()}))
    return pandas.concat(tables, ignore_index=True)
