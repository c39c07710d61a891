"""Round to the values of a floating point grid by a formula on the bits of x: no logarithm, division or table.

A grid is given by four numbers: its ``lowest`` and ``largest`` value, its ``smallest`` positive normal value (a power
of two, below which the step no longer shrinks) and its ``mantissa_bits`` m. The step at x is
``max(2^floor(log2 |x|), smallest) 2^-m``. ``2^floor(log2 |x|)`` is what remains of x when all bits but its exponent
field are set to 0. Adding ``1.5 step 2^23`` to a float32 and subtracting it again rounds it to a multiple of the step,
ties to even.
"""

import functools
import warnings

import torch
from torch import Tensor

BLOCK = 2**17  # so many values are rounded at a time on a processor, so that they stay in its cache
_FRACTION_BITS = {torch.float32: 23, torch.float64: 52}
_EXPONENT_FIELD = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}


def clipped(
    x: Tensor, lowest: float, largest: float, smallest: float, mantissa_bits: int, *, scale: Tensor | None = None
) -> Tensor:
    """x clipped to ``lowest`` .. ``largest`` and rounded. So infinities become one of the two; NaN stays NaN.

    Args:
        x: any shape; float32 for grids of at most 21 mantissa bits, float64 for at most 50.
        lowest, largest: values of the grid.
        scale: one number, (1,), of the type of x. With it the result is ``scale clipped(x / scale)``, to the last bit.
    """
    evenly_spaced = max(-lowest, largest) < 2 * smallest
    shift = smallest * _shift(x.dtype, mantissa_bits)

    def finish_(values: Tensor) -> Tensor:
        """Round values that are clipped already, in place, and multiply them by the scale."""
        if evenly_spaced:
            values.add_(shift).sub_(shift)
        else:
            snap_(values, smallest, mantissa_bits)
        return values if scale is None else values.mul_(scale)

    if x.device.type != "cpu" or x.numel() <= BLOCK or not _is_dense(x):
        return finish_((x if scale is None else x / scale).clamp(lowest, largest))
    rounded = torch.empty_like(x)
    for source, target in zip(_flat(x).split(BLOCK), _flat(rounded).split(BLOCK), strict=True):
        if scale is not None:
            source = torch.div(source, scale, out=target)
        finish_(torch.clamp(source, lowest, largest, out=target))
    return rounded


def snap_(x: Tensor, smallest: float, mantissa_bits: int) -> Tensor:
    """Round x in place, without clipping. Magnitudes of a float32 must be below 2^(126 - 23 + m)."""
    shifts = power_of_two(x).clamp_min_(smallest).mul_(_shift(x.dtype, mantissa_bits))
    return x.add_(shifts).sub_(shifts)


def power_of_two(x: Tensor) -> Tensor:
    """2^floor(log2 |x|), from the exponent field of x; 0 if |x| is below the smallest normal float."""
    integer, mask = _EXPONENT_FIELD[x.dtype]
    return (x.view(integer) & mask).view(x.dtype)


def clipped_compiled(x: Tensor, lowest: float, largest: float, smallest: float, mantissa_bits: int) -> Tensor:
    """The same values as `clipped`, of a float32 tensor, by one loop that torch.compile makes for every grid and shape.

    The first call takes some seconds. A RuntimeError says why torch.compile does not work on this machine.
    """
    kernel = _compiled_kernel(x.device)
    flat = _flat(x) if _is_dense(x) else x.flatten()
    numbers = (lowest, largest, smallest, _shift(x.dtype, mantissa_bits))
    rounded = kernel(flat, *(torch.tensor(number, device=x.device) for number in numbers))
    return rounded.as_strided(x.shape, x.stride()) if _is_dense(x) else rounded.view(x.shape)


@functools.cache
def _compiled_kernel(device: torch.device):
    """The compiled loop for flat tensors of any length; a call on a short tensor makes torch compile it."""
    kernel = torch.compile(_kernel, dynamic=True, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own imports raise warnings
        try:
            kernel(torch.ones(1024, device=device), *(torch.ones((), device=device) for _ in range(4)))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise RuntimeError(
                f"torch.compile does not work on this machine ({reason}); rounding without it gives the same values"
            ) from error
    return kernel


def _kernel(
    x: Tensor,
    lowest: float | Tensor,
    largest: float | Tensor,
    smallest: float | Tensor,
    shift: float | Tensor,
) -> Tensor:
    x = x.clamp(lowest, largest)
    shifts = power_of_two(x).clamp(min=smallest) * shift
    return (x + shifts) - shifts


def _shift(dtype: torch.dtype, mantissa_bits: int) -> float:
    """The factor f such that the last binary place of ``f 2^floor(log2 |x|)`` is worth the step at x."""
    return 1.5 * 2.0 ** (_FRACTION_BITS[dtype] - mantissa_bits)


def _is_dense(x: Tensor) -> bool:
    """Whether the values fill one stretch of memory without gaps, in any order of the axes."""
    return x.stride() == torch.empty_like(x, device="meta").stride()


def _flat(x: Tensor) -> Tensor:
    """The values of a dense tensor in the order of memory."""
    return x.as_strided((x.numel(),), (1,))
