import re
from functools import partial

import pytest
import torch

from rqlib import attacks, measures, quantization, robustness
from rqlib.core.projections import Linf
from rqlib.data import Split
from rqlib.quantization import fake_quantize
from tests import robust_networks
from tests.robust_networks import pictures

BALL = Linf(16 / 255)
ATTACKS = {"pgd": partial(attacks.pgd, ball=BALL, step_size=BALL.epsilon / 2, steps=3, active_set=True)}


def network():
    return robust_networks.trained(adversarial=False)


def sets(count: int = 60) -> dict[str, Split]:
    """Test images, and paler ones in the place of generated images."""
    images, labels = pictures(count)
    return {"test": Split(images, labels), "trained": Split(images // 2 + 64, labels)}


def test_quantized_networks_are_claimed_by_the_minimum():
    model, (images, labels) = robust_networks.trained(adversarial=True), pictures(60)
    attack = partial(attacks.pgd, ball=Linf(0.1), step_size=0.02, steps=8)
    table = robustness.quantized(model, ["INT_3", "INT_8"], images, images, labels, attack=attack)
    assert list(table) == ["format", "clean", "masked", "everywhere", "transfer", "minimum", "images"]
    assert table.format.tolist() == ["FP32", "INT_3", "INT_8"]
    assert table.images.eq(60).all()
    ways = table[["masked", "everywhere", "transfer"]]
    assert (table.minimum <= ways.min(axis=1)).all()
    assert (ways.max(axis=1) <= table.clean).all()
    robust = measures.accuracy(model, images, labels, attack=attack)
    assert table.minimum[0] == ways.transfer[0] == robust
    assert abs(ways.masked[2] - robust) < 0.1


def test_unmasked_gradients_pass_where_the_range_is_left():
    images, _ = pictures(20)
    twin = quantization.ptq(network(), "INT_4", images // 4)  # calibrated on dark images: bright ones leave the range
    unmasked = fake_quantize.unmasked(twin)
    x = (images / 255).requires_grad_()
    masked, passing = (torch.autograd.grad(one(x).sum(), x)[0] for one in (twin, unmasked))
    assert torch.equal(twin(x), unmasked(x))
    assert (passing != 0).float().mean() > 1.2 * (masked != 0).float().mean()


def test_accuracies_are_those_of_the_quantized_networks():
    both = sets()
    images = both["trained"].images
    rows = robustness.on_sets(network(), ["INT_3", "FLOAT_3_E1", "INT_8"], images, both, ATTACKS)
    assert rows.format.tolist() == ["FP32", "INT_3", "FLOAT_3_E1", "INT_8"]
    assert list(rows)[1:] == ["test_clean", "test_pgd", "trained_clean", "trained_pgd"]
    small = quantization.ptq(network(), "INT_3", images)
    for name, split in both.items():
        assert rows[f"{name}_clean"][1] == measures.accuracy(small, *split)
        assert rows[f"{name}_pgd"][1] == measures.accuracy(small, *split, attack=ATTACKS["pgd"])
        assert rows[f"{name}_clean"][0] == measures.accuracy(network(), *split)
    assert rows.iloc[1, 1:].tolist() == rows.iloc[2, 1:].tolist(), "formats of equal values"
    assert (rows.test_pgd < rows.test_clean).all()


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    both, path = sets(20), tmp_path / "sets.pt"
    evaluate = partial(
        robustness.on_sets, network(), calibration_images=both["test"].images, sets=both, checkpoint=path
    )
    evaluate(["INT_4"], attacks=ATTACKS)
    scored, accuracy = [], measures.accuracy
    monkeypatch.setattr(measures, "accuracy", lambda *args, **more: scored.append(1) or accuracy(*args, **more))
    again = {"pgd": partial(ATTACKS["pgd"].func, **ATTACKS["pgd"].keywords)}
    assert len(evaluate(["INT_4", "INT_8"], attacks=again)) == 3
    assert len(scored) == 4, "one format on two sets, clean and attacked"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_images": torch.empty(0, 1, 8, 8)}, "expected calibration images, got none"),
        ({"formats": ["INT_80"]}, "INT_80"),
        ({"formats": ["INT_8"], "granularity": "row"}, "expected granularity tensor | channel, got 'row'"),
        ({"attacks": {"pgd": partial(ATTACKS["pgd"], steps=9)}}, "belongs to another evaluation on sets: attack pgd"),
    ],
)
def test_bad_evaluations_say_what_was_expected(tmp_path, options, words):
    given = {"formats": [], "calibration_images": pictures(5)[0], "sets": sets(5), "attacks": ATTACKS}
    if "attacks" in options:
        given["checkpoint"] = tmp_path / "sets.pt"
        robustness.on_sets(network(), **given)
    with pytest.raises(ValueError, match=re.escape(words)):
        robustness.on_sets(network(), **(given | options))
