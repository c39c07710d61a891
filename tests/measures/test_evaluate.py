import pytest
import torch
from torch import nn

from rqlib.core import runtime
from rqlib.measures import evaluate


@pytest.fixture(autouse=True)
def float32():
    with runtime.using("cpu", "float32"):
        yield


@pytest.fixture
def images():
    return torch.randint(0, 256, (37, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 4, (37,))


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())


def test_logits_do_not_depend_on_the_batch_size(model, images):
    whole = evaluate.logits(model, *images, batch_size=37)
    torch.testing.assert_close(evaluate.logits(model, *images, batch_size=5), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole, model.eval()(images[0] / 255).detach(), rtol=1e-5, atol=1e-5)


def test_accuracy_counts_by_hand_and_leaves_the_model_as_it_was(images):
    class Brightest(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    labels = (images[0] / 255).mean((2, 3)).argmax(1)
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 3
    model = Brightest().train()
    assert evaluate.accuracy(model, images[0], labels) == 1.0
    assert evaluate.accuracy(model, images[0], wrong) == pytest.approx(27 / 37)
    assert model.training
    assert evaluate.correct(model, images[0], wrong).tolist() == [False] * 10 + [True] * 27


def test_confusion_rows_are_labels():
    counts = evaluate.confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_no_images_are_refused(model):
    with pytest.raises(ValueError, match="at least one image"):
        evaluate.accuracy(model, torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
