"""Rounding 10 million values against a memory copy, a float library, and the search for the nearest level."""

import ctypes
import functools
import importlib.util

import torch
from torch import Tensor

from benchmarks import row
from rqlib.quantization import FLOAT, INT, POT, Format

COUNT = 10_000_000
FORMATS = (INT(8), POT(4), FLOAT(8, 4))


def by_search(format: Format, x: Tensor) -> Tensor:
    """The nearest level by bisection in the table of levels."""
    middles = (format.levels[1:] + format.levels[:-1]) / 2
    return format.levels[torch.bucketize(x, middles)]


def by_table(format: Format, x: Tensor, block: int = 100_000) -> Tensor:
    """The nearest level by looking at all of them, block by block."""
    nearest = [(part[:, None] - format.levels).abs_().argmin(1) for part in x.flatten().split(block)]
    return format.levels[torch.cat(nearest)].view_as(x)


def by_gfloat(format: Format, x: Tensor) -> Tensor:
    """The same format described to gfloat."""
    gfloat = importlib.import_module("gfloat")
    info = gfloat.FormatInfo(
        format.name,
        format.bits,
        format.significant_bits,
        bias=2 ** (format.exponent_bits - 1) - 1,
        is_signed=True,
        domain=gfloat.Domain.Finite,
        has_nz=True,
        num_high_nans=0,
        has_subnormals=True,
        is_twos_complement=False,
    )
    return gfloat.round_ndarray(info, x, gfloat.RoundMode.TiesToEven, sat=True)


def agreement(format: Format, x: Tensor, peer) -> str:
    """How many of the values are the same (ties may fall elsewhere in a search), before anything is timed.

    Raises:
        ValueError: compiled and eager differ, or less than 99.99% are the peer's.
    """
    rounded = format.round(x)
    if not torch.equal(format.round_compiled(x), rounded):
        raise ValueError(f"{format.name}: expected the compiled loop to give the values of Format.round, got others")
    same = (peer(format, x) == rounded).double().mean()
    if same < 0.9999:
        raise ValueError(f"{format.name}: expected 99.99% of the peer's values to be the same, got {same:.4%}")
    return f"compiled = eager; peer the same for {same:.6%}"


def reuse_memory() -> None:
    """Let glibc keep what is freed: fresh pages can take longer than the work, and are small or huge by chance."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def measure() -> list[dict]:
    """For each format: compiled and eager against a copy, compiled against the peers."""
    reuse_memory()
    x = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    rows = []
    for format in FORMATS:
        scaled = x * (format.max / x.abs().max())
        compiled, eager = functools.partial(format.round_compiled, scaled), functools.partial(format.round, scaled)
        work = f"round 10 M values to {format.name}"
        for how, ours, at_least in (("compiled", compiled, 0.5), ("eager", eager, 0.0)):
            settings = {"at_least": at_least, "agree": "-", "repeats": 25}
            rows.append(row(f"{work}, {how}", "memory copy", ours, scaled.clone, **settings))
        peers = {"nearest level by bisection": by_search}
        if importlib.util.find_spec("gfloat"):
            peers["gfloat"] = by_gfloat
        for name, peer in peers.items():
            agree = agreement(format, scaled[:1_000_000], peer)
            theirs = functools.partial(peer, format, scaled)
            rows.append(row(f"{work}, compiled", name, compiled, theirs, at_least=2.0, agree=agree))
        part = scaled[: COUNT // 100]
        ours, theirs = functools.partial(format.round, part), functools.partial(by_table, format, part)
        agree = agreement(format, part, by_table)
        rows.append(
            row(f"round 0.1 M values to {format.name}, eager", "all levels", ours, theirs, at_least=5.0, agree=agree)
        )
    return rows
