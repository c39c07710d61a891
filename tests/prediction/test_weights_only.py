import pytest
import torch

from rqlib import models, quantization
from rqlib.core.vocabulary import ImageSpec
from rqlib.prediction import anatomy, features, weights_only

SPEC = ImageSpec(channels=1, height=28, width=28, mean=(0.5,), std=(0.5,))
FORMATS = ["INT_3", "INT_4", "POT_4", "FLOAT_5_E2"]


@pytest.mark.parametrize("setting", [{}, {"ranges": "minmax"}, {"ranges": "minmax", "granularity": "channel"}], ids=str)
def test_rows_are_those_of_a_sweep_without_its_scores(setting):
    torch.manual_seed(0)
    network = models.build("LeNet", SPEC, width=0.2)
    measures = ["js", "relative_error", "js_legacy"]
    rows = weights_only.similarity_rows(network, SPEC, FORMATS, measures=measures, **setting)
    images, labels = torch.rand(20, 1, 28, 28), torch.zeros(20, dtype=torch.long)
    sweep = quantization.sweep(network, FORMATS, images, images, labels, measures=measures, **setting)
    added = {"granularity", "ranges", *anatomy.PLAIN}
    assert set(rows) - added < set(sweep)
    for name in set(rows) - added:
        expected = sweep[name].tolist()
        assert rows[name].tolist() == (expected if name in ("format", "kind") else pytest.approx(expected, rel=1e-6))
    assert features.names(features.table(rows.assign(model="new")))
    assert (rows.coded_bits == rows.bits * rows.coded_bits[1] / 4).all()


def test_rows_say_their_setting_and_what_the_network_is_built_of():
    network = models.build("LeNet", SPEC, width=0.2)
    rows = weights_only.similarity_rows(network, SPEC, ["INT_4"], nonnegative="signed", bias="float")
    said = rows[["granularity", "ranges", "nonnegative", "bias"]].iloc[0].tolist()
    assert said == ["tensor", "mse", "signed", "float"]
    assert rows[[*anatomy.PLAIN]].iloc[0].to_dict() == anatomy.plain_features(network)
