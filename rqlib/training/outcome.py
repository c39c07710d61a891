"""What came of a training: the row that a run records of it, and the score on test images."""

from pandas import DataFrame
from torch import Tensor, nn

from rqlib.data import Split
from rqlib.measures import evaluate
from rqlib.training.loop import ROBUST_ACCURACY


def summary(history: DataFrame) -> dict:
    """One row about a training: the epoch whose weights are kept, and how long it took.

    Args:
        history: from `training.fit`.

    Returns:
        validation_accuracy (None without validation images) and best_epoch, of the epoch whose weights are kept;
        epochs_run, train_seconds, images_per_second (median over the epochs), and for a robust training
        validation_robust_accuracy and overfitting (at the end).
    """
    best = history[history.kept].iloc[-1]
    row = {
        "validation_accuracy": best.validation_accuracy,
        "best_epoch": int(best.epoch),
        "epochs_run": int(history.epoch.iloc[-1]),
        "train_seconds": history.seconds.sum(),
        "images_per_second": history.images_per_second.median(),
    }
    if ROBUST_ACCURACY in history:
        row |= {ROBUST_ACCURACY: best[ROBUST_ACCURACY], "overfitting": history.overfitting.iloc[-1]}
    return row


def score(model: nn.Module, split: Split) -> tuple[float, Tensor]:
    """Accuracy on a split, and counts int (K, K) of its images: the row is the label, the column the prediction."""
    logits, labels = evaluate.logits(model, *split), split.labels.cpu()
    predictions = logits.argmax(1)
    accuracy = (predictions == labels).float().mean().item()
    return accuracy, evaluate.confusion(predictions, labels, logits.shape[1])
