"""Forms of learned thresholds that lose their levels."""

import pytest
import torch

from rqlib.defenses import known_mistakes

HALF_NORMAL = torch.distributions.Normal(0.0, 1.0).icdf(0.5 + torch.arange(4096) / 8192)


def test_only_ddtrelu_keeps_its_levels():
    rows = known_mistakes.levels_left(HALF_NORMAL, bits=3).set_index("form")
    assert rows.levels["DDTReLU"] == 8
    for form in known_mistakes.FORMS:
        assert rows.levels[form] <= 2, rows
        assert rows.squared_error[form] > 10 * rows.squared_error["DDTReLU"]


def test_values():
    """Thresholds 1, 2 and 4: x = 0.5, 1.5, 3 and 9 lie in the four intervals."""
    x, thresholds = torch.tensor([0.5, 1.5, 3.0, 9.0]), torch.tensor([1.0, 2.0, 4.0])
    assert known_mistakes.midpoint(x, thresholds).tolist() == [0.5, 1.5, 3, 4]
    assert known_mistakes.one_sided(x, thresholds).tolist() == [0, 1, 2, 4]
    assert known_mistakes.count_based(x, thresholds, 0.5).tolist() == [0, 0.5, 1, 1.5]


def test_gradients():
    """By a threshold: from both sides, from above alone, and by counts without errors."""
    x = torch.tensor([0.5, 1.5, 1.6, 3.0])
    for form, expected in (
        ("midpoint", [1.5, 1.5, 0.5]),
        ("one_sided", [2, 1, 0]),
        ("count_based", [0.25, -0.25, -0.25]),
    ):
        thresholds = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
        known_mistakes.FORMS[form](x, thresholds, 1.0).sum().backward()
        assert thresholds.grad.tolist() == pytest.approx(expected)
