"""The channels of a network by number: which layers write and read them, which must stay, and which compete."""

from collections import Counter
from dataclasses import dataclass

import scipy
import torch
from torch import Tensor

STAYS = 0
"""The number of channels that must stay from the start: those of the image, and of what is not understood."""


@dataclass(frozen=True)
class Channels:
    """The numbers of a network's channels. Channels that must stay or go together share one.

    Attributes:
        writes: name of each convolution, linear layer and normalization -> numbers of its outputs, int64 (O,).
        reads: name of each convolution and linear layer -> numbers of its inputs, int64 (I,).
        carried: name of each tensor of another layer with one value per channel -> (its axis, numbers).
        resting: name of each layer of ``reads`` -> what each of its inputs is while its channel is removed, (I,).
        fixed: for each number, whether its channels must stay, bool.
        reasons: number -> why it is fixed. The channels of the image and of the logits need no reason.
    """

    writes: dict[str, Tensor]
    reads: dict[str, Tensor]
    carried: dict[str, tuple[int, Tensor]]
    resting: dict[str, Tensor]
    fixed: Tensor
    reasons: dict[int, str]

    def pools(self) -> list[Tensor]:
        """Groups of numbers (int64) that may be removed and compete with each other: those of the same filters."""
        joined, written = scipy.cluster.hierarchy.DisjointSet(range(len(self.fixed))), torch.zeros_like(self.fixed)
        for name in self.reads:
            numbers = self.writes[name]
            numbers = numbers[~self.fixed[numbers]]
            written[numbers] = True
            for number in numbers.tolist():
                joined.merge(numbers[0].item(), number)
        sets = groups(joined)
        return [((sets == one) & written).nonzero().squeeze(1) for one in sets[written].unique()]

    def why(self) -> str:
        """How many channels that filters write must stay, and why, as text; empty if only those of the logits must."""
        written = torch.cat([self.writes[name] for name in self.reads]).unique().tolist()
        counts = Counter(self.reasons[number] for number in written if number in self.reasons)
        if not counts:
            return ""
        listed = ", ".join(f"{count:,} because of {reason}" for reason, count in counts.most_common())
        return f"{counts.total():,} of {len(written):,} channels stay: {listed}"


def groups(ties: "scipy.cluster.hierarchy.DisjointSet") -> Tensor:
    """For each of the elements 0, 1, ... its set, int64 (N,); sets are counted in order of their smallest element."""
    found = [0] * len(ties)
    for group, members in enumerate(sorted(ties.subsets(), key=min)):
        for member in members:
            found[member] = group
    return torch.tensor(found)
