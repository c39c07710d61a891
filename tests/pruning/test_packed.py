"""Files as small as `measures.storage` says, from which a network with the same logits is loaded."""

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rqlib import measures, models, quantization
from rqlib.core import layers, parametrizations, runtime
from rqlib.pruning import factors, masks, packed
from rqlib.quantization import layer_formats
from tests.networks import COLOR, narrow

X = torch.rand(2, *COLOR.shape)


def pruned(kept):
    model = narrow("VGG_16_HYDRA")
    return parametrizations.bake(masks.apply_masks(model, masks.magnitude_masks(model, kept)))


@pytest.mark.parametrize(
    ("kept", "format"), [(1.0, None), (0.6, None), (0.3, None), (0.01, None), (1.0, "INT_8"), (0.1, "INT_8")]
)
@torch.no_grad()
def test_size_is_that_of_storage_and_logits_are_the_same(tmp_path, kept, format):
    model = pruned(kept)
    for _, layer in layers.weighted_layers(model):
        if format is not None:
            layer_formats.quantize_weight(layer, quantization.parse(format))
    model = parametrizations.bake(model)
    path = packed.save(tmp_path / "net.rqz", model, "VGG_16_HYDRA", COLOR, width=0.125, classes=tuple("0123456789"))
    size = measures.storage(model)
    expected = (size["coded_bits"] + size["index_bits"] + size["other_bits"]) / 8
    assert 0.98 < path.stat().st_size / expected < 1.1
    loaded, info = packed.load(path)
    placed = runtime.active().place(model)  # another order in memory rounds differently
    assert torch.equal(loaded(X), placed(X))
    assert info["classes"] == list("0123456789")
    dense = models.save(tmp_path / "net.pt", model, "VGG_16_HYDRA", COLOR, width=0.125)
    assert kept > 0.9 or path.stat().st_size < (kept + 0.2) * dense.stat().st_size


@pytest.mark.parametrize("copied", [False, True])
@torch.no_grad()
def test_a_weight_that_two_layers_share_is_stored_once(tmp_path, monkeypatch, copied):
    if copied:  # as it is on the way from a GPU
        monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    name = "tests.pruning.odd:tied"
    model = models.build(name, COLOR, seed=0).eval()
    model = parametrizations.bake(masks.apply_masks(model, masks.magnitude_masks(model, 0.5)))
    path = packed.save(tmp_path / "net.rqz", model, name, COLOR)
    expected = sum(bits for part, bits in measures.storage(model).items() if part in ("coded_bits", "index_bits"))
    expected = (expected + measures.storage(model)["other_bits"]) / 8
    assert path.stat().st_size < expected + 200, "a header"
    assert model.network.one.weight.numel() * 4 > 200
    loaded, _ = packed.load(path, expected=name)
    assert loaded.network.one.weight is loaded.network.other.weight
    assert torch.equal(loaded(X), runtime.active().place(model)(X))


@pytest.mark.parametrize("as_factors", [False, True])
@torch.no_grad()
def test_the_smallest_file_is_at_most_a_tenth_larger_than_storage_says(tmp_path, as_factors):
    model = models.build("SmallCNN", COLOR, seed=0).eval()
    if as_factors:
        model = factors.factorized(model, dict.fromkeys(factors.layer_names(model)))
        tensors = factors.tensors(model).values()
        least = torch.cat([one.abs().flatten() for one in tensors]).topk(414).values.min()
        for one in tensors:
            one.mul_(one.abs() >= least)
        changes = {"factorized": factors.ranks_of(model)}
    else:
        model = parametrizations.bake(masks.apply_masks(model, masks.magnitude_masks(model, 0.005)))
        for _, layer in layers.weighted_layers(model):
            layer_formats.quantize_weight(layer, quantization.parse("INT_8"))
        model, changes = parametrizations.bake(model), {}
    path = packed.save(tmp_path / "net.rqz", model, "SmallCNN", COLOR, changes=changes, parameters={"seed": 0})
    size = measures.storage(model)
    expected = (size["coded_bits"] + size["index_bits"] + size["other_bits"]) / 8
    assert 1900 < expected < 3500
    assert 0.98 < path.stat().st_size / expected < 1.1
    loaded, _ = packed.load(path)
    assert torch.equal(loaded(X), runtime.active().place(model)(X))


class Twice(nn.Module):
    """One layer under two names, of which the later one comes first in the alphabet."""

    def __init__(self, num_classes):
        super().__init__()
        self.z = self.a = nn.Linear(32, 32)

    def forward(self, x):
        return self.a(self.z(x[:, 0])).mean(1)[:, :10]


@torch.no_grad()
def test_a_layer_of_two_names_is_stored_without_its_zeros(tmp_path):
    name = f"{__name__}:Twice"
    model = models.build(name, COLOR, seed=0).eval()
    weight = model.network.a.weight
    weight.mul_(weight > weight.flatten().topk(20).values.min())
    path = packed.save(tmp_path / "net.rqz", model, name, COLOR)
    assert path.stat().st_size < 1000 < 4 * weight.numel()
    assert torch.equal(packed.load(path, expected=name)[0](X), runtime.active().place(model)(X))


def test_the_text_by_which_files_are_read_is_that_of_their_version(tmp_path):
    assert (packed._MAGIC, zlib.crc32(packed._USUAL)) == (b"RQZ2", 1259185430), "another text needs another number"
    (tmp_path / "old.rqz").write_bytes(b"RQZ1" + bytes(100))
    with pytest.raises(ValueError, match="old.rqz: a compressed network of an earlier version; write it again"):
        packed.load(tmp_path / "old.rqz")


def test_a_network_of_another_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found it changed .*float16"):
        packed.save(tmp_path / "net.rqz", narrow("SmallCNN").half(), "SmallCNN", COLOR)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_any_weight_comes_back(count, density, few, seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, count, generator=rng) * (torch.rand(1, count, generator=rng) < density)
    weight = (weight * 2).round() if few else weight
    description, stream = packed._sparse(weight)
    assert torch.equal(packed._decoded(packed.io.BytesIO(stream), weight.shape, *description), weight)


@pytest.mark.parametrize(
    ("damaged", "expected", "words"),
    [
        (lambda whole: whole[:-5], None, "net.rqz: not a whole compressed network"),
        (lambda whole: whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], None, "not a whole compressed network"),
        (lambda whole: b"PK" + whole, None, "not a whole compressed network"),
        (lambda whole: b"", None, "not a whole compressed network"),
        (lambda whole: whole, "LeNet", "expected a checkpoint of 'LeNet', got one of 'SmallCNN'"),
    ],
)
def test_a_damaged_file_and_another_network_are_refused(tmp_path, damaged, expected, words):
    path = packed.save(tmp_path / "net.rqz", narrow("SmallCNN"), "SmallCNN", COLOR)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        packed.load(path, expected=expected)
