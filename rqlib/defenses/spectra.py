"""The operator norm of a convolution or linear layer: an estimate from below, and a bound that holds.

The norm is the largest ``|A x|_2 / |x|_2``, where A is the layer without its bias, as an operator on inputs of one
shape. Stride, padding, dilation, groups and padding mode all change it.

A zero-padded convolution is a convolution on a torus of N >= H + P points, between an embedding and a restriction,
which both have norm 1. So the norm on the torus bounds it, and that norm can be computed exactly: the Fourier transform
turns the convolution into one small matrix per frequency (Sedghi et al. 2019, arXiv 1805.10408). With stride S, the
S^2 frequencies that become one after subsampling form one matrix ``[K(f_1) ... K(f_S^2)] / S``.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlib.core import layers, runtime

ROUNDING = 1e-5
"""A bound is enlarged by this factor, for the rounding of float32 weights."""

FIRST = 8
"""Frequencies, those of the largest matrices, whose singular values are computed first."""

STEPS = 20
"""Steps of `operator_norm`: enough for 1% on layers of 64 channels on 32 x 32."""


@torch.no_grad()
def operator_norm(
    layer: nn.Module, input_shape: tuple[int, ...], *, steps: int = STEPS, method: str = "golub_kahan", seed: int = 0
) -> float:
    """An estimate of a layer's operator norm, never above it but for rounding.

    Args:
        layer: a convolution of any kind, or a linear layer, whose norm is exact.
        input_shape: (C, H, W) of its input, (C, L) or (C, D, H, W); for a linear layer it does not matter.
        steps: products with A and with its transpose.
        method: ``golub_kahan`` (Lanczos bidiagonalization with full reorthogonalization; Golub and Kahan 1965), or
            ``power`` (alternating power iteration; it needs about four times as many steps for 1%).
        seed: of the random start.

    Raises:
        ValueError: not such a layer; an input that does not fit it; an unknown method.
    """
    if method not in _METHODS:
        raise ValueError(f"expected method {' | '.join(_METHODS)}, got {method!r}")
    if isinstance(layer, nn.Linear):
        return _largest_singular_value(layer.weight.double()[None])
    check(layer, input_shape)
    weight = layer.weight.detach()
    start = torch.randn(1, *input_shape, generator=runtime.rng(seed)).to(weight)
    return _METHODS[method](lambda v: apply(layer, v), lambda u: transposed(layer, u, input_shape), start, steps)


@torch.no_grad()
def norm_bound(layer: nn.Module, input_shape: tuple[int, ...], *, gram_steps: int = 0) -> float:
    """A bound of a layer's operator norm: the exact norm of the same convolution on a torus, or of a linear layer.

    It is the least over several sizes of the torus. With reflected, replicated or circular padding, the norm of the
    padding is multiplied in; circular padding whose torus is the image itself is exact.

    Args:
        layer, input_shape: as for `operator_norm`.
        gram_steps: 0 for singular values by LAPACK. Else the largest one is bounded by so many squarings of the Gram
            matrix (Delattre et al. 2023, arXiv 2305.16173), which is faster on a GPU: the bound is at most
            ``r^(1 / 2^(steps + 1))`` too large, with r the smaller number of channels.

    Raises:
        ValueError: as `operator_norm`.
    """
    if isinstance(layer, nn.Linear):
        return _largest_singular_value(layer.weight.detach().double()[None]) * (1 + ROUNDING)
    check(layer, input_shape)
    sizes, padding_norm = _toruses(layer, input_shape[1:])
    weight = layer.weight.detach().double()
    largest = _gram_iteration(gram_steps) if gram_steps else _largest_singular_value
    least = math.inf
    for size in sizes:
        blocks = _blocks(weight, size, layer)
        least = min(least, largest(blocks, least))
        constant = torch.linalg.matrix_norm(blocks[: layer.groups], 2).max().item()  # frequency 0 is in every torus
        if least <= constant * (1 + 1e-9):
            break
    return least * padding_norm * (1 + ROUNDING)


def check(layer: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the layer is a convolution and the shape one of its inputs."""
    if not isinstance(layer, layers.CONVOLUTIONS):
        raise ValueError(f"expected a convolution or a linear layer, got {type(layer).__name__}")
    dimensions = layer.weight.dim() - 1
    if len(input_shape) != dimensions or input_shape[0] != layer.in_channels:
        wanted = ", ".join(["C", "D", "H", "W"][:1] + ["D", "H", "W"][4 - dimensions :])
        raise ValueError(
            f"expected input_shape ({wanted}) with C = {layer.in_channels} for this convolution, got {input_shape}"
        )


