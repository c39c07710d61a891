"""Masks of every network: exact counts, the same choice as torch's, and errors that say what is wrong."""

import warnings

import pytest
import torch
from torch.nn.utils import prune as torch_prune

from rqlib import models
from rqlib.core import layers, parametrizations
from rqlib.measures import cost
from rqlib.pruning import masks
from tests.networks import IMAGE, narrow

KEPT = (1.0, 0.5, 0.37, 0.1, 0.05, 0.01, 0.001)


def sparse(model, kept, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return masks.apply_masks(model, masks.magnitude_masks(model, kept, **options))


@pytest.mark.filterwarnings("ignore:kept")
@pytest.mark.parametrize("name", models.MODELS)
def test_exactly_so_many_weights_stay_in_every_layer(name):
    model = narrow(name)
    for kept in KEPT:
        found = masks.check(sparse(model, kept), kept)
        assert found.stay.tolist() == [round(kept * count) for count in found.weights]
        assert (found.nonzero == found.stay).all()
        assert found.weights.sum() == cost.weight_count(model)
    pruned = parametrizations.bake(sparse(model, 0.1))
    masks.check(sparse(pruned, 0.05), 0.05)


@pytest.mark.filterwarnings("ignore:kept")
@pytest.mark.parametrize("kept", [0.5, 0.1, 0.01])
def test_agrees_with_torch(kept):
    model = narrow("MobileNetV2")
    found = masks.magnitude_masks(model, kept)
    for name, layer in layers.weighted_layers(model):
        gone = layer.weight.numel() - round(kept * layer.weight.numel())
        torch_prune.l1_unstructured(layer, "weight", amount=gone)
        assert torch.equal(layer.weight_mask.bool(), found[f"{name}.weight"])


def test_over_all_layers_as_torch_does():
    model, twin = narrow("SmallCNN"), narrow("SmallCNN")
    found = masks.magnitude_masks(model, 0.1, scope="global")
    tensors = [(layer, "weight") for _, layer in layers.weighted_layers(twin)]
    total = cost.weight_count(model)
    gone = total - round(0.1 * total)
    torch_prune.global_unstructured(tensors, pruning_method=torch_prune.L1Unstructured, amount=gone)
    for mask, (layer, _) in zip(found.values(), tensors, strict=True):
        assert torch.equal(mask, layer.weight_mask.bool())
    shares = masks.check(masks.apply_masks(model, found), 0.1, scope="global").kept
    assert shares.max() > 0.2
    assert shares.min() < 0.1


def test_columns_filters_and_two_of_four():
    model = narrow("SmallCNN")
    columns = sparse(model, 0.2, structure="columns").features[2].conv.weight
    assert columns.flatten(1).any(0).sum() == round(0.2 * 6 * 25)
    half = sparse(model, 0.5, structure="2:4").classifier.linear1.weight
    assert (half.unflatten(1, (-1, 4)).count_nonzero(2) == 2).all()
    filters = sparse(model, 0.5, structure="filters", image=IMAGE)
    assert filters.features[2].conv.weight.flatten(1).any(1).sum() == 8
    assert filters.features[2].norm.weight.count_nonzero() == 8
    assert filters.features[2].conv.bias.count_nonzero() == 8
    assert filters.classifier.linear3.weight.flatten(1).any(1).all()
    masks.check(filters, 0.5, structure="filters")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: masks.magnitude_masks(model, 0), "above 0 and at most 1"),
        (lambda model: masks.magnitude_masks(model, 1.5), "above 0 and at most 1"),
        (lambda model: masks.magnitude_masks(model, 0.5, structure="filtres"), "did you mean 'filters'"),
        (lambda model: masks.magnitude_masks(model, 0.5, structure="filters"), "expected image"),
        (lambda model: masks.magnitude_masks(model, 0.5, scope="model"), "expected scope layer, or global"),
        (lambda model: masks.rule(model, "columns", scope="global"), "global with structure weights"),
        (lambda model: masks.magnitude_masks(model, 0.4, structure="2:4"), "expected kept 0.5"),
        (lambda model: masks.magnitude_masks(sparse(model, 0.1), 0.1), "parametrized one; parametrizations.bake first"),
        (
            lambda model: masks.magnitude_masks(parametrizations.bake(sparse(model, 0.1)), 0.5),
            "45 of 450 weights are not 0, fewer than kept 0.5.*already pruned",
        ),
        (
            lambda model: masks.apply_masks(narrow("ResNet_18"), masks.magnitude_masks(model, 0.5)),
            "no such tensor; masks belong to the network",
        ),
        (
            lambda model: masks.apply_masks(model, {"features.0.conv.weight": torch.ones(3, 3, 5, 5)}),
            r"mask of features.0.conv.weight \(3, 3, 5, 5\): found a tensor \(6, 3, 5, 5\)",
        ),
        (lambda model: masks.check(sparse(model, 0.5), 0.1), "expected round.0.1 N. weights in every layer"),
        (lambda model: masks.check(model, 0.5), "expected round.0.5 N. weights in every layer"),
        (lambda model: masks.check(sparse(model, 0.1, scope="global"), 0.1), "in every layer"),
        (lambda model: masks.check(sparse(model, 0.1, scope="global"), 0.2, scope="global"), "weights overall"),
    ],
)
def test_what_cannot_be_is_said(call, words):
    with pytest.raises((ValueError, AssertionError), match=words):
        call(narrow("SmallCNN"))


def test_an_empty_layer_is_allowed_and_said():
    with pytest.warns(UserWarning, match=r"kept 0.001 leaves no weight in features.0.conv.weight"):
        found = masks.magnitude_masks(narrow("SmallCNN"), 0.001)
    with pytest.warns(UserWarning, match=r"kept 0.001 leaves no weight in features.0.conv"):
        masks.check(masks.apply_masks(narrow("SmallCNN"), found), 0.001)
