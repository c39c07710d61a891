"""Losses that attacks climb, against arithmetic by hand and the properties that define them."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rqlib.attacks import losses
from rqlib.attacks.losses import LOSSES

LOGITS = torch.tensor([[4.0, 1.0, 2.0, 0.0], [1.0, 5.0, 3.0, 2.0]])
Y = torch.tensor([0, 0])


def random_logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(50, 10, generator=generator), torch.randint(0, 10, (50,), generator=generator)


def test_by_hand():
    assert_close(losses.margin(LOGITS, Y), torch.tensor([2.0 - 4.0, 5.0 - 1.0]))
    assert_close(losses.dlr(LOGITS, Y), torch.tensor([-2.0 / (4 - 1), 4.0 / (5 - 2)]))
    assert_close(losses.ce(LOGITS, Y), -F.log_softmax(LOGITS, 1)[:, 0])


@pytest.mark.parametrize("loss", [losses.margin, losses.dlr])
def test_positive_exactly_where_misclassified(loss):
    logits, y = random_logits()
    assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_one_loss_an_image_with_a_gradient(loss):
    logits, y = random_logits()
    logits.requires_grad_()
    values = loss(logits, y)
    assert values.shape == y.shape
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    own = gradient.gather(1, y[:, None])
    assert (own <= 0).all(), "a larger logit of the label lowers the loss"
    assert (own < 0).float().mean() > 0.8, "DLR alone is flat where the label is third"


def test_dlr_does_not_see_scale_nor_shift():
    logits, y = random_logits()
    assert_close(losses.dlr(1e4 * logits + 7, y), losses.dlr(logits, y), rtol=1e-4, atol=1e-4)


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="expected at least 3 classes for the DLR loss, got 2"):
        losses.dlr(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


def test_unknown_loss():
    with pytest.raises(ValueError, match="unknown attack loss 'cw'.*known: ce, margin, dlr"):
        losses.named("cw")