def apply(layer: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """A x: the convolution without its bias, with another weight if one is given."""
    return layer._conv_forward(x, layer.weight if weight is None else weight, None)


def transposed(layer: nn.Module, u: Tensor, input_shape: tuple[int, ...], weight: Tensor | None = None) -> Tensor:
    """A' u, where A is the convolution without its bias on inputs of this shape (one image)."""
    weight = layer.weight if weight is None else weight
    padding = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return _input_gradient(layer, weight, u, (1, *input_shape), layer.padding)
    amounts = zip(input_shape[1:], padding[::-2], padding[-2::-2], strict=True)
    padded = (1, input_shape[0], *(size + before + after for size, after, before in amounts))
    gradient = _input_gradient(layer, weight, u, padded, [0] * len(layer.stride))
    _, unpad = torch.func.vjp(lambda x: _padded(layer, x), torch.zeros(1, *input_shape).to(u))
    return unpad(gradient)[0]


def power_step(forward: Callable, backward: Callable, v: Tensor) -> tuple[Tensor, Tensor]:
    """One step of alternating power iteration from a unit vector v: the next (u, v), both of norm 1.

    u follows from v, and v from the new u. (Updating both at once converges to the wrong sign for half of all
    matrices.)
    """
    u = _normalized(forward(v))
    return u, _normalized(backward(u))


def _normalized(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-30)


def _power(forward: Callable, backward: Callable, v: Tensor, steps: int) -> float:
    v = v / v.norm()
    for _ in range(steps):
        _, v = power_step(forward, backward, v)
    return forward(v).norm().item()


def _golub_kahan(forward: Callable, backward: Callable, v: Tensor, steps: int) -> float:
    """The largest singular value of the bidiagonal matrix that ``steps`` steps of Lanczos build."""
    shape, steps = v.shape, min(steps, v.numel())
    rights = [(v / v.norm()).flatten()]
    lefts: list[Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    for step in range(steps):
        u = forward(rights[-1].view(shape))
        u_shape, u = u.shape, u.flatten()
        alphas.append(_orthogonalized(u, lefts))
        if alphas[-1] < 1e-12 or step + 1 == steps:
            break
        v = backward(lefts[-1].view(u_shape)).flatten()
        betas.append(_orthogonalized(v, rights))
        if betas[-1] < 1e-12:
            break
    bidiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    bidiagonal += torch.diag(torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64), 1)
    return torch.linalg.matrix_norm(bidiagonal, 2).item()


def _orthogonalized(x: Tensor, basis: list[Tensor]) -> float:
    """Make x orthogonal to a basis, append it with norm 1, and return the norm it had."""
    if basis:
        stacked = torch.stack(basis)
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            x = x - stacked.T @ (stacked @ x)
    norm = x.norm().item()
    basis.append(x / max(norm, 1e-30))
    return norm


_METHODS = {"golub_kahan": _golub_kahan, "power": _power}


def _input_gradient(layer: nn.Module, weight: Tensor, u: Tensor, size: tuple[int, ...], padding) -> Tensor:
    """The transpose of a zero-padded convolution."""
    transpose = {3: nn.grad.conv1d_input, 4: nn.grad.conv2d_input, 5: nn.grad.conv3d_input}[weight.dim()]
    return transpose(size, weight, u, layer.stride, padding, layer.dilation, layer.groups)


def _padded(layer: nn.Module, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode)


def _toruses(layer: nn.Module, image: tuple[int, ...]) -> tuple[list[tuple[int, ...]], float]:
    """Sizes of toruses whose norm, times the returned norm of the padding, bounds that of the layer."""
    reversed_amounts = layer._reversed_padding_repeated_twice
    amounts = list(zip(reversed_amounts[::2], reversed_amounts[1::2], strict=True))[::-1]
    if layer.padding_mode == "zeros":
        ranges = [range(size + max(pair), size + sum(pair) + 3) for size, pair in zip(image, amounts, strict=True)]
        return _multiples(ranges, layer.stride), 1.0
    outputs = apply(layer, torch.zeros(1, layer.in_channels, *image).to(layer.weight)).shape[2:]
    closed = zip(image, layer.stride, outputs, strict=True)
    if layer.padding_mode == "circular" and all(n % s == 0 and (o - 1) * s < n for n, s, o in closed):
        return [tuple(image)], 1.0
    sizes = [range(size + sum(pair), size + sum(pair) + 3) for size, pair in zip(image, amounts, strict=True)]
    norms = [_padding_norm(layer.padding_mode, size, pair) for size, pair in zip(image, amounts, strict=True)]
    return _multiples(sizes, layer.stride), math.prod(norms)


def _multiples(ranges: list[range], strides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The sizes of these ranges, rounded up to multiples of the strides; all dimensions grow together."""
    steps = range(max(map(len, ranges)))
    sizes = [[each[min(step, len(each) - 1)] for each in ranges] for step in steps]
    rounded = [tuple(-(-n // s) * s for n, s in zip(size, strides, strict=True)) for size in sizes]
    return list(dict.fromkeys(rounded))


def _padding_norm(mode: str, size: int, pair: tuple[int, int]) -> float:
    """Norm of the padding of one axis. Of several axes together it is the product, because each pads by itself."""
    rows = F.pad(torch.eye(size, dtype=torch.float64)[:, None], pair, mode)[:, 0]
    return torch.linalg.matrix_norm(rows, 2).item()


def _blocks(weight: Tensor, size: tuple[int, ...], layer: nn.Module) -> Tensor:
    """The matrices (frequencies, C_out / groups, S^d C_in / groups) of a convolution on a torus, complex.

    Frequencies that are complex conjugates of others, and so have the same singular values, are left out.
    """
    waves = weight.to(torch.complex128)
    for axis, (n, stride, dilation) in enumerate(zip(size, layer.stride, layer.dilation, strict=True)):
        last = axis + 1 == len(size)
        waves = torch.tensordot(waves, _phases(weight.shape[axis + 2], n, stride, dilation, last).to(waves), ([2], [0]))
    dimensions = len(size)  # now (C_out, C_in / groups, then for each axis its S aliases and N / S frequencies)
    aliases, frequencies = ([2 + 2 * axis + which for axis in range(dimensions)] for which in (0, 1))
    blocks = waves.permute(*frequencies, 0, 1, *aliases).flatten(0, dimensions - 1)
    blocks = blocks.unflatten(1, (layer.groups, -1)).flatten(3).flatten(0, 1)
    return blocks / math.sqrt(math.prod(layer.stride))


def _phases(taps: int, n: int, stride: int, dilation: int, half: bool) -> Tensor:
    """``exp(-2 pi i tap dilation f / n)``, (taps, stride, n / stride): frequencies f that become one share a column."""
    places = torch.arange(taps, dtype=torch.float64) * dilation
    found = torch.arange(n, dtype=torch.float64).view(stride, n // stride)
    found = found[:, : n // stride // 2 + 1] if half else found
    angles = -2 * math.pi / n * places[:, None, None] * found
    return torch.polar(torch.ones_like(angles), angles)


def _largest_singular_value(blocks: Tensor, enough: float = math.inf) -> float:
    """Of all matrices (N, m, n), exactly; through the Gram matrix G of the shorter side. Or one that is ``enough``.

    As ``tr G`` and ``|G^p|_F^(1/p)`` are never below the largest eigenvalue, most matrices need none: theirs is below
    one already found.
    """
    shorter = blocks if blocks.shape[-2] <= blocks.shape[-1] else blocks.mH
    traces = torch.linalg.vector_norm(shorter, dim=(1, 2)).square()
    first = shorter[traces.topk(min(FIRST, len(traces))).indices]
    found = torch.linalg.eigvalsh(first @ first.mH)[:, -1].max().clamp(min=0)
    if found < enough**2 and len(rest := shorter[traces > found]):
        rest = _above(rest @ rest.mH, found)
        found = torch.maximum(found, torch.linalg.eigvalsh(rest)[:, -1].max()) if len(rest) else found
    return found.sqrt().item()


def _above(grams: Tensor, found: Tensor) -> Tensor:
    """Those of positive matrices (N, m, m) whose largest eigenvalue may be above one already found."""
    powers = grams
    for power in (1, 2, 4):
        may = torch.linalg.matrix_norm(powers) ** (1 / power) > found
        grams, powers = grams[may], powers[may]
        powers = powers @ powers
    return grams


def _gram_iteration(steps: int) -> Callable[[Tensor, float], float]:
    """A bound of the largest singular value by ``steps`` squarings of the Gram matrix; norms are kept as logarithms."""

    def bound(blocks: Tensor, _: float) -> float:
        gram = blocks if blocks.shape[1] >= blocks.shape[2] else blocks.mH
        logarithm = gram.new_zeros(len(gram), dtype=torch.float64)
        for _ in range(steps):
            norm = torch.linalg.matrix_norm(gram).clamp(min=1e-300)
            gram = gram / norm[:, None, None]
            gram, logarithm = gram.mH @ gram, 2 * (logarithm + norm.log())
        logarithm = logarithm + torch.linalg.matrix_norm(gram).clamp(min=1e-300).log()
        return (logarithm / 2**steps).exp().max().item()

    return bound
