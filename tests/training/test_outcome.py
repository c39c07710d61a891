import pandas
import pytest
import torch
from torch import nn

from rqlib.data import Split
from rqlib.training import loop, outcome

HISTORY = pandas.DataFrame(
    {
        "epoch": [1, 2, 3],
        "validation_accuracy": [0.5, 0.9, 0.7],
        "seconds": [1.0, 2.0, 4.0],
        "images_per_second": [40.0, 20.0, 10.0],
        "kept": [False, True, False],
    }
)


def test_a_training_in_one_row():
    assert outcome.summary(HISTORY) == {
        "validation_accuracy": 0.9,
        "best_epoch": 2,
        "epochs_run": 3,
        "train_seconds": 7.0,
        "images_per_second": 20.0,
    }


def test_the_epoch_of_a_robust_training_is_the_one_that_is_kept():
    accuracies, flags = [0.1, 0.2, 0.3], ["", "robust", "catastrophic"]
    robust = HISTORY.assign(validation_robust_accuracy=accuracies, overfitting=flags, kept=[False, False, True])
    row = outcome.summary(robust)
    assert (row["best_epoch"], row["validation_accuracy"]) == (3, 0.7)
    assert (row["validation_robust_accuracy"], row["overfitting"]) == (0.3, "catastrophic")


@pytest.mark.parametrize(
    ("scores", "keep", "epoch"),
    [
        ([0.5, 0.9, 0.7], "best", 2),
        ([0.5, 0.9, 0.9], "best", 3),  # of equally good ones the last
        ([0.5, 0.9, 0.7], "last", 3),
        ([None, None, None], "best", 3),
    ],
)
def test_the_epoch_in_the_row_is_the_one_whose_weights_are_kept(scores, keep, epoch):
    columns = HISTORY.drop(columns="kept").assign(validation_accuracy=pandas.Series(scores, dtype=object))
    row = outcome.summary(loop.table(columns.to_dict("records"), keep))
    assert (row["best_epoch"], row["validation_accuracy"]) == (epoch, scores[epoch - 1])


def test_a_score_is_the_accuracy_and_who_is_taken_for_whom():
    class Brightness(nn.Module):
        """Class 0, 1 or 2 by the mean of the image."""

        def forward(self, x):
            return -(x.mean((1, 2, 3))[:, None] - torch.tensor([0.0, 0.5, 1.0])).abs()

    images = torch.tensor([0, 128, 255, 255]).byte()[:, None, None, None].expand(4, 1, 2, 2)
    accuracy, confusion = outcome.score(Brightness(), Split(images, torch.tensor([0, 1, 2, 0])))
    assert accuracy == 0.75
    assert confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
