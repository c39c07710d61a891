import pytest
import torch

from rqlib import models, quantization
from rqlib.core.vocabulary import ImageSpec
from rqlib.generator import data_free
from rqlib.prediction import features

SPEC = ImageSpec(channels=1, height=28, width=28, mean=(0.5,), std=(0.5,))


def test_rows_are_those_of_a_sweep_without_its_scores():
    torch.manual_seed(0)
    network = models.build("LeNet", SPEC, width=0.2)
    formats, measures = ["INT_3", "INT_4", "POT_4", "FLOAT_5_E2"], ["js", "relative_error", "js_legacy"]
    rows = data_free.similarity_rows(network, SPEC, formats, measures=measures)
    images, labels = torch.rand(20, 1, 28, 28), torch.zeros(20, dtype=torch.long)
    sweep = quantization.sweep(network, formats, images, images, labels, measures=measures)
    assert set(rows) < set(sweep)
    for name in rows:
        expected = sweep[name].tolist()
        assert rows[name].tolist() == (expected if name in ("format", "kind") else pytest.approx(expected, rel=1e-6))
    assert features.names(features.table(rows.assign(model="new")))
    assert (rows.coded_bits == rows.bits * rows.coded_bits[1] / 4).all()


def test_networks_open_from_a_checkpoint_or_by_name(tmp_path):
    network = models.build("LeNet", SPEC)
    models.save(tmp_path / "a.pt", network, "LeNet", SPEC)
    torch.save(network.state_dict(), tmp_path / "b.pt")
    loaded, spec = data_free.open_network(str(tmp_path / "a.pt"), ImageSpec())
    named, _ = data_free.open_network("LeNet", SPEC, weights=str(tmp_path / "b.pt"))
    assert spec == SPEC
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert torch.equal(named.state_dict()[name], value)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("LeNet", ValueError, r"expected weights=PATH .* for 'LeNet', got none"),
        ("nowhere.pt", FileNotFoundError, "expected a checkpoint"),
    ],
)
def test_errors(source, error, words):
    with pytest.raises(error, match=words):
        data_free.open_network(source, SPEC)
