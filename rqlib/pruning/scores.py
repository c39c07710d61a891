"""Masks that follow trainable scores: what HYDRA trains in place of the weights."""

from functools import partial

import torch
from torch import Tensor, nn

from rqlib.core import layers, parametrizations, projections
from rqlib.core.entry import classifier
from rqlib.core.parametrizations import steps_of
from rqlib.pruning import channels, masks
from rqlib.pruning.masks import apply_masks
from rqlib.pruning.parametrizations import Scored, attach, with_state


def with_scores(
    model: nn.Module, kept: float, *, structure: str = "weights", image: Tensor | None = None, norms: bool = False
) -> nn.Module:
    """A copy whose masks follow trainable scores (`Scored`), in each layer apart; everything else is frozen.

    The scores start at ``S = sqrt(6 / fan_in) W / max |W|``, so that the first masks are those of magnitude. With
    the structure ``filters`` there is one score per channel, and the norm ``||W_o||`` over all filters that write to
    the channel takes the place of W.

    With ``norms`` BatchNorm is trained too; its statistics adapt in any case. Others as in `masks.magnitude_masks`.
    """
    model = classifier(model)
    weights = masks.dense_weights(model, kept)
    scored = parametrizations.copied(model).requires_grad_(False)
    for _, norm in layers.batchnorms(scored):
        norm.requires_grad_(norms)
    if structure == "filters":
        return _with_channel_scores(scored, weights, kept, image)
    masks.rule(model, structure)  # says what is wrong with the name
    for name, weight in weights.items():
        basis = projections.column_norms(weight) if structure == "columns" else weight
        step = Scored(scaled_scores(basis, weight[0].numel()), partial(masks.ENTRIES[structure], kept=kept))
        attach(scored, name, step)
    return scored


def scaled_scores(basis: Tensor, fan_in: int) -> nn.Parameter:
    """Trainable scores ``sqrt(6 / fan_in) W / max |W|`` for a basis W."""
    return nn.Parameter((6 / fan_in) ** 0.5 * basis / basis.abs().max().clamp(min=1e-12))


def settled(scored: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of a network with scores, whose present masks are fixed; trainable as ``like`` is."""
    chosen = {name: step.mask() for name, step in steps_of(scored, Scored).items()}
    return apply_masks(with_state(like, scored), chosen)


def _with_channel_scores(scored: nn.Module, weights: masks.Weights, kept: float, image: Tensor | None) -> nn.Module:
    """Attach one score per channel, shared by all tensors that write to the channel."""
    found = channels.find(scored, image)
    norms, pools = masks.channel_norms(weights, found), found.pools()
    fan_in = torch.ones_like(norms)
    for name in (name for name in found.reads if f"{name}.weight" in weights):
        fan_in[found.writes[name]] = float(weights[f"{name}.weight"][0].numel())
    rows_of, sizes = masks.channel_rows(scored, found), [len(p) for p in pools]
    scores = torch.cat([scaled_scores(norms[p], fan_in[p[0]].item()).data for p in pools])
    place = torch.full((len(norms),), len(scores))
    place[torch.cat(pools)] = torch.arange(len(scores))
    places = list(torch.arange(len(scores)).split(sizes))
    if any((place[rows] == len(scores)).any() for rows in rows_of.values()):
        scores = torch.cat([scores, torch.ones(1)])  # of channels that stay beside those of a pool
    scores, choose = nn.Parameter(scores), partial(masks.best_channels, pools=places, kept=kept)
    for name, rows in rows_of.items():
        attach(scored, name, Scored(scores, choose, place[rows]))
    return scored.to(next(iter(weights.values())).device)
