"""How many nonzeros a network may have if its file is to be so many times smaller than the dense one.

Before anything is trained: nonzeros are spread over the layers in proportion to their sizes. The file that is written
in the end says how well that was foreseen (`true_sizes.sizes`).
"""

import bisect

from torch import nn

from rqlib.measures import cost
from rqlib.pruning import factors

_HEADER = 8 * 110  # bits in a file of `packed` that say what network it is


def nonzeros(model: nn.Module, compression: float, *, bits: int | None, indexed: bool = True) -> int:
    """The largest number of nonzeros whose file is at most ``1 / compression`` of that of the dense network.

    Both files hold all weights, biases and BatchNorm; layers that are left alone (`factors.layer_names`) stay dense.

    Args:
        model: a network whose weights are plain.
        compression: bytes of the dense file / bytes of the compressed one, above 1.
        bits: of each value, beside a codebook of ``2^bits`` values for each layer; None: 32, and no codebook.
        indexed: an index says where the nonzeros are. Factors of low rank need none.

    Raises:
        ValueError: the compression is not above 1; what is never compressed is too much already.
    """
    if not compression > 1:
        raise ValueError(f"expected a compression above 1 (bytes of the dense file / of the file), got {compression}")
    counts = [weight.numel() for weight in factors.tensors(model).values()]
    size, whole = sum(counts), cost.storage(model)
    dense = whole["dense_bits"] + whole["other_bits"]
    fixed = dense - 32 * size + _HEADER

    def file_bits(number: int) -> int:
        share = number / size
        return fixed + sum(_bits(count, round(share * count), bits, indexed) for count in counts)

    found = bisect.bisect_right(range(size + 1), dense / compression, key=file_bits) - 1
    if found < 1:
        most = dense / file_bits(1)
        raise ValueError(
            f"expected a compression below {most:.4g}, got {compression:g}: biases, BatchNorm and layers that are left "
            "alone take the rest"
        )
    return found


def _bits(count: int, nonzero: int, bits: int | None, indexed: bool) -> int:
    """Bits of the nonzeros of one layer of ``count`` weights, with their codebook and index."""
    distinct = nonzero if bits is None else min(nonzero, 2**bits)
    values = 32 * nonzero if bits is None else cost.with_codebook(nonzero, distinct, distinct)
    return values + (cost.index_bits(count, nonzero) if indexed else 0)
