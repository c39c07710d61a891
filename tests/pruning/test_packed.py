"""Files as small as `measures.storage` says, from which the same logits come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlib import measures, models, quantization
from rqlib.core import parametrizations, runtime
from rqlib.pruning import masks, packed
from tests.networks import COLOR, narrow

X = torch.rand(2, *COLOR.shape)


def pruned(kept, name="VGG_16_HYDRA"):
    model = narrow(name)
    return parametrizations.bake(masks.apply_masks(model, masks.magnitude_masks(model, kept)))


def in_order(model):
    """The network in the order of memory in which it is loaded: another one rounds differently."""
    return runtime.active().place(model)


def expected_bytes(model):
    found = measures.storage(model)
    return (found["coded_bits"] + found["index_bits"] + found["other_bits"]) / 8


@pytest.mark.parametrize("kept", [1.0, 0.6, 0.3, 0.1, 0.01])
@torch.no_grad()
def test_size_is_that_of_storage_and_logits_are_the_same(tmp_path, kept):
    model = pruned(kept)
    path = packed.save(tmp_path / "net.rqz", model, "VGG_16_HYDRA", COLOR, width=0.125, classes=tuple("0123456789"))
    assert 0.98 < path.stat().st_size / expected_bytes(model) < 1.1
    loaded, info = packed.load(path)
    assert torch.equal(loaded(X), in_order(model)(X))
    assert info["classes"] == list("0123456789")
    dense = models.save(tmp_path / "net.pt", model, "VGG_16_HYDRA", COLOR, width=0.125)
    assert kept > 0.9 or path.stat().st_size < (kept + 0.2) * dense.stat().st_size


@pytest.mark.parametrize("kept", [1.0, 0.1])
@torch.no_grad()
def test_few_distinct_values_go_through_a_codebook(tmp_path, kept):
    model = pruned(kept)
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            scale = layer.weight.abs().max() / quantization.INT(8).max
            layer.weight.copy_(quantization.INT(8).round(layer.weight / scale) * scale)
    path = packed.save(tmp_path / "net.rqz", model, "VGG_16_HYDRA", COLOR, width=0.125)
    assert 0.98 < path.stat().st_size / expected_bytes(model) < 1.1
    assert torch.equal(packed.load(path)[0](X), in_order(model)(X))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_any_weight_comes_back(count, density, few, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, count, generator=generator) * (torch.rand(1, count, generator=generator) < density)
    weight = (weight * 2).round() if few else weight
    description, stream = packed._sparse(weight)
    assert torch.equal(packed._decoded(packed.io.BytesIO(stream), *description), weight)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    model = narrow("SmallCNN")
    path = packed.save(tmp_path / "net.rqz", model, "SmallCNN", COLOR)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1 if damage == "flipped" else 0
    path.write_bytes({"cut": whole[:-5], "foreign": b"PK" + whole, "empty": b""}.get(damage, whole))
    with pytest.raises(ValueError, match="net.rqz: not a whole compressed network"):
        packed.load(path)


def test_a_masked_network_must_be_baked_first(tmp_path):
    model = narrow("SmallCNN")
    masked = masks.apply_masks(model, masks.magnitude_masks(model, 0.5))
    with pytest.raises(ValueError, match="bake them first"):
        packed.save(tmp_path / "net.rqz", masked, "SmallCNN", COLOR)
    assert not list(tmp_path.iterdir())


def test_another_network_is_refused(tmp_path):
    path = packed.save(tmp_path / "net.rqz", models.build("SmallCNN", COLOR), "SmallCNN", COLOR)
    with pytest.raises(ValueError, match="expected a checkpoint of 'LeNet', got one of 'SmallCNN'"):
        packed.load(path, expected="LeNet")
