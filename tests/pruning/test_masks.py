"""Masks of every network: exact counts, torch's own choice, and errors that say what is wrong."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from rqlib import models
from rqlib.core import parametrizations
from rqlib.pruning import masks
from tests.networks import COLOR, IMAGE, narrow

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
        assert found.kept.tolist() == [round(kept * count) for count in found.weights]
        assert (found.nonzero == found.kept).all()
        assert len(found) == sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())


@pytest.mark.filterwarnings("ignore:kept")
@pytest.mark.parametrize("name", ["SmallCNN", "ResNet_18", "MobileNetV2"])
@pytest.mark.parametrize("kept", [0.5, 0.1, 0.01])
def test_agrees_with_torch(name, kept):
    model, twin = narrow(name), narrow(name)
    found = masks.magnitude_masks(model, kept)
    for name, layer in twin.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            gone = layer.weight.numel() - round(kept * layer.weight.numel())
            torch_prune.l1_unstructured(layer, "weight", amount=gone)
            assert torch.equal(layer.weight_mask.bool(), found[f"{name}.weight"])


def test_over_all_layers_as_torch_does():
    model, twin = narrow("SmallCNN"), narrow("SmallCNN")
    found = masks.magnitude_masks(model, 0.1, scope="global")
    tensors = [(layer, "weight") for layer in twin.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    total = sum(layer.weight.numel() for layer, _ in tensors)
    gone = total - round(0.1 * total)
    torch_prune.global_unstructured(tensors, pruning_method=torch_prune.L1Unstructured, amount=gone)
    assert all(
        torch.equal(mask, layer.weight_mask.bool()) for mask, (layer, _) in zip(found.values(), tensors, strict=True)
    )
    shares = masks.check(masks.apply_masks(model, found), 0.1, scope="global").fraction
    assert shares.max() > 0.2
    assert shares.min() < 0.1


def test_a_mask_changes_the_output():
    model, x = narrow("SmallCNN"), torch.rand(2, 3, 32, 32)
    assert not torch.equal(sparse(model, 0.5)(x), model(x))
    assert torch.equal(sparse(model, 1.0)(x), model(x))


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
    ("options", "message"),
    [
        ({"kept": 0}, "above 0 and at most 1"),
        ({"kept": 1.5}, "above 0 and at most 1"),
        ({"kept": 0.5, "structure": "filtres"}, "did you mean 'filters'"),
        ({"kept": 0.5, "structure": "filters"}, "expected image"),
        ({"kept": 0.5, "scope": "model"}, "expected scope layer, or global"),
        ({"kept": 0.5, "scope": "global", "structure": "columns"}, "global with structure weights"),
        ({"kept": 0.4, "structure": "2:4"}, "expected kept 0.5"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        masks.magnitude_masks(narrow("SmallCNN"), **options)


def test_an_empty_layer_is_allowed_and_said():
    with pytest.warns(UserWarning, match=r"kept 0.001 leaves no weight in features.0.conv.weight"):
        found = masks.magnitude_masks(narrow("SmallCNN"), 0.001)
    with pytest.warns(UserWarning, match=r"kept 0.001 leaves no weight in features.0.conv"):
        masks.check(masks.apply_masks(narrow("SmallCNN"), found), 0.001)


def test_check_wants_the_count_in_the_scope_that_was_asked_for():
    model = narrow("SmallCNN")
    overall = masks.apply_masks(model, masks.magnitude_masks(model, 0.1, scope="global"))
    masks.check(overall, 0.1, scope="global")
    with pytest.raises(AssertionError, match="in every layer"):
        masks.check(overall, 0.1)
    with pytest.raises(AssertionError, match="overall"):
        masks.check(overall, 0.2, scope="global")


def test_masks_of_another_network_are_refused():
    found = masks.magnitude_masks(narrow("SmallCNN"), 0.5)
    with pytest.raises(ValueError, match="no such tensor; masks belong to the network"):
        masks.apply_masks(narrow("ResNet_18"), found)
    with pytest.raises(
        ValueError, match=r"mask of features.0.conv.weight \(6, 3, 5, 5\): found a tensor \(3, 3, 5, 5\)"
    ):
        masks.apply_masks(models.build("SmallCNN", COLOR, width=0.5), found)


def test_a_network_that_is_already_pruned_is_refused():
    pruned = sparse(narrow("SmallCNN"), 0.1)
    with pytest.raises(ValueError, match="parametrized one; parametrizations.bake first"):
        masks.magnitude_masks(pruned, 0.1)
    baked = parametrizations.bake(pruned)
    with pytest.raises(ValueError, match=r"45 of 450 weights are not 0, fewer than kept 0.5.*already pruned"):
        masks.magnitude_masks(baked, 0.5)
    masks.check(sparse(baked, 0.05), 0.05)


def test_check_finds_what_is_not_as_sparse_as_it_should_be():
    with pytest.raises(AssertionError, match="expected round"):
        masks.check(sparse(narrow("SmallCNN"), 0.5), 0.1)
    with pytest.raises(AssertionError, match="expected round"):
        masks.check(narrow("SmallCNN"), 0.5)
