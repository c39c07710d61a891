import pytest
import torch
from torch import nn

from rqlib import objectives


def test_natural_is_the_mean_negative_log_likelihood():
    model, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.randint(3, (8,))
    log_likelihood = model(x).log_softmax(1)
    torch.testing.assert_close(objectives.natural(model, x, y), -log_likelihood[range(8), y].mean())


def test_label_smoothing_formula():
    model, x, y, s = nn.Linear(5, 3), torch.randn(8, 5), torch.randint(3, (8,)), 0.2
    target = (1 - s) * torch.nn.functional.one_hot(y, 3) + s / 3
    expected = -(target * model(x).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objectives.natural(model, x, y, label_smoothing=s), expected)


def test_named_binds_settings_and_knows_its_names():
    model, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.randint(3, (8,))
    bound = objectives.named("natural", label_smoothing=0.1)
    torch.testing.assert_close(bound(model, x, y), objectives.natural(model, x, y, label_smoothing=0.1))
    with pytest.raises(ValueError, match=r"unknown objective 'naturel' \(did you mean 'natural'\?\)"):
        objectives.named("naturel")
