"""Images that were made to fool one network, given to another."""

from collections.abc import Mapping

from pandas import DataFrame
from torch import Tensor, nn

from rqlib import measures
from rqlib.core.vocabulary import Attack
from rqlib.robustness import random_networks


def transfer(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, attack: Attack) -> DataFrame:
    """Accuracy of each network (column) on images that were made to fool each network (row).

    As `measures.transfer_matrix`; of a network that draws noise, gradients are averaged over 20 draws, and its answer
    is the majority of ten fresh predictions.

    Args:
        models: title -> network.
        images, labels: uint8 (N, C, H, W), int64 (N,).
        attack: without ``active_set``, which would stop at the border of the network that is attacked.
    """
    judges = {name: random_networks.judge(model) for name, model in models.items()}
    return measures.transfer_matrix(judges, images, labels, attack=random_networks.Averaged(attack))
