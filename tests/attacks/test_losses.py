"""Losses that attacks climb, against arithmetic by hand and the properties that define them."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rqlib.attacks import losses

LOGITS = torch.tensor([[4.0, 1.0, 2.0, 0.0], [1.0, 5.0, 3.0, 2.0]])
Y = torch.tensor([0, 0])


def random_logits(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(50, 10, generator=rng), torch.randint(0, 10, (50,), generator=rng)


def test_by_hand():
    assert_close(losses.margin(LOGITS, Y), torch.tensor([2.0 - 4.0, 5.0 - 1.0]))
    assert_close(losses.dlr(LOGITS, Y), torch.tensor([-2.0 / (4 - 1), 4.0 / (5 - 2)]))
    assert_close(losses.ce(LOGITS, Y), -F.log_softmax(LOGITS, 1)[:, 0])


@pytest.mark.parametrize("loss", [losses.margin, losses.dlr])
def test_positive_exactly_where_misclassified(loss):
    logits, y = random_logits()
    assert torch.equal(loss(logits, y) > 0, logits.argmax(1) != y)


def test_dlr_does_not_see_scale_nor_shift():
    logits, y = random_logits()
    assert_close(losses.dlr(1e4 * logits + 7, y), losses.dlr(logits, y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.dlr(torch.zeros(1, 2), Y[:1]), "expected at least 3 classes for the DLR loss, got 2"),
        (lambda: losses.margin(LOGITS, LOGITS.softmax(1)), r"expected labels \(B,\) for a margin, got \(2, 4\)"),
        (lambda: losses.named("cw"), "unknown attack loss 'cw'.*known: ce, margin, dlr"),
    ],
)
def test_what_has_no_loss_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
